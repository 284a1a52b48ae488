//! `perch machine exec`, at a real terminal and without one.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use perch_testkit::{Cloud, Terminal, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// What the shell of the image prints before it reads a line.
const PROMPT: &str = "/ # ";
/// How often a race is run between the end of a program and what is typed.
const QUICK_SESSIONS: usize = 10;
const SLEEPS: &str = "while :; do sleep 1; done";

fn session(cloud: &Cloud, id: &str, size: (u16, u16)) -> Terminal {
    let mut command = cloud.perch();
    command.args(["machine", "exec", "--app", "box", id]);
    let terminal = Terminal::start(&command, size).unwrap();
    terminal.sees(PROMPT).unwrap();
    assert!(terminal.is_raw().unwrap());
    terminal
}

#[test]
fn a_shell_at_a_terminal_is_that_of_the_machine() {
    let test = "a_shell_at_a_terminal_is_that_of_the_machine";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let Some(id) = cloud.shell(test, "box", SLEEPS).unwrap() else { return };
    let mut terminal = session(&cloud, &id, (33, 101));
    terminal.keys("stty size\r").unwrap();
    terminal.sees("33 101").unwrap();
    terminal.resize((44, 122)).unwrap();
    let until =
        "until [ \"$(stty size)\" = \"44 122\" ]; do sleep 0.1; done; echo \"now=$(stty size)\"\r";
    terminal.keys(until).unwrap();
    terminal.sees("now=44 122").unwrap();

    // Ctrl-C ends the program there, and neither the shell nor the CLI.
    terminal.keys("echo sleeps; sleep 1000; echo \"code=$?\"\r").unwrap();
    terminal.sees("\nsleeps").unwrap();
    terminal.keys("\u{3}").unwrap();
    terminal.keys("echo \"again=$?\"\r").unwrap();
    terminal.sees("again=130").unwrap();

    terminal.keys("exit 42\r").unwrap();
    assert_eq!(terminal.ends().unwrap(), Some(42));
    assert!(terminal.is_as_before().unwrap());

    // A program that is named, and ends while something is typed that it does not read.
    for _ in 0..QUICK_SESSIONS {
        let mut command = cloud.perch();
        command.args(["machine", "exec", "--app", "box", &id, "--", "sh", "-c", "tty; exit 7"]);
        let mut terminal = Terminal::start(&command, (24, 80)).unwrap();
        terminal.keys("typed ahead\r").unwrap();
        assert_eq!(terminal.ends().unwrap(), Some(7), "{}", terminal.shown());
        assert!(terminal.shown().contains("/dev/pts/"), "{}", terminal.shown());
    }
    // One that is not there.
    let mut command = cloud.perch();
    command.args(["machine", "exec", "--app", "box", &id, "nowhere"]);
    let mut terminal = Terminal::start(&command, (24, 80)).unwrap();
    assert_eq!(terminal.ends().unwrap(), Some(1));
    assert!(terminal.shown().contains("there is no program `nowhere`"), "{}", terminal.shown());
    assert!(terminal.is_as_before().unwrap());
    cloud.finish().unwrap();
}

#[test]
fn a_session_that_is_cut_off_says_why_and_gives_the_terminal_back() {
    let test = "a_session_that_is_cut_off_says_why_and_gives_the_terminal_back";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let Some(id) = cloud.shell(test, "box", SLEEPS).unwrap() else { return };
    let restored = |mut terminal: Terminal, code: i32, words: &str| {
        assert_eq!(terminal.ends().unwrap(), Some(code), "{}", terminal.shown());
        assert!(terminal.is_as_before().unwrap(), "{words}");
        assert!(terminal.shown().contains(words), "{words} in\n{}", terminal.shown());
    };

    let mut terminal = session(&cloud, &id, (24, 200));
    terminal.keys("echo sleeps; sleep 4321\r").unwrap();
    terminal.sees("\nsleeps").unwrap();
    // In the middle of a line it is text like any other.
    terminal.keys("x~.\r~.").unwrap();
    restored(terminal, 1, "hung up");

    let terminal = session(&cloud, &id, (24, 200));
    terminal.signal(Signal::TERM).unwrap();
    restored(terminal, 143, PROMPT);

    let terminal = session(&cloud, &id, (24, 200));
    cloud.kill_role("host").unwrap();
    restored(terminal, 1, "ended before the program did");

    // What ran at the other end of these is told, and ends.
    let path = format!("/v1/apps/box/machines/{id}");
    wait_for("the programs to end", Duration::from_secs(20), || {
        let body = json!({"command": ["sh", "-c", "ps | grep -c '[s]leep 4321'"]});
        let answer = cloud.must("POST", &format!("{path}/exec"), &body).ok()?;
        (answer["stdout"] == "0\n").then_some(())
    })
    .unwrap();

    let terminal = session(&cloud, &id, (24, 200));
    cloud.must("POST", &format!("{path}/stop"), &json!({"timeout": "1s"})).unwrap();
    restored(terminal, 137, "its programs ended");
    cloud.finish().unwrap();
}

/// Bytes that are sent: with what comes back for each, more than any buffer on the way holds.
const SENT_BYTES: usize = 2 << 20;

#[test]
fn a_program_that_says_more_than_it_is_told_is_not_held_up() {
    let test = "a_program_that_says_more_than_it_is_told_is_not_held_up";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let Some(id) = cloud.shell(test, "box", SLEEPS).unwrap() else { return };
    let mut child = command_with_pipes(cloud.perch().args([
        "machine",
        "exec",
        "--interactive",
        "--app",
        "box",
        &id,
        "--",
        "sed",
        "s/a/aaaaaaaaaaaaaaaa/g",
    ]));
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let line = [&[b'a'; 63][..], b"\n"].concat();
        for _ in 0..SENT_BYTES / line.len() {
            stdin.write_all(&line).unwrap();
        }
    });
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let ended =
        wait_for("the program to end", Duration::from_secs(60), || child.try_wait().ok().flatten());
    child.kill().ok();
    let status = ended.unwrap();
    assert!(status.success(), "{status}");
    writer.join().unwrap();
    let lines = SENT_BYTES / 64;
    assert_eq!(reader.join().unwrap().unwrap(), (lines * (63 * 16 + 1)) as u64);
    cloud.finish().unwrap();
}

fn command_with_pipes(command: &mut Command) -> std::process::Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}
