//! The help of every command.
//!
//! Never a platform.

use crate::run::Perch;

#[test]
fn help_of_every_command() {
    let perch = Perch::new();
    for command in [
        "",
        "launch",
        "deploy",
        "build",
        "status",
        "logs",
        "apps",
        "apps list",
        "apps create",
        "apps destroy",
        "machine",
        "machine list",
        "machine run",
        "machine status",
        "machine start",
        "machine stop",
        "machine suspend",
        "machine restart",
        "machine destroy",
        "machine ps",
        "machine memory",
        "machine exec",
        "machine cordon",
        "machine uncordon",
        "machine wait",
        "machine metadata",
        "machine metadata list",
        "machine metadata set",
        "machine metadata unset",
        "machine lease",
        "machine lease view",
        "machine lease clear",
        "machine versions",
        "ips",
        "ips list",
        "ips allocate-v4",
        "ips allocate-v6",
        "ips release",
        "certs",
        "certs add",
        "certs list",
        "certs show",
        "certs check",
        "certs remove",
        "certs import",
        "secrets",
        "secrets list",
        "secrets set",
        "secrets import",
        "secrets unset",
        "secrets deploy",
        "secrets keys",
        "secrets keys list",
        "secrets keys generate",
        "secrets keys import",
        "secrets keys delete",
        "images",
        "images list",
        "images bootstrap",
        "system",
        "system df",
        "system prune",
        "open",
        "doctor",
        "auth",
        "auth login",
        "auth whoami",
        "auth token",
        "tokens",
        "tokens create",
        "tokens list",
        "tokens revoke",
        "explain",
        "version",
    ] {
        let name = format!("help_{}", command.replace(' ', "_"));
        insta::assert_snapshot!(name, perch.run(&format!("{command} --help")).good());
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let perch = Perch::new();
    for line in ["", "fly", "machine", "machine start", "machine start nonsense", "logs -f -n"] {
        assert_eq!(perch.run(line).code, 2, "{line}");
    }
}

#[test]
fn explain_lists_and_explains() {
    let perch = Perch::new();
    let edge = perch_types::edge_code::EDGE_CODES.len();
    assert_eq!(perch.run("explain").good().lines().count(), perch_types::Code::ALL.len() + edge);
    assert!(perch.run("explain pc01").good().starts_with("PC01 (HTTP 502)\n\n"));
    insta::assert_snapshot!(perch.run("explain image_unknown").good());
    let wrong = perch.run("explain nonsense");
    assert_eq!(wrong.code, 2);
    assert_eq!(
        wrong.stderr,
        "error: `nonsense` is no error code\nhint: `perch explain` lists them\n"
    );
}
