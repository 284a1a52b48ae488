//! The table of what is refused, and that everything else comes back as it was sent.

use proptest::prelude::*;
use serde_json::{Value, json};

mod containers;
mod ports;

use super::admit;
use perch_types::{Code, MachineConfig};

fn config(more: Value) -> MachineConfig {
    let mut whole = json!({"image": "web:1"});
    let (Value::Object(whole_fields), Value::Object(more)) = (&mut whole, more) else {
        panic!("an object is needed");
    };
    whole_fields.extend(more);
    serde_json::from_value(whole).unwrap()
}

fn refusal(more: &Value) -> (Code, String) {
    let failure = admit(config(more.clone())).expect_err(&more.to_string());
    (failure.error().code, failure.error().error.clone())
}

#[test]
fn values_are_refused_by_path_and_with_what_is_allowed() {
    let text = |more| {
        let (code, text) = refusal(&more);
        assert_eq!(code, Code::InvalidValue, "{text}");
        text
    };
    insta::assert_snapshot!(text(json!({"image": ""})), @"config.image: is missing");
    insta::assert_snapshot!(text(json!({"guest": {"memory_mb": 100}})), @"config.guest.memory_mb: 100 is not 256 to 2048 in steps of 256, as 1 shared CPUs allow");
    insta::assert_snapshot!(text(json!({"guest": {"memory_mb": 300}})), @"config.guest.memory_mb: 300 is not 256 to 2048 in steps of 256, as 1 shared CPUs allow");
    insta::assert_snapshot!(text(json!({"guest": {"cpus": 3}})), @"config.guest.cpus: 3 is not one of 1, 2, 4, 6, 8, as shared CPUs allow");
    insta::assert_snapshot!(text(json!({"guest": {"cpus": 2, "memory_mb": 256}})), @"config.guest.memory_mb: 256 is not 512 to 4096 in steps of 256, as 2 shared CPUs allow");
    insta::assert_snapshot!(text(json!({"guest": {"cpu_kind": "performance", "memory_mb": 1024}})), @"config.guest.memory_mb: 1024 is not 2048 to 8192 in steps of 1024, as 1 performance CPUs allow");
    insta::assert_snapshot!(text(json!({"guest": {"memory_mb": 512, "max_memory_mb": 256}})), @"config.guest.max_memory_mb: 256 is not 512 to 2048, the memory that it begins with to what 1 shared CPUs allow");
    insta::assert_snapshot!(text(json!({"guest": {"memory_mb": 512, "max_memory_mb": 4096}})), @"config.guest.max_memory_mb: 4096 is not 512 to 2048, the memory that it begins with to what 1 shared CPUs allow");
}

