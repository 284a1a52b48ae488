//! The table of what is refused, and that everything else comes back as it was sent.

use proptest::prelude::*;
use serde_json::{Value, json};

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
    insta::assert_snapshot!(text(json!({"stop_config": {"timeout": "6m"}})), @"config.stop_config.timeout: 6m0s is longer than 5m0s");
    insta::assert_snapshot!(text(json!({"stop_config": {"signal": "SIGSEGV"}})), @"config.stop_config.signal: allowed are SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2, SIGTERM");
    insta::assert_snapshot!(text(json!({"env": {"A=B": "c"}})), @"config.env: `A=B` is not a name of a variable");
    insta::assert_snapshot!(text(json!({"env": {"A": "x".repeat(50_000)}})), @"config.env: 50001 bytes are more than 49152");
    insta::assert_snapshot!(text(json!({"init": {"cmd": vec!["x"; 257]}})), @"config.init.cmd: 257 words are more than 256");
    insta::assert_snapshot!(text(json!({"rootfs": {"size_gb": 101}})), @"config.rootfs.size_gb: 101 is not 1 to 100");
    insta::assert_snapshot!(text(json!({"restart": {"max_retries": 1001}})), @"config.restart.max_retries: 1001 is not 0 to 1000");
    insta::assert_snapshot!(text(json!({"services": [{"internal_port": 0}]})), @"config.services[0].internal_port: 0 is not 1 to 65535");
    insta::assert_snapshot!(text(json!({"services": vec![json!({"internal_port": 1}); 17]})), @"config.services: 17 are more than 16");
    insta::assert_snapshot!(text(json!({"services": [{"internal_port": 1, "concurrency": {"soft_limit": 9, "hard_limit": 8}}]})), @"config.services[0].concurrency.soft_limit: 9 is more than hard_limit 8");
    insta::assert_snapshot!(text(json!({"services": [{"internal_port": 1, "checks": [{"type": "http", "timeout": "61s"}]}]})), @"config.services[0].checks[0].timeout: 1m1s is longer than 1m0s");
    insta::assert_snapshot!(text(json!({"checks": {"disk": {"port": 80}}})), @"config.checks.disk.type: is missing; allowed are http, tcp");
    insta::assert_snapshot!(text(json!({"checks": {"disk": {"type": "tcp"}}})), @"config.checks.disk.port: is not 1 to 65535");
    insta::assert_snapshot!(text(json!({"metadata": {"note": "x".repeat(4000)}})), @"config: services, metadata and image together are 828 bytes over what a record of a machine can hold (4096 bytes)");
    insta::assert_snapshot!(text(json!({"later": "x".repeat(61_500)})), @"config: 61627 bytes of JSON are more than 61440");
    assert!(text(json!({"image": "UPPER CASE"})).starts_with("config.image: "));
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
        text(json!({"statics": [{"guest_path": "/a"}], "schedule": "hourly"})),
        @"config.statics, config.schedule: are not supported by this server yet"
    );
    insta::assert_snapshot!(text(json!({"services": [{"internal_port": 53, "protocol": "udp"}]})), @"config.services[0].protocol udp: is not supported by this server yet");
    insta::assert_snapshot!(text(json!({"services": [{"internal_port": 1, "ports": [{"port": 5432}]}]})), @"config.services[0].ports[0].handlers other than http and tls with http: is not supported by this server yet");
    for (more, path) in [
        (json!({"init": {"swap_size_mb": 64}}), "config.init.swap_size_mb"),
        (json!({"guest": {"gpus": 1}}), "config.guest.gpus"),
        (json!({"guest": {"persist_rootfs": "always"}}), "config.guest.persist_rootfs"),
        (json!({"dns": {"nameservers": ["1.1.1.1"]}}), "config.dns.nameservers"),
        (
            json!({"services": [{"internal_port": 1, "force_instance_key": "a"}]}),
            "config.services[0].force_instance_key",
        ),
        (
            json!({"services": [{"internal_port": 1, "autostop": "suspend"}]}),
            "config.services[0].autostop suspend",
        ),
        (
            json!({"checks": {"c": {"type": "http", "port": 1, "tls_skip_verify": true}}}),
            "config.checks.c.tls_skip_verify",
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
