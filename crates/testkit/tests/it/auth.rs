//! Logging in from outside: TLS under the server's own authority, known by its fingerprint.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use perch_testkit::{Cloud, Options, Terminal};
use serde_json::json;

fn tls() -> Options {
    let arguments = ["--api-tls", "127.0.0.1:0"].map(str::to_owned).to_vec();
    Options { arguments, ..Options::default() }
}

/// A CLI that knows nothing but what it stores itself.
fn stranger(cloud: &Cloud, home: &Path) -> Command {
    let mut perch = cloud.perch();
    perch.env_remove("PERCH_API_URL").env_remove("PERCH_API_TOKEN").env("PERCH_CONFIG_DIR", home);
    perch
}

fn run(command: &mut Command, input: &str) -> (Option<i32>, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input may be gone already.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn only_the_server_with_the_fingerprint_gets_the_token() {
    let test = "only_the_server_with_the_fingerprint_gets_the_token";
    let Some(cloud) = Cloud::start_with(test, tls()).unwrap() else { return };
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("config.toml");
    let login = |url: &str, token: &str| {
        run(stranger(&cloud, home.path()).args(["auth", "login", url]), &format!("{token}\n"))
    };
    let (url, fingerprint) = cloud.outside.split_once('#').unwrap();

    let (code, text) = login(url, &cloud.token);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("has no fingerprint"), "{text}");
    let other = fingerprint.chars().map(|c| if c == '0' { '1' } else { '0' }).collect::<String>();
    let (code, text) = login(&format!("{url}#{other}"), &cloud.token);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("identity") && text.contains("fingerprint"), "{text}");
    let (code, text) = login(&cloud.outside, "perch_not_a_token");
    assert_eq!(code, Some(1), "{text}");
    assert!(!file.exists(), "nothing is stored that the server did not accept");

    let (code, text) = login(&cloud.outside, &cloud.token);
    assert_eq!(code, Some(0), "{text}\n{}", cloud.server_log());
    assert!(!text.contains(&cloud.token), "{text}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);

    // From now on the pin stands: the same server needs no fingerprint, another one still does.
    let (code, text) = login(url, &cloud.token);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = login("https://localhost:1", &cloud.token);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("has no fingerprint"), "{text}");
    assert!(std::fs::read_to_string(&file).unwrap().contains(fingerprint));
    cloud.finish().unwrap();
}

#[test]
fn what_was_logged_in_works_over_tls_until_it_is_logged_out() {
    let test = "what_was_logged_in_works_over_tls_until_it_is_logged_out";
    let Some(cloud) = Cloud::start_with(test, tls()).unwrap() else { return };
    let image = cloud.app("web", &["--print", "over tls", "--listen", "0.0.0.0:8080"]).unwrap();
    let id = cloud.machine("web", &json!({"image": image}), "started").unwrap();
    let home = tempfile::tempdir().unwrap();

    // Ctrl-C at the question leaves a terminal that shows what is typed.
    let mut asked = stranger(&cloud, home.path());
    asked.args(["auth", "login", &cloud.outside]);
    let mut terminal = Terminal::start(&asked, (24, 200)).unwrap();
    terminal.sees("Token: ").unwrap();
    terminal.keys("secret\u{3}").unwrap();
    assert_eq!(terminal.ends().unwrap(), Some(1));
    assert!(terminal.is_as_before().unwrap());
    assert!(!terminal.shown().contains("secret"), "{}", terminal.shown());

    let mut terminal = Terminal::start(&asked, (24, 200)).unwrap();
    terminal.sees("Token: ").unwrap();
    terminal.keys(&format!("{}\r", cloud.token)).unwrap();
    assert_eq!(terminal.ends().unwrap(), Some(0), "{}", terminal.shown());
    assert!(terminal.is_as_before().unwrap());
    assert!(!terminal.shown().contains(&cloud.token), "{}", terminal.shown());

    let known = |arguments: &[&str]| run(stranger(&cloud, home.path()).args(arguments), "");
    let (url, _) = cloud.outside.split_once('#').unwrap();
    for (arguments, words, wanted) in [
        (&["auth", "whoami"][..], url, 0),
        (&["apps", "list"], "web", 0),
        (&["logs", "--app", "web", "--no-tail"], "over tls", 0),
        (
            &[
                "machine",
                "exec",
                "-i",
                "--app",
                "web",
                &id,
                "--",
                "/perch-testserver",
                "--exit",
                "7",
            ],
            "",
            7,
        ),
    ] {
        let (code, text) = known(arguments);
        assert_eq!(code, Some(wanted), "{arguments:?}: {text}");
        assert!(text.contains(words), "{words} in\n{text}");
    }
    let (code, text) = known(&["auth", "logout"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(!home.path().join("config.toml").exists());
    let (code, text) = known(&["auth", "logout"]);
    assert!(code == Some(0) && text.contains("no login"), "{text}");
    cloud.finish().unwrap();
}