#[test]
fn further_values_are_refused_by_path_and_with_what_is_allowed() {
    let text = |more| {
        let (code, text) = refusal(&more);
        assert_eq!(code, Code::InvalidValue, "{text}");
        text
    };
    insta::assert_snapshot!(text(json!({"stop_config": {"timeout": "6m"}})), @"config.stop_config.timeout: 6m0s is longer than 5m0s");
    insta::assert_snapshot!(text(json!({"stop_config": {"signal": "SIGSEGV"}})), @"config.stop_config.signal: allowed are SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2, SIGTERM");
    insta::assert_snapshot!(text(json!({"env": {"A=B": "c"}})), @"config.env: `A=B` is not a name of a variable");
    insta::assert_snapshot!(text(json!({"env": {"A": "x".repeat(50_000)}})), @"config.env: 50001 bytes are more than 49152");
    insta::assert_snapshot!(text(json!({"init": {"cmd": vec!["x"; 257]}})), @"config.init.cmd: 257 words are more than 256");
    insta::assert_snapshot!(text(json!({"rootfs": {"size_gb": 101}})), @"config.rootfs.size_gb: 101 is not 1 to 100");
    insta::assert_snapshot!(text(json!({"restart": {"max_retries": 1001}})), @"config.restart.max_retries: 1001 is not 0 to 1000");
    insta::assert_snapshot!(text(json!({"standbys": ["web"]})), @"config.standbys[0]: `web` is not a machine's id");
    insta::assert_snapshot!(text(json!({"standbys": vec!["00000000000001"; 9]})), @"config.standbys: 9 are more than 8");
    insta::assert_snapshot!(text(json!({"standbys": ["00000000000001"], "schedule": "daily"})), @"config.standbys: a machine with a schedule cannot be a standby");
    insta::assert_snapshot!(text(json!({"services": [{"internal_port": 0}]})), @"config.services[0].internal_port: 0 is not 1 to 65535");
    insta::assert_snapshot!(text(json!({"services": vec![json!({"internal_port": 1}); 17]})), @"config.services: 17 are more than 16");
    insta::assert_snapshot!(text(json!({"services": [{"internal_port": 1, "concurrency": {"soft_limit": 9, "hard_limit": 8}}]})), @"config.services[0].concurrency.soft_limit: 9 is more than hard_limit 8");
    insta::assert_snapshot!(text(json!({"services": [{"internal_port": 1, "checks": [{"type": "http", "timeout": "61s"}]}]})), @"config.services[0].checks[0].timeout: 1m1s is longer than 1m0s");
    insta::assert_snapshot!(text(json!({"checks": {"disk": {"port": 80}}})), @"config.checks.disk.type: is missing; allowed are http, tcp");
    insta::assert_snapshot!(text(json!({"checks": {"disk": {"type": "tcp"}}})), @"config.checks.disk.port: is not 1 to 65535");
    insta::assert_snapshot!(text(json!({"metadata": {"note": "x".repeat(4000)}})), @"config: services, statics, metadata and image together are 831 bytes over what a record of a machine can hold (4096 bytes)");
    insta::assert_snapshot!(text(json!({"later": "x".repeat(61_500)})), @"config: 61627 bytes of JSON are more than 61440");
    assert!(text(json!({"image": "UPPER CASE"})).starts_with("config.image: "));
}

#[test]
fn ports_and_limits_of_services_are_refused_by_path_and_with_what_is_allowed() {
    let one = |more: Value| {
        let mut service = json!({"internal_port": 8080});
        service.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"services": [{"internal_port": 1}, service]})
    };
    let port = |port: Value| json!({"port": port, "handlers": ["http"]});
    let ports = |ports: Vec<Value>| one(json!({ "ports": ports }));
    let limits = |limits: Value| one(json!({ "concurrency": limits }));
    for (more, want) in [
        (
            ports(vec![port(json!(80)), port(json!(0))]),
            "config.services[1].ports[1].port: is not 1 to 65535",
        ),
        (ports(vec![port(json!(null))]), "config.services[1].ports[0].port: is not 1 to 65535"),
        (ports(vec![port(json!(80)); 17]), "config.services[1].ports: 17 are more than 16"),
        (
            ports(vec![json!({"port": 443, "handlers": ["http", "tls"],
                "tls_options": {"versions": ["TLSv1.1"]}})]),
            "config.services[1].ports[0].tls_options.versions[0]: is not `TLSv1.2` or `TLSv1.3`",
        ),
        (
            limits(json!({"hard_limit": 0})),
            "config.services[1].concurrency.hard_limit: 0 would let nothing through",
        ),
        (
            limits(json!({"soft_limit": 0, "hard_limit": 0})),
            "config.services[1].concurrency.hard_limit: 0 would let nothing through",
        ),
        (
            limits(json!({"soft_limit": 2, "hard_limit": 1})),
            "config.services[1].concurrency.soft_limit: 2 is more than hard_limit 1",
        ),
        (
            ports(vec![json!({"port": 443, "handlers": ["tls"], "force_https": true})]),
            "config.services[1].ports[0].force_https: is only for ports with the handler http",
        ),
    ] {
        assert_eq!(refusal(&more), (Code::InvalidValue, want.to_owned()), "{more}");
    }
    let most = (65_520..=65_535).map(|number| port(json!(number))).collect();
    admit(config(ports(most))).unwrap();
    admit(config(limits(json!({"soft_limit": 1, "hard_limit": 1})))).unwrap();
}

