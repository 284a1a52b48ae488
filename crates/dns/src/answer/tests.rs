//! The forms of contract 5.2, each with its answer.

use std::fmt::Write as _;

use serde_json::json;

use super::*;

fn view() -> View {
    let mut view = View::default();
    let mut app = |org: &str, name: &str, network: u32| {
        let doc = json!({"id": name, "number": 1, "name": name, "org": org, "network": "default",
            "network_id": network, "created_at": "2026-01-01T00:00:00Z"});
        view.apply(&format!("apps/{org}/{name}"), Some(doc.to_string().as_bytes())).unwrap();
    };
    app("personal", "web", 1);
    app("personal", "idle", 1);
    app("personal", "walled", 2);
    app("other", "theirs", 3);
    let mut machine = |id: u64, org: &str, app: &str, network: u32, more: serde_json::Value| {
        let mut record = json!({"id": format!("{id:014x}"), "org": org, "app": app, "name": "n",
            "host": "000000000001", "region": "ams", "instance": "01ARYZ6S410000000000000000",
            "generation": {"incarnation": 1, "counter": 1}, "state": "started", "ready": true,
            "private_ip": format!("fdaa:0:{network:x}:0:0:0:{id:x}:2"),
            "private_ipv4": format!("10.209.0.{}", 16 + id), "image": "i", "cpus": 1,
            "memory_mb": 256, "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z"});
        for (key, value) in more.as_object().unwrap() {
            record[key] = value.clone();
        }
        let key = format!("machines/{org}/{app}/{id:014x}");
        view.apply(&key, Some(record.to_string().as_bytes())).unwrap();
    };
    machine(1, "personal", "web", 1, json!({"metadata": {"fly_process_group": "app"}}));
    machine(
        2,
        "personal",
        "web",
        1,
        json!({"region": "iad",
        "metadata": {"fly_process_group": "worker", "Role": "Lead.Er"}}),
    );
    machine(3, "personal", "web", 1, json!({"region": "fra", "state": "stopped"}));
    machine(4, "personal", "web", 1, json!({"region": "lhr", "skip_dns": true}));
    machine(5, "personal", "walled", 2, json!({}));
    machine(6, "other", "theirs", 3, json!({}));
    view
}

fn ask(source: &str, name: &str, kind: Kind) -> String {
    let view = view();
    let asking = Asking::at(&view, source.parse().unwrap());
    let lower = name.to_ascii_lowercase();
    let labels: Vec<&str> = lower.split('.').collect();
    match answer(&view, asking.as_ref(), &labels, kind) {
        None => "who?".to_owned(),
        Some(Answer::Addresses(list)) => {
            let mut text = String::new();
            for address in list {
                write!(text, "{}{address}", if text.is_empty() { "" } else { " " }).unwrap();
            }
            text
        }
        Some(Answer::Text(text)) => format!("{text:?}"),
        Some(other) => format!("{other:?}"),
    }
}

fn check(source: &str, table: &[(&str, Kind, &str)]) {
    for (name, kind, expected) in table {
        assert_eq!(ask(source, name, *kind), *expected, "{name} {kind:?}");
    }
}

const ONE: &str = "fdaa:0:1::1:2";
const TWO: &str = "fdaa:0:1::2:2";
const BOTH: &str = "fdaa:0:1::1:2 fdaa:0:1::2:2";

