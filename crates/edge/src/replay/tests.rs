//! What apps say of replays, as tables.

use serde_json::json;

use super::*;

fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}

fn one(text: &'static str) -> Result<Option<Replay>, Unclear> {
    from_fields(&fields(&[("fly-replay", text)]))
}

const ID: &str = "00000000000001";

#[test]
fn every_field_is_read() {
    let all = one(
        "region=\"fra,eu\"; instance=00000000000001;prefer_instance=x;app=other;state=\"a;b=c\";\
         elsewhere=true;timeout=800ms;fallback=prefer_self;later=1",
    );
    let want = Replay {
        region: Some("fra,eu".to_owned()),
        instance: Some(Instance::of(ID)),
        prefer_instance: Some(Instance::of("x")),
        app: Some("other".parse().unwrap()),
        state: Some("a;b=c".to_owned()),
        elsewhere: true,
        timeout: Some(Duration::from_millis(800)),
        fallback: Some(Fallback::PreferSelf),
        transform: Transform::default(),
        cache: None,
    };
    assert_eq!(all, Ok(Some(want)));
    assert_eq!(from_fields(&HeaderMap::new()), Ok(None));
    let long = one("region=ams;timeout=10m").unwrap().unwrap();
    assert_eq!(long.timeout, Some(TIMEOUT_MAX));
}

#[test]
fn what_is_unclear_is_no_replay() {
    for text in [
        "",
        ";;",
        "region",
        "later=1",
        "region=a;region=b",
        "region=\"a",
        "region=a\"b\"",
        "app=Not An App",
        "elsewhere=perhaps",
        "region=a;timeout=soon",
        "region=a;fallback=other",
    ] {
        assert!(one(text).is_err(), "{text:?}");
    }
    let twice = fields(&[("fly-replay", "region=a"), ("fly-replay", "region=b")]);
    from_fields(&twice).unwrap_err();
}

#[test]
fn where_it_goes_is_a_direction() {
    let me: MachineId = ID.parse().unwrap();
    let direction = one("region=fra,any;elsewhere=true").unwrap().unwrap().direction(&me);
    assert_eq!(direction.without.as_ref(), Some(&me));
    assert_eq!((direction.regions.len(), direction.is_region_forced), (2, true));
    let direction = one("app=other").unwrap().unwrap().direction(&me);
    assert!(direction.is_free());
}

#[test]
fn the_fields_of_the_cache_are_read() {
    let below = |path: &str| Paths::Below(path.to_owned());
    let paths = |host: Option<&str>, paths, ttl, allow_bypass| {
        let host = host.map(ToOwned::to_owned);
        Some(Some(Remember::Paths { host, paths, ttl: Duration::from_secs(ttl), allow_bypass }))
    };
    for (pattern, ttl, bypass, want) in [
        ("/a/*", "60", "no", paths(None, below("/a/"), 60, false)),
        ("Web.Example/a/b/*", "10", "yes", paths(Some("web.example"), below("/a/b/"), 10, true)),
        ("/*", "999999", "", paths(None, below("/"), 86_400, false)),
        ("/a", "60", "", paths(None, Paths::One("/a".to_owned()), 60, false)),
        ("/a*", "60", "", None),
        ("/a/*/b", "60", "", None),
        ("web.example", "60", "", None),
        ("/a/*", "9", "", None),
        ("/a/*", "soon", "", None),
    ] {
        let map = fields(&[
            ("fly-replay", "region=ams"),
            ("fly-replay-cache", pattern),
            ("fly-replay-cache-ttl-secs", ttl),
            ("fly-replay-cache-allow-bypass", bypass),
        ]);
        let read = from_fields(&map).ok().map(|replay| replay.unwrap().cache);
        assert_eq!(read, want, "{pattern} {ttl}");
    }
    assert!(forgets(&fields(&[("fly-replay-cache", "Invalidate")])));
    assert!(!forgets(&fields(&[("fly-replay-cache", "/a/*")])));
}