#[test]
fn checks_are_refused_by_path_and_with_what_is_allowed() {
    let top = |more: Value| {
        let mut check = json!({"type": "http", "port": 80});
        check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"checks": {"c": check}})
    };
    let service = |check: Value| json!({"services": [{"internal_port": 1, "checks": [check]}]});
    let header =
        |name: &str, value: &str| top(json!({"headers": [{"name": name, "values": [value]}]}));
    let on_service = "config.services[0].checks[0]";
    for (more, want) in [
        (top(json!({"type": null})), "config.checks.c.type: is missing; allowed are http, tcp"),
        (top(json!({"port": 0})), "config.checks.c.port: is not 1 to 65535"),
        (top(json!({"interval": "1s"})), "config.checks.c.interval: 1s is shorter than 2s"),
        (top(json!({"timeout": "61s"})), "config.checks.c.timeout: 1m1s is longer than 1m0s"),
        (
            top(json!({"method": "TRACE"})),
            "config.checks.c.method: allowed are GET, HEAD, POST, PUT, OPTIONS",
        ),
        (
            top(json!({"path": "up"})),
            "config.checks.c.path: is not a path that begins with `/`, of at most 1024 printable bytes",
        ),
        (
            top(json!({"path": "/a b"})),
            "config.checks.c.path: is not a path that begins with `/`, of at most 1024 printable bytes",
        ),
        (
            top(json!({"tls_server_name": "a b"})),
            "config.checks.c.tls_server_name: is not a host name",
        ),
        (header("X A", "1"), "config.checks.c.headers[0].name: is not a name of a header"),
        (
            header("Content-Length", "1"),
            "config.checks.c.headers[0].name: `Content-Length` cannot be set",
        ),
        (
            header("X-A", "1\r\nX-B: 2"),
            "config.checks.c.headers[0].values[0]: is not a value of at most 256 printable bytes",
        ),
        (
            top(json!({"headers": vec![json!({"name": "a"}); 17]})),
            "config.checks.c.headers: 17 are more than 16",
        ),
        (
            json!({"checks": {"": {"type": "tcp", "port": 1}}}),
            "config.checks.: is not a name of 1 to 80 bytes",
        ),
        (
            service(json!({"type": "tcp", "port": 0})),
            &format!("{on_service}.port: 0 is not 1 to 65535"),
        ),
        (
            service(json!({"type": "tcp", "kind": "informational"})),
            &format!("{on_service}.kind: allowed is readiness, as for every check of a service"),
        ),
        (
            json!({"services": [{"internal_port": 1, "checks": vec![json!({"type": "tcp"}); 33]}]}),
            "config.checks: all checks together are more than 32",
        ),
    ] {
        assert_eq!(refusal(&more), (Code::InvalidValue, want.to_owned()), "{more}");
    }
    let whole = json!({"type": "http", "port": 443, "kind": "readiness", "protocol": "https",
        "interval": "2s", "timeout": "1m0s", "grace_period": "1m0s", "method": "HEAD", "path": "/up",
        "tls_skip_verify": true, "tls_server_name": "web.example",
        "headers": [{"name": "X-A", "values": ["1", "2"]}]});
    let admitted = admit(config(json!({"checks": {"c": whole}}))).unwrap();
    assert_eq!(serde_json::to_value(&admitted.checks["c"]).unwrap(), whole);
    // A service's own interval is raised, not refused.
    admit(config(service(json!({"type": "http", "interval": "10ms"})))).unwrap();
}