#[test]
fn every_form_of_the_contract_has_its_answer() {
    use Kind::{Address, Other, Text};
    check(
        "fdaa:0:1::1:2",
        &[
            ("web.internal", Address, BOTH),
            ("WEB.Internal", Address, BOTH),
            ("web.internal", Text, "NoData"),
            ("web.internal", Other, "NoData"),
            ("global.web.internal", Address, BOTH),
            ("iad.web.internal", Address, TWO),
            ("fra.web.internal", Address, "NoName"),
            ("syd.web.internal", Address, "NoName"),
            ("top1.nearest.of.web.internal", Address, ONE),
            ("top9.nearest.of.web.internal", Address, BOTH),
            ("topx.nearest.of.web.internal", Address, "NoName"),
            ("00000000000002.vm.web.internal", Address, TWO),
            ("00000000000003.vm.web.internal", Address, "NoName"),
            ("worker.process.web.internal", Address, TWO),
            ("none.process.web.internal", Address, "NoData"),
            ("app.fly_process_group.kv._metadata.web.internal", Address, ONE),
            ("lead.er.role.kv._metadata.web.internal", Address, TWO),
            ("role.kv._metadata.web.internal", Address, "NoName"),
            ("vms.web.internal", Text, r#""00000000000001 ams,00000000000002 iad""#),
            (
                "all.vms.web.internal",
                Text,
                r#""00000000000001 ams,00000000000002 iad,00000000000003 fra""#,
            ),
            ("vms.web.internal", Address, "NoData"),
            ("regions.web.internal", Text, r#""ams,iad""#),
            ("all.regions.web.internal", Text, r#""ams,fra,iad""#),
            ("_apps.internal", Text, r#""idle,web""#),
            ("_peer.internal", Text, r#""""#),
            (
                "_instances.internal",
                Text,
                r#""instance=00000000000001,app=web,ip=fdaa:0:1::1:2,region=ams;instance=00000000000002,app=web,ip=fdaa:0:1::2:2,region=iad""#,
            ),
            ("idle.internal", Address, "NoData"),
            ("nothing.internal", Address, "NoName"),
            ("a.b.c.web.internal", Address, "NoName"),
            ("internal", Address, "NoData"),
            ("x.y_z.internal", Address, "NoName"),
        ],
    );
}

#[test]
fn n8_another_organization_or_network_does_not_exist() {
    use Kind::{Address, Text};
    check(
        "fdaa:0:1::1:2",
        &[
            ("theirs.internal", Address, "NoName"),
            ("walled.internal", Address, "NoName"),
            ("00000000000006.vm.theirs.internal", Address, "NoName"),
            ("vms.theirs.internal", Text, "NoName"),
        ],
    );
    check("fdaa:0:2::5:2", &[("walled.internal", Address, "fdaa:0:2::5:2")]);
    check("fdaa:0:2::5:2", &[("web.internal", Address, "NoName")]);
    // The same machine by its other address.
    check("10.209.0.22", &[("theirs.internal", Address, "fdaa:0:3::6:2")]);
    check("::ffff:10.209.0.22", &[("_apps.internal", Text, r#""theirs""#)]);
    check("10.209.0.99", &[("theirs.internal", Address, "who?")]);
}

#[test]
fn other_names_are_forwarded_unless_they_mean_nothing_outside() {
    use Kind::{Address, Pointer};
    check(
        "10.209.0.17",
        &[
            ("example.com", Address, "Forward"),
            ("internal.example.com", Address, "Forward"),
            ("8.8.8.8.in-addr.arpa", Pointer, "Forward"),
            ("postgres", Address, "NoName"),
            ("printer.local", Address, "NoName"),
            ("web.flycast", Address, "NoName"),
            ("254.169.254.169.in-addr.arpa", Pointer, "NoName"),
            ("1.10.in-addr.arpa", Pointer, "NoName"),
            ("18.0.209.10.in-addr.arpa", Pointer, r#"Pointer("00000000000002.vm.web.internal.")"#),
            ("22.0.209.10.in-addr.arpa", Pointer, "NoName"),
        ],
    );
    let reverse = "2.0.0.0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.a.a.d.f.ip6.arpa";
    let expected = r#"Pointer("00000000000002.vm.web.internal.")"#;
    check("10.209.0.17", &[(reverse, Pointer, expected)]);
    check("10.209.0.22", &[(reverse, Pointer, "NoName")]);
    check("10.209.0.99", &[("example.com", Address, "Forward"), (reverse, Pointer, "who?")]);
}

proptest::proptest! {
    #[test]
    fn any_name_gets_an_answer(labels in proptest::collection::vec("[a-z0-9_.-]{0,12}", 0..8),
                               last in "(internal|arpa|flycast|com)") {
        let view = view();
        let asking = Asking::at(&view, "10.209.0.17".parse().unwrap());
        let mut labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        labels.push(&last);
        for kind in [Kind::Address, Kind::Text, Kind::Pointer, Kind::Other] {
            let said = format!("{:?}", answer(&view, asking.as_ref(), &labels, kind));
            proptest::prop_assert!(!said.contains("theirs") && !said.contains("walled"));
        }
    }
}