#[test]
fn a_body_says_the_same_and_more() {
    let read = |json: serde_json::Value| from_body(json.to_string().as_bytes());
    let replay = read(json!({
        "region": ["fra", "eu"], "instance": ID, "app": "other", "state": "s", "elsewhere": true,
        "timeout": "10s", "fallback": "force_self",
        "transform": {"path": "/new?a=b", "delete_headers": ["cookie"],
            "set_headers": [{"name": "x-tenant", "value": "7"}]},
        "cache": {"prefix": "/a", "ttl": 60}, "allow_bypass": true, "later": {},
    }))
    .unwrap();
    assert_eq!(replay.region.as_deref(), Some("fra,eu"));
    assert_eq!(replay.instance, Some(Instance::of(ID)));
    assert_eq!(replay.timeout, Some(Duration::from_secs(10)));
    assert_eq!(replay.fallback, Some(Fallback::ForceSelf));
    assert!(!replay.is_plain());
    let want = Remember::Paths {
        host: None,
        paths: Paths::Under("/a".to_owned()),
        ttl: Duration::from_secs(60),
        allow_bypass: true,
    };
    assert_eq!(replay.cache, Some(want));
    let mut path = PathAndQuery::from_static("/old");
    let mut map = fields(&[("cookie", "a=b"), ("x-tenant", "1"), ("accept", "x")]);
    replay.transform.apply(&mut path, &mut map);
    assert_eq!(path, "/new?a=b");
    assert!(!map.contains_key("cookie"));
    assert_eq!(map["x-tenant"], "7");
    let forget = read(json!({"region": "ams", "cache": {"prefix": "/a/*", "invalidate": true}}));
    let paths = Paths::Below("/a/".to_owned());
    assert_eq!(forget.unwrap().cache, Some(Remember::Forget { paths }));
    assert!(read(json!({"app": "other", "region": "ams"})).unwrap().is_plain());
}

#[test]
fn a_body_that_asks_for_what_may_not_be_is_no_replay() {
    for json in [
        json!([]),
        json!({"region": 1}),
        json!({"app": "A B"}),
        json!({"timeout": "x"}),
        json!({"transform": {"path": "no-path"}}),
        json!({"transform": {"path": "https://other/"}}),
        json!({"transform": {"set_headers": [{"name": "host", "value": "x"}]}}),
        json!({"transform": {"set_headers": [{"name": "Transfer-Encoding", "value": "x"}]}}),
        json!({"transform": {"set_headers": [{"name": "fly-client-ip", "value": "x"}]}}),
        json!({"transform": {"set_headers": [{"name": "fly_client_ip", "value": "x"}]}}),
        json!({"transform": {"set_headers": [{"name": "x", "value": "a\nb"}]}}),
        json!({"transform": {"delete_headers": ["content-length"]}}),
        json!({"transform": {"delete_headers": vec!["a"; 33]}}),
        json!({"cache": {"ttl": 60}}),
        json!({"cache": {"prefix": "/a", "ttl": 1}}),
    ] {
        assert!(from_body(json.to_string().as_bytes()).is_err(), "{json}");
    }
    assert!(is_body(&fields(&[("content-type", "application/vnd.fly.replay+json; a=b")])));
    assert!(!is_body(&fields(&[("content-type", "application/json")])));
}

#[test]
fn a_prefix_is_of_whole_parts_and_names_its_own_path_unless_a_slash_ends_it() {
    let under = |path: &str| Paths::Under(path.to_owned());
    let below = |path: &str| Paths::Below(path.to_owned());
    for (prefix, want) in [
        ("/a", under("/a")),
        ("/a/b*", under("/a/b")),
        ("/a/", below("/a/")),
        ("/a/*", below("/a/")),
        ("/", below("/")),
        ("", below("/")),
        ("web.example", below("/")),
    ] {
        let json = json!({"region": "ams", "cache": {"prefix": prefix, "invalidate": true}});
        let replay = from_body(json.to_string().as_bytes()).unwrap();
        assert_eq!(replay.cache, Some(Remember::Forget { paths: want }), "{prefix:?}");
    }
}

#[test]
fn a_state_is_as_it_was_said_unless_another_field_could_be_seen_in_it() {
    for (state, want) in [
        ("abc=", "abc="),
        ("", ""),
        (r#"{"a":1,"b":"\\"}"#, r#"{"a":1,"b":"\\"}"#),
        ("a;instance=x", r#""a;instance=x""#),
        (r#"a";instance=x"#, r#""a\";instance=x""#),
        (r#"a\";instance=x"#, r#""a\\\";instance=x""#),
    ] {
        assert_eq!(quoted(state), want);
    }
}