#[test]
fn processes_are_refused_by_path_and_with_what_is_allowed() {
    let one = |more: Value| json!({"processes": [{}, more]});
    for (more, want) in [
        (json!({"processes": vec![json!({}); 9]}), "config.processes: 9 are more than 8"),
        (
            json!({"processes": [{}], "init": {"tty": true}}),
            "config.init.tty: several processes have no terminal; allowed is false",
        ),
        (
            one(json!({"cmd": vec!["x"; 257]})),
            "config.processes[1].cmd: 257 words are more than 256",
        ),
        (one(json!({"exec": ["a\u{0}"]})), "config.processes[1].exec: has a zero byte"),
        (
            one(json!({"env": {"A=B": "c"}})),
            "config.processes[1].env: `A=B` is not a name of a variable",
        ),
        (one(json!({"user": "a\nb"})), "config.processes[1].user: is not a name or `uid:gid`"),
        (
            one(json!({"secrets": [{"name": "A"}]})),
            "config.processes[1].secrets[0].env_var: is not a name of letters, digits and underscores",
        ),
        (
            one(json!({"env_from": [{"env_var": "1A", "field_ref": "id"}]})),
            "config.processes[1].env_from[0].env_var: is not a name of letters, digits and underscores",
        ),
    ] {
        assert_eq!(refusal(&more), (Code::InvalidValue, want.to_owned()), "{more}");
    }
    admit(config(one(json!({"cmd": ["worker"], "secrets": [{"env_var": "A", "name": "B"}]}))))
        .unwrap();
}

#[test]
fn files_are_refused_by_path_and_with_what_is_allowed() {
    let text = |files: Value| {
        let (code, text) = refusal(&json!({"files": files}));
        assert_eq!(code, Code::InvalidValue, "{text}");
        text
    };
    let at = |path: &str| json!([{"guest_path": path, "raw_value": ""}]);
    insta::assert_snapshot!(text(at("")), @"config.files[0].guest_path: is missing");
    insta::assert_snapshot!(text(at("etc/a")), @"config.files[0].guest_path: `etc/a` is not absolute");
    for bad in ["/", "/a/../b", "/a/./b", "/a//b", "/a/", "/a\0b", &format!("/{}", "x".repeat(256))]
    {
        assert!(text(at(bad)).contains("is not a file's path"), "{bad}");
    }
    insta::assert_snapshot!(text(at(&format!("/{}", "a/".repeat(600)))), @"config.files[0].guest_path: 1201 bytes are more than 1024");
    insta::assert_snapshot!(text(at("/proc/self/comm")), @"config.files[0].guest_path: `/proc/self/comm` is below /proc, where no file can be written");
    for first in ["sys", "dev", ".fly", ".perch"] {
        assert!(text(at(&format!("/{first}/a"))).contains("where no file can be written"));
    }
    insta::assert_snapshot!(text(json!([{"guest_path": "/a"}])), @"config.files[0]: exactly one of raw_value, secret_name and image_config is needed");
    insta::assert_snapshot!(text(json!([{"guest_path": "/a", "raw_value": "", "image_config": "a"}])), @"config.files[0]: exactly one of raw_value, secret_name and image_config is needed");
    insta::assert_snapshot!(text(json!([{"guest_path": "/a", "raw_value": "%"}])), @"config.files[0].raw_value: is not base64: Invalid symbol 37, offset 0.");
    assert!(
        text(json!([{"guest_path": "/a", "image_config": "UPPER CASE"}]))
            .starts_with("config.files[0].image_config: ")
    );
    insta::assert_snapshot!(text(json!([{"guest_path": "/a", "raw_value": "", "mode": 4096}])), @"config.files[0].mode: 4096 is not 0 to 4095 (octal 7777)");
    insta::assert_snapshot!(text(json!([{"guest_path": "/a", "raw_value": ""}, {"guest_path": "/a", "raw_value": ""}])), @"config.files[1].guest_path: `/a` is in the list twice");
    insta::assert_snapshot!(text(json!(vec![json!({}); 33])), @"config.files: 33 are more than 32");
    insta::assert_snapshot!(text(json!([{"guest_path": "/a", "raw_value": "A".repeat(54_616)}])), @"config.files: 40962 bytes of `raw_value`s together are more than 40960");
    insta::assert_snapshot!(text(json!([{"guest_path": "/a", "secret_name": "a b"}])), @"config.files[0].secret_name: `a b` is not 1 to 255 letters, digits and underscores");
    let good = json!({"files": [
        {"guest_path": "/etc/app/a.conf", "raw_value": "YQ==", "mode": 0o600},
        {"guest_path": "/b", "image_config": "web:1"},
        {"guest_path": "/c", "secret_name": "KEY"},
    ]});
    let admitted = admit(config(good.clone())).unwrap();
    assert_eq!(serde_json::to_value(&admitted).unwrap()["files"], good["files"]);
}

