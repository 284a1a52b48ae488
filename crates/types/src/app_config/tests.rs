use super::*;

fn config(json: Value) -> AppConfig {
    serde_json::from_value(json).unwrap()
}

fn machine(config: &AppConfig, group: &str) -> Value {
    serde_json::to_value(config.to_machine_config(group, "web:1").unwrap()).unwrap()
}

#[test]
fn an_http_service_becomes_the_ports_80_and_443() {
    let config = config(serde_json::json!({
        "app": "web", "primary_region": "ams", "kill_signal": "SIGTERM", "kill_timeout": 30,
        "env": {"PORT": 8080, "DEBUG": false},
        "http_service": {"internal_port": "8080", "force_https": true,
            "auto_stop_machines": true, "min_machines_running": 0,
            "checks": [{"interval": "10s", "timeout": 2000, "path": "/up",
                "headers": {"X-Forwarded-Proto": "https"}}],
            "tls_options": {"alpn": ["h2"]}},
        "vm": [{"size": "shared-cpu-2x", "memory": "1gb"}],
        "restart": {"policy": "never"},
    }));
    assert_eq!(
        machine(&config, "app"),
        serde_json::json!({
            "image": "web:1",
            "env": {"PORT": "8080", "DEBUG": "false", "FLY_PROCESS_GROUP": "app",
                "PRIMARY_REGION": "ams"},
            "init": {},
            "guest": {"cpu_kind": "shared", "cpus": 2, "memory_mb": 1024},
            "metadata": {"fly_platform_version": "v2", "fly_process_group": "app"},
            "services": [{"protocol": "tcp", "internal_port": 8080, "autostop": "stop",
                "min_machines_running": 0,
                "ports": [
                    {"port": 80, "handlers": ["http"], "force_https": true},
                    {"port": 443, "handlers": ["http", "tls"], "tls_options": {"alpn": ["h2"]}},
                ],
                "checks": [{"type": "http", "interval": "10s", "timeout": "2s", "path": "/up",
                    "headers": [{"name": "X-Forwarded-Proto", "values": ["https"]}]}]}],
            "restart": {"policy": "no"},
            "stop_config": {"timeout": "30s", "signal": "SIGTERM"},
        })
    );
}

#[test]
fn groups_get_their_own_command_services_and_size() {
    let config = config(serde_json::json!({
        "processes": {"web": "serve --name 'a b'", "worker": ""},
        "services": {"internal_port": 80, "processes": ["web"],
            "ports": {"port": "80", "handlers": ["http"]}, "concurrency": "20,25",
            "tcp_checks": [{"interval": 15000}]},
        "vm": [{"memory_mb": 256}, {"cpus": 4, "processes": ["worker"]}],
    }));
    assert_eq!(config.groups(), ["web", "worker"]);
    assert_eq!(config.default_group(), "web");
    let web = machine(&config, "web");
    assert_eq!(web["init"], serde_json::json!({"cmd": ["serve", "--name", "a b"]}));
    assert_eq!(
        web["services"][0]["concurrency"],
        serde_json::json!({"type": "requests", "soft_limit": 20, "hard_limit": 25})
    );
    assert_eq!(web["services"][0]["checks"][0]["interval"], "15s");
    assert_eq!(web["guest"], serde_json::json!({"memory_mb": 256}));
    let worker = machine(&config, "worker");
    assert_eq!(worker.get("services"), None);
    assert_eq!(worker["guest"], serde_json::json!({"cpus": 4}));
    assert_eq!(worker["init"], serde_json::json!({}));
}

#[test]
fn without_a_vm_section_the_machine_keeps_its_size() {
    assert_eq!(machine(&AppConfig::default(), "app").get("guest"), None);
}

#[test]
fn older_spellings_are_read() {
    let config = config(serde_json::json!({
        "env": [{"A": "1"}, {"B": 2.5}],
        "processes": [{"name": "app", "command": "run"}],
        "checks": [{"name": "up", "type": "tcp", "port": 80, "interval": "2s"}],
        "build": {"build_target": "prod", "args": {"N": 1}},
        "experimental": {"kill_signal": "SIGQUIT", "kill_timeout": "7s", "cmd": "a 'b c'"},
        "compute": {"memory": 512},
    }));
    assert_eq!(config.env["B"], "2.5");
    assert_eq!(config.processes["app"], "run");
    assert_eq!(config.checks["up"].port, Some(80));
    assert_eq!(config.build.as_ref().unwrap().target.as_deref(), Some("prod"));
    assert_eq!(config.build.as_ref().unwrap().args["N"], "1");
    assert_eq!(config.stop_signal(), Some(Signal::SigQuit));
    assert_eq!(config.stop_timeout(), Some(GoDuration::from_secs(7)));
    assert_eq!(config.experimental.as_ref().unwrap().cmd, ["a", "b c"]);
    assert_eq!(config.vm[0].memory, Some(512));
}

