//! What is refused of `config.containers` and `config.volumes`.

use super::*;

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn containers_are_refused_by_path_and_with_what_is_allowed() {
    let with = |mut first: Value, more: Value| {
        let mut web = json!({"name": "web", "image": "web:1"});
        web.as_object_mut().unwrap().append(first.as_object_mut().unwrap());
        let mut whole = json!({"image": "", "containers": [web, {"name": "db", "image": "db:1"}]});
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        whole
    };
    let web = |first| with(first, json!({}));
    let volumes = |volumes: Value| with(json!({}), json!({"volumes": volumes}));
    let health = |check: Value| {
        let mut whole = json!({"name": "up", "tcp": {"port": 1}});
        whole.as_object_mut().unwrap().extend(check.as_object().unwrap().clone());
        web(json!({"healthchecks": [whole]}))
    };
    let scratch = json!([{"name": "scratch", "temp_dir": {}}]);
    let mount = |path: &str| {
        with(json!({"mounts": [{"name": "scratch", "path": path}]}), json!({"volumes": scratch}))
    };
    for (more, want) in [
        (
            json!({"volumes": scratch}),
            "config.volumes: is for containers only; use config.containers",
        ),
        (
            with(json!({}), json!({"init": {"cmd": ["a"]}})),
            "config.init.cmd: cannot be set beside config.containers; each container has its own",
        ),
        (
            with(json!({}), json!({"processes": [{}]})),
            "config.processes: cannot be set beside config.containers; each container has its own",
        ),
        (
            json!({"containers": vec![json!({"name": "a", "image": "a"}); 17]}),
            "config.containers: 17 are more than 16",
        ),
        (
            json!({"containers": [{"name": "a b", "image": "a"}]}),
            "config.containers[0].name: is not 1 to 63 letters, digits, dashes and underscores",
        ),
        (
            json!({"containers": [{"image": "a"}]}),
            "config.containers[0].name: is not 1 to 63 letters, digits, dashes and underscores",
        ),
        (web(json!({"name": "db"})), "config.containers[1].name: `db` is there twice"),
        (json!({"containers": [{"name": "a"}]}), "config.containers[0].image: is missing"),
        (web(json!({"cmd": ["a\u{0}"]})), "config.containers[0].cmd: has a zero byte"),
        (
            web(json!({"env": {"": "1"}})),
            "config.containers[0].env: `` is not a name of a variable",
        ),
        (
            web(json!({"restart": {"max_retries": 1001}})),
            "config.containers[0].restart.max_retries: 1001 is not 0 to 1000",
        ),
        (
            web(json!({"stop": {"timeout": "6m"}})),
            "config.containers[0].stop.timeout: 6m0s is longer than 5m0s",
        ),
        (
            web(json!({"stop": {"signal": "SIGSEGV"}})),
            "config.containers[0].stop.signal: allowed are SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2, SIGTERM",
        ),
        (
            web(json!({"depends_on": [{"name": "no"}]})),
            "config.containers[0].depends_on[0].name: there is no container `no`; allowed are web, db",
        ),
        (
            web(json!({"depends_on": [{"name": "web"}]})),
            "config.containers[0].depends_on: these wait for each other: web",
        ),
        (
            web(json!({"depends_on": [{"name": "db", "condition": "healthy"}]})),
            "config.containers[0].depends_on[0].condition: container `db` has no healthchecks",
        ),
        (
            json!({"containers": [{"name": "a", "image": "a"}, {"name": "b", "image": "b", "depends_on": [{"name": "c"}]}, {"name": "c", "image": "c", "depends_on": [{"name": "b"}]}]}),
            "config.containers[1].depends_on: these wait for each other: b, c",
        ),
        (
            web(json!({"mounts": [{"name": "no", "path": "/a"}]})),
            "config.containers[0].mounts[0].name: there is no volume `no`; allowed are none",
        ),
        (
            mount("a"),
            "config.containers[0].mounts[0].path: `a` is not an absolute path of at most 255 bytes",
        ),
        (
            mount("/"),
            "config.containers[0].mounts[0].path: `/` is not a folder of the machine's own; ",
        ),
        (
            mount("/a/../b"),
            "config.containers[0].mounts[0].path: `/a/../b` is not a path without `.` and `..`",
        ),
        (
            mount("//proc/x"),
            "config.containers[0].mounts[0].path: `//proc/x` is not a folder of the machine's own; ",
        ),
        (
            with(
                json!({"mounts": [{"name": "scratch", "path": "/a"}, {"name": "scratch", "path": "//a/"}]}),
                json!({"volumes": scratch}),
            ),
            "config.containers[0].mounts[1].path: `//a/` is mounted twice",
        ),
        (
            with(
                json!({"mounts": [{"name": "scratch", "path": "/data"}]}),
                json!({"volumes": scratch, "mounts": [{"volume": "vol_0123456789abcdea", "path": "/data"}]}),
            ),
            "config.containers[0].mounts[0].path: `/data` is mounted twice",
        ),
        (
            volumes(json!([{"name": "a"}])),
            "config.volumes[0]: exactly one of temp_dir and image is needed",
        ),
        (volumes(json!([{"name": "a", "image": "B C"}])), "config.volumes[0].image: "),
        (
            volumes(json!([{"name": "a", "temp_dir": {"size_mb": 1}}])),
            "config.volumes[0].temp_dir.size_mb: 1 is not 4 to 102400",
        ),
        (
            volumes(json!([{"name": "a", "temp_dir": {"storage_type": "memory", "size_mb": 300}}])),
            "config.volumes[0].temp_dir.size_mb: 300 is not 1 to 256",
        ),
        (
            health(json!({"exec": {"command": ["a"]}})),
            "config.containers[0].healthchecks[0]: exactly one of http, tcp and exec is needed",
        ),
        (
            health(json!({"tcp": {"port": 0}})),
            "config.containers[0].healthchecks[0].tcp.port: is not 1 to 65535",
        ),
        (
            health(json!({"tcp": null, "exec": {"command": []}})),
            "config.containers[0].healthchecks[0].exec.command: names no program",
        ),
        (
            health(json!({"tcp": null, "http": {"port": 1, "method": "TRACE"}})),
            "config.containers[0].healthchecks[0].http.method: allowed are GET, HEAD, POST, PUT, OPTIONS",
        ),
        (
            health(json!({"timeout": 61})),
            "config.containers[0].healthchecks[0].timeout: 61 is not 0 to 60",
        ),
        (
            health(json!({"failure_threshold": 101})),
            "config.containers[0].healthchecks[0].failure_threshold: 101 is not 0 to 100",
        ),
        (
            health(json!({"name": ""})),
            "config.containers[0].healthchecks[0].name: is not 1 to 63 letters, digits, dashes, dots and underscores",
        ),
    ] {
        let (code, text) = refusal(&more);
        assert_eq!(code, Code::InvalidValue, "{text}");
        assert!(text.starts_with(want), "{text} instead of {want}");
    }
    let good = with(
        json!({"depends_on": [{"name": "db"}], "mounts": [{"name": "scratch", "path": "/tmp/x"}],
            "healthchecks": [{"name": "up", "exec": {"command": ["true"]}}]}),
        json!({"volumes": scratch}),
    );
    admit(config(good)).unwrap();
}