#[test]
fn statics_are_refused_by_path_and_with_what_is_allowed() {
    let text = |statics: Value| {
        let (code, text) = refusal(&json!({"statics": statics}));
        assert_eq!(code, Code::InvalidValue, "{text}");
        text
    };
    let one = |path: &str, prefix: &str| json!([{"guest_path": path, "url_prefix": prefix}]);
    insta::assert_snapshot!(text(one("", "/a")), @"config.statics[0].guest_path: is missing");
    insta::assert_snapshot!(text(one("/a", "")), @"config.statics[0].url_prefix: is missing");
    insta::assert_snapshot!(text(one("a", "/a")), @"config.statics[0].guest_path: `a` is not / and parts without `.` and `..`, at most 255 bytes");
    for bad in ["a", "/a/../b", "/./a", "//a", "/a//", "/a?b", "/a#", "/a%20", "/a\n"] {
        assert!(text(one("/a", bad)).starts_with("config.statics[0].url_prefix: "), "{bad}");
    }
    insta::assert_snapshot!(text(json!([
        {"guest_path": "/a", "url_prefix": "/s"}, {"guest_path": "/b", "url_prefix": "/s/"},
    ])), @"config.statics[1].url_prefix: `/s/` is in the list twice");
    insta::assert_snapshot!(text(json!([{"guest_path": "/a", "url_prefix": "/s", "index_document": "a/b"}])), @"config.statics[0].index_document: `a/b` is not the name of a file");
    insta::assert_snapshot!(text(json!(vec![json!({}); 11])), @"config.statics: 11 are more than 10");
    let bucket = json!([{"guest_path": "/a", "url_prefix": "/s", "tigris_bucket": "b"}]);
    let (code, text) = refusal(&json!({"statics": bucket}));
    assert_eq!(
        (code, text.starts_with("config.statics[0].tigris_bucket: ")),
        (Code::UnsupportedKey, true)
    );
    let good =
        json!([{"guest_path": "/app/public/", "url_prefix": "/", "index_document": "index.html"}]);
    let admitted = admit(config(json!({"statics": good}))).unwrap();
    assert_eq!(serde_json::to_value(&admitted).unwrap()["statics"], good);
}

#[test]
fn sizes_are_refused_by_path_and_with_what_is_allowed() {
    let text = |more| {
        let (code, text) = refusal(&more);
        assert_eq!(code, Code::InvalidValue, "{text}");
        text
    };
    insta::assert_snapshot!(text(json!({"size": "a10"})), @"config.size: `a10` is not shared-cpu-Nx with N of 1, 2, 4, 6, 8, or performance-Nx with N of 1, 2, 4, 6, 8, 10, 12, 14, 16");
    insta::assert_snapshot!(text(json!({"size": 7})), @"config.size: is not a text");
    insta::assert_snapshot!(text(json!({"init": {"swap_size_mb": 65_537}})), @"config.init.swap_size_mb: 65537 is not 0 to 65536");
    for bad in [json!("sometimes"), json!(4), json!(-1), json!(true), json!([])] {
        let said = text(json!({"guest": {"persist_rootfs": bad}}));
        assert_eq!(
            said,
            "config.guest.persist_rootfs: allowed are never, restart, always, none and their numbers 1, 2, 3, 0"
        );
    }
    insta::assert_snapshot!(text(json!({"guest": {"host_dedication_id": 7}})), @"config.guest.host_dedication_id: is not the id of a host");
    insta::assert_snapshot!(text(json!({"disable_machine_autostart": "yes"})), @"config.disable_machine_autostart: allowed are true, false");
}