#[test]
fn contradictions_name_both_sides() {
    let error = |json| config(json).to_machine_config("app", "i").unwrap_err().to_string();
    let errors = [
        error(serde_json::json!({"http_service": {"internal_port": 1, "processes": ["x"]}})),
        error(serde_json::json!({"processes": {"app": "a"}, "http_service": {"internal_port": 1}})),
        error(serde_json::json!({"processes": {"app": "a 'b"}})),
        error(serde_json::json!({"vm": {"size": "shared-cpu-3x"}})),
        error(serde_json::json!({"checks": {"up": {"type": "tcp"}}})),
        error(serde_json::json!({"checks": {"up": {"type": "tcp", "interval": "1s"}}})),
        error(serde_json::json!({"checks": {"up": {"type": "tcp", "timeout": "61s"}}})),
        error(serde_json::json!({"kill_timeout": "6m"})),
    ];
    insta::assert_snapshot!(errors.join("\n"), @r#"
    `http_service` names the process group `x`, which `[processes]` does not have
    `http_service` needs `processes = ["..."]`, because the file has `[processes]`
    split the command of the process group `app`
    `shared-cpu-3x` is not a machine size such as `shared-cpu-1x` or `performance-2x`
    `checks.up` needs a `port`
    `interval` of `checks.up` must be at least 2s
    `timeout` of `checks.up` must be at most 60s
    `kill_timeout` of `the file` must be at most 300s
    "#);
}

#[test]
fn what_is_not_honoured_is_told_by_name() {
    let config = config(serde_json::json!({
        "files": [{"guest_path": "/a"}], "swap_size_mb": 512,
        "statics": {"guest_path": "/a", "url_prefix": "/", "tigris_bucket": "b"},
        "metrics": {"port": 1}, "prmary_region": "ams",
        "build": {"builder": "x", "dockerfile": "https://example.com/Dockerfile"},
        "deploy": {"release_command": "migrate", "strategy": "bluegreen"},
        "http_service": {"internal_port": 80, "http_options": {"compress": true}},
        "vm": {"gpu_kind": "l40s", "persist_rootfs": "always"}, "experimental": {"auto_rollback": true},
    }));
    let lines: Vec<String> = config
        .unsupported()
        .iter()
        .map(|it| format!("{:?} {}: {}", it.severity, it.key, it.note))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    Refuse build.builder: write a Dockerfile; buildpacks are not offered
    Refuse build.dockerfile: a Dockerfile must be a file of the source folder
    Refuse deploy.release_command: run it in the program's start for now
    Refuse vm.gpu_kind: no host has a GPU
    Refuse statics.tigris_bucket: only files of the image are served
    Warn metrics: metrics are not collected yet
    Warn prmary_region: no such key is known; a typing error?
    Warn experimental.auto_rollback: a failed deploy always puts the old version back
    Warn deploy.strategy: machines are replaced one after another instead (`rolling`)
    ");
}

#[test]
fn a_typing_error_in_what_is_asked_of_the_edge_is_told_by_its_place() {
    let options = serde_json::json!({"compress": true, "idle_timout": 5,
        "response": {"header": {"x-a": "1"}},
        "replay_cache": [{"path_prefix": "/", "name": "s", "ttl": 60}],
        "sticky": {"type": "cookie", "name": "s", "path": "/"}});
    let check = serde_json::json!({"path": "/up", "grace": "5s", "restart_limit": 3});
    let limits = serde_json::json!({"type": "requests", "hardlimit": 3});
    let port = serde_json::json!({"port": 443, "handlers": ["tls", "http"], "force_http": true,
        "http_options": {"h2backend": true}, "tls_options": {"alpn": ["h2"]}});
    let config = config(serde_json::json!({
        "http_service": {"internal_port": 80, "http_options": options, "checks": [check],
            "concurrency": limits},
        "services": [{"internal_port": 81, "ports": [port], "concurrency": {"soft": 1},
            "tcp_checks": [{"every": "5s"}], "http_checks": [{"url": "/"}]}],
        "checks": {"up": {"type": "tcp", "port": 1, "pause": "5s"}},
    }));
    let mut told: Vec<String> = config.unsupported().into_iter().map(|it| it.key).collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            "checks.pause",
            "http_service.checks.grace",
            "http_service.checks.restart_limit",
            "http_service.concurrency.hardlimit",
            "http_service.http_options.idle_timout",
            "http_service.http_options.replay_cache.ttl",
            "http_service.http_options.response.header",
            "http_service.http_options.sticky.path",
            "services.concurrency.soft",
            "services.http_checks.url",
            "services.ports.force_http",
            "services.ports.http_options.h2backend",
            "services.tcp_checks.every",
        ]
    );
}