#[test]
fn every_size_of_the_contract_is_taken_and_its_neighbours_are_not() {
    for (kind, cpus, (min, max, step)) in [
        ("shared", [1, 2, 4, 6, 8].as_slice(), (256, 2048, 256)),
        ("performance", &[1, 2, 4, 6, 8, 10, 12, 14, 16], (2048, 8192, 1024)),
    ] {
        for count in 0..=20_u32 {
            let guest = |memory_mb: u32| {
                let guest = json!({"cpu_kind": kind, "cpus": count, "memory_mb": memory_mb});
                admit(config(json!({"guest": guest})))
            };
            if !cpus.contains(&count) {
                assert!(guest(count * min).is_err(), "{kind} {count}");
                continue;
            }
            for memory_mb in (count * min..=count * max).step_by(step) {
                assert!(guest(memory_mb).is_ok(), "{kind} {count} {memory_mb}");
            }
            for memory_mb in [0, count * min - 1, count * min + 1, count * max + 256] {
                assert!(guest(memory_mb).is_err(), "{kind} {count} {memory_mb}");
            }
        }
    }
}

#[test]
fn older_ways_to_say_it_are_carried_out() {
    let admitted = admit(config(json!({"size": "performance-2x"}))).unwrap();
    assert_eq!(
        serde_json::to_value(&admitted).unwrap()["guest"],
        json!({"cpu_kind": "performance", "cpus": 2, "memory_mb": 4096})
    );
    assert!(!admitted.other.contains_key("size"));
    let guest = json!({"cpus": 2, "memory_mb": 512});
    let both = admit(config(json!({"size": "performance-2x", "guest": guest}))).unwrap();
    assert_eq!(both.memory_mb(), 512, "what `guest` says counts");
    let asleep = admit(config(json!({
        "disable_machine_autostart": true,
        "services": [{"internal_port": 1, "autostart": true}],
    })))
    .unwrap();
    assert!(!asleep.services[0].starts_on_request());
    for persist in [json!("restart"), json!(3), json!("none"), json!("")] {
        let sent = json!({"guest": {"persist_rootfs": persist}});
        let admitted = admit(config(sent)).unwrap();
        assert_eq!(admitted.guest.unwrap().other["persist_rootfs"], persist);
    }
}

#[test]
fn names_are_refused_by_path_and_with_what_is_allowed() {
    let text = |dns: Value| {
        let (code, text) = refusal(&json!({"dns": dns}));
        assert_eq!(code, Code::InvalidValue, "{text}");
        text
    };
    insta::assert_snapshot!(text(json!({"nameservers": ["one.one"]})), @"config.dns.nameservers[0]: `one.one` is not an IP address");
    insta::assert_snapshot!(text(json!({"nameservers": vec!["::1"; 4]})), @"config.dns.nameservers: 4 are more than 3");
    insta::assert_snapshot!(text(json!({"searches": ["a b"]})), @"config.dns.searches[0]: `a b` is not labels of letters, digits and dashes with dots between");
    insta::assert_snapshot!(text(json!({"searches": vec!["a"; 17]})), @"config.dns.searches: 17 are more than 16");
    insta::assert_snapshot!(text(json!({"options": [{"value": "2"}]})), @"config.dns.options[0].name: is missing");
    insta::assert_snapshot!(text(json!({"options": [{"name": "n\nserver"}]})), @r"
    config.dns.options[0].name: `n
    server` is not at most 32 letters, digits and dashes
    ");
    insta::assert_snapshot!(text(json!({"options": vec![json!({"name": "rotate"}); 17]})), @"config.dns.options: 17 are more than 16");
    for bad in ["a..b", "-a", "a-", ".", "ä", "a/b", &"x".repeat(64)] {
        for key in ["hostname", "hostname_fqdn"] {
            assert!(text(json!({key: bad})).starts_with(&format!("config.dns.{key}: ")), "{bad}");
        }
    }
    let long = ["x".repeat(40), "y".repeat(40)].join(".");
    insta::assert_snapshot!(text(json!({"hostname": long})), @"config.dns.hostname: 81 bytes are more than 63");
    let good = json!({"dns": {
        "hostname": "db", "hostname_fqdn": "db.example.com.", "nameservers": ["9.9.9.9", "fdaa::3"],
        "searches": ["web.internal"], "options": [{"name": "ndots", "value": "2"}],
    }});
    let admitted = admit(config(good.clone())).unwrap();
    assert_eq!(serde_json::to_value(&admitted).unwrap()["dns"], good["dns"]);
}

#[test]
fn mounts_are_refused_by_path_and_with_what_is_allowed() {
    let text = |mount: Value| {
        let mut whole = json!({"volume": "vol_0123456789abcdef", "path": "/data"});
        let (Value::Object(fields), Value::Object(more)) = (&mut whole, mount) else {
            panic!("an object is needed");
        };
        fields.extend(more);
        let (code, text) = refusal(&json!({"mounts": [whole]}));
        assert_eq!(code, Code::InvalidValue, "{text}");
        text
    };
    insta::assert_snapshot!(text(json!({"path": "data"})), @"config.mounts[0].path: `data` is not an absolute path of at most 255 bytes");
    insta::assert_snapshot!(text(json!({"path": "/a/../b"})), @"config.mounts[0].path: `/a/../b` is not a path without `.` and `..`");
    for own in ["/", "//", "/proc", "/proc/1", "/sys/", "/dev/shm", "/.fly/x"] {
        let text = text(json!({"path": own}));
        assert!(text.starts_with("config.mounts[0].path: "), "{own}: {text}");
    }
    insta::assert_snapshot!(text(json!({"volume": ""})), @"config.mounts[0].volume: is missing; a volume's id, or its name in `name`");
    insta::assert_snapshot!(text(json!({"volume": "vol_1"})), @"config.mounts[0].volume: `vol_1` is not a volume id: `vol_` and 16 lowercase letters and digits");
    insta::assert_snapshot!(text(json!({"volume": "", "name": "My Data"})), @"config.mounts[0].name: `My Data` is not 1 to 30 lowercase letters, digits and underscores");
    insta::assert_snapshot!(text(json!({"size_gb": 99_999})), @"config.mounts[0].size_gb: 99999 is not 1 to 16384");
    insta::assert_snapshot!(text(json!({"extend_threshold_percent": 100})), @"config.mounts[0].extend_threshold_percent: 100 is not 1 to 99");
    insta::assert_snapshot!(text(json!({"extend_threshold_percent": 80})), @"config.mounts[0]: extend_threshold_percent, add_size_gb and size_gb_limit come together");
    let mounts = |mounts: Value| refusal(&json!({"mounts": mounts})).1;
    let volume = |last: char, path: &str| json!({"volume": format!("vol_0123456789abcde{last}"), "path": path});
    insta::assert_snapshot!(mounts(json!([volume('a', "/d"), volume('b', "/d/")])), @"config.mounts[1].path: `/d/` is mounted twice");
    insta::assert_snapshot!(mounts(json!([volume('a', "/d"), volume('a', "/e")])), @"config.mounts[1].volume: vol_0123456789abcdea is mounted twice");
    insta::assert_snapshot!(mounts(json!(vec![volume('a', "/d"); 9])), @"config.mounts: 9 are more than 8");
}

#[test]
fn keys_that_cannot_be_honoured_are_refused_by_name_unless_they_ask_for_nothing() {
    let text = |more| {
        let (code, text) = refusal(&more);
        assert_eq!(code, Code::UnsupportedKey, "{text}");
        text
    };
    insta::assert_snapshot!(
        text(json!({"spot": {"max_price_fraction": 0.5}, "metrics": {"port": 1}})),
        @"config.metrics, config.spot: are not supported by this server yet"
    );
    for (more, path) in [
        (json!({"init": {"kernel_args": ["quiet"]}}), "config.init.kernel_args"),
        (json!({"guest": {"kernel_args": ["quiet"]}}), "config.guest.kernel_args"),
        (json!({"guest": {"gpu_kind": "a10"}}), "config.guest.gpu_kind"),
        (json!({"guest": {"gpus": 1}}), "config.guest.gpus"),
        (
            json!({"dns": {"dns_forward_rules": [{"basename": "a", "addr": "192.0.2.1"}]}}),
            "config.dns.dns_forward_rules",
        ),
        (json!({"restart": {"gpu_bid_price": 0.5}}), "config.restart.gpu_bid_price"),
        (
            json!({"containers": [{"name": "a", "image": "a", "restart": {"gpu_bid_price": 0.5}}]}),
            "config.containers[0].restart.gpu_bid_price",
        ),
        (
            json!({"services": [{"internal_port": 1, "force_instance_key": "a"}]}),
            "config.services[0].force_instance_key",
        ),
        (
            json!({"services": [{"internal_port": 1,
                "ports": [{"start_port": 79, "end_port": 81, "handlers": ["http", "tls"]}]}]}),
            "config.services[0].ports[0].handlers tls on port 80",
        ),
        (
            json!({"services": [{"internal_port": 1,
                "ports": [{"port": 443, "handlers": ["edge_http"]}]}]}),
            "config.services[0].ports[0].handlers http without tls on port 443",
        ),
        (
            json!({"services": [{"internal_port": 1,
                "ports": [{"port": 80, "handlers": ["http", "proxy_proto"]}]}]}),
            "config.services[0].ports[0].handlers other than tls with http",
        ),
    ] {
        assert!(text(more).starts_with(path), "{path}");
    }
    for key in super::unsupported::TOP {
        assert!(text(json!({key: "asked"})).starts_with(&format!("config.{key}:")), "{key}");
        for nothing in [json!(null), json!(""), json!([]), json!({}), json!(false), json!(0)] {
            admit(config(json!({key: nothing}))).unwrap();
        }
    }
    admit(config(json!({"guest": {"persist_rootfs": 1, "gpu_kind": ""}}))).unwrap();
    admit(config(json!({"services": [{"internal_port": 1, "force_instance_key": null}]}))).unwrap();
    for autostop in ["off", "stop", "suspend"] {
        let service = json!({"internal_port": 1, "autostop": autostop, "min_machines_running": 1});
        admit(config(json!({"services": [service]}))).unwrap();
    }
}

#[test]
fn what_clients_usually_send_is_taken_with_defaults_and_unknown_keys() {
    let sent = json!({
        "image": "registry.internal/web:deployment-01",
        "init": {},
        "env": {"PORT": "8080"},
        "guest": {"cpu_kind": "shared", "cpus": 2, "memory_mb": 1024},
        "services": [{"protocol": "tcp", "internal_port": 8080, "autostop": true, "autostart": true,
            "min_machines_running": 0, "force_instance_key": null,
            "ports": [{"port": 80, "handlers": ["http"], "force_https": true},
                      {"port": 443, "handlers": ["http", "tls"]}],
            "checks": [{"type": "http", "path": "/up", "interval": "10s", "timeout": "2s"}]}],
        "restart": {"policy": "always"},
        "metadata": {"fly_process_group": "app"},
        "from_the_future": {"deep": [1]},
    });
    let admitted = admit(serde_json::from_value(sent.clone()).unwrap()).unwrap();
    let answered = serde_json::to_value(&admitted).unwrap();
    assert_eq!(answered["from_the_future"], sent["from_the_future"]);
    assert_eq!(answered["guest"], sent["guest"]);
    let plain = admit(config(json!({"rootfs": {"size_gb": 0}}))).unwrap();
    assert_eq!(
        serde_json::to_value(&plain.guest).unwrap(),
        json!({"cpu_kind": "shared", "cpus": 1, "memory_mb": 256})
    );
    assert_eq!(plain.rootfs_size_gb(), 8);
}

#[test]
fn names_of_machines_are_plain() {
    for good in ["a", "web-1", "A_b.c"] {
        super::name(good).unwrap();
    }
    for bad in ["", "a b", "ä", "a/b", "\n", &"x".repeat(64)] {
        assert!(super::name(bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_admitted_is_admitted_again_unchanged(
        cpus in 0_u32..10, memory_mb in 0_u32..5000, port: u16, retries: u32,
    ) {
        let sent = config(json!({
            "guest": {"cpus": cpus, "memory_mb": memory_mb},
            "services": [{"internal_port": port}],
            "restart": {"max_retries": retries},
        }));
        if let Ok(admitted) = admit(sent) {
            prop_assert_eq!(admit(admitted.clone()).unwrap(), admitted);
        }
    }
}