#[test]
fn what_a_file_asks_of_the_edge_is_what_its_machines_are_made_with() {
    let options = serde_json::json!({"compress": true, "h2_backend": true, "idle_timeout": 30,
        "headers_read_timeout": 5,
        "response": {"headers": {"server": false, "x-a": ["1", "2"]}, "pristine": true},
        "replay_cache": [{"path_prefix": "/a", "ttl_seconds": 60, "type": "header", "name": "x-s",
            "allow_bypass": true}],
        "sticky": {"type": "cookie", "name": "s"}});
    let limits = serde_json::json!({"type": "requests", "soft_limit": 2, "hard_limit": 3});
    let tls = serde_json::json!({"versions": ["TLSv1.3"], "default_self_signed": true});
    let ports = serde_json::json!([
        {"port": 8443, "handlers": ["tls", "http"], "http_options": options, "tls_options": tls},
        {"port": 5432, "handlers": ["pg_tls"]},
        {"start_port": 7000, "end_port": 7002, "handlers": ["proxy_proto"],
            "proxy_proto_options": {"version": "v2"}},
    ]);
    let statics = serde_json::json!([{"guest_path": "/app/public", "url_prefix": "/static",
        "index_document": "index.html"}]);
    let config = config(serde_json::json!({
        "http_service": {"internal_port": 80, "auto_start_machines": false, "concurrency": limits,
            "http_options": options, "tls_options": tls},
        "services": [{"internal_port": 81, "ports": ports, "concurrency": limits,
            "auto_stop_machines": "suspend", "min_machines_running": 1}],
        "statics": statics,
    }));
    assert_eq!(config.unsupported(), []);
    let made = machine(&config, "app");
    let (web, other) = (&made["services"][0], &made["services"][1]);
    for port in web["ports"].as_array().unwrap() {
        assert_eq!(port["http_options"], options, "{port}");
    }
    assert_eq!(web["ports"][1]["tls_options"], tls);
    assert_eq!((&web["concurrency"], &other["concurrency"]), (&limits, &limits));
    assert_eq!(web["autostart"], false);
    assert_eq!(other["autostop"], "suspend");
    assert_eq!(other["min_machines_running"], 1);
    assert_eq!(other["ports"], ports);
    assert_eq!(made["statics"], statics);
}

#[test]
fn nothing_is_told_of_what_a_service_asks_for_and_gets() {
    for autostop in ["off", "stop", "suspend"] {
        let ports = serde_json::json!([
            {"port": 80, "handlers": ["http"], "force_https": true},
            {"port": 443, "handlers": ["tls", "http"]}]);
        let asked = serde_json::json!({
            "http_service": {"internal_port": 80, "auto_stop_machines": autostop,
                "auto_start_machines": true, "min_machines_running": 1, "force_https": true},
            "services": [{"internal_port": 80, "protocol": "tcp", "auto_stop_machines": autostop,
                "min_machines_running": 2, "ports": ports}]});
        let told = config(asked).unsupported();
        assert!(told.is_empty(), "{autostop}: {told:?}");
    }
}

#[test]
fn words_are_split_as_a_shell_does() {
    for (line, words) in [
        ("", vec![]),
        ("  a  b ", vec!["a", "b"]),
        (r#"a "b c" 'd "e"' f\ g"#, vec!["a", "b c", "d \"e\"", "f g"]),
        (r#""" ''"#, vec!["", ""]),
        (r#""a\"b\n""#, vec![r#"a"b\n"#]),
    ] {
        assert_eq!(split_words(line).unwrap(), words, "{line}");
    }
    for bad in ["'a", "\"a", "a\\"] {
        assert_eq!(split_words(bad), Err(UnclosedQuote), "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_words_or_an_error(line: String) {
        if let Ok(words) = split_words(&line) {
            proptest::prop_assert!(words.len() <= line.len());
        }
    }
}
