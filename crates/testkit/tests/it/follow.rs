//! `perch logs`, while a program writes.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use perch_testkit::{Cloud, Terminal, wait_for};

const TICKS: &str = "i=0; while :; do i=$((i+1)); echo \"tick $i;\"; sleep 0.1; done";
/// How long a line may take from the program to the reader, on a busy machine.
const LATE: Duration = Duration::from_secs(10);

/// A CLI that follows, and the numbers of the lines that it printed.
struct Follower {
    child: Child,
    ticks: Receiver<u64>,
}

impl Follower {
    fn start(cloud: &Cloud, arguments: &[&str]) -> Self {
        let mut child = cloud
            .perch()
            .args(["logs", "--app", "box", "--follow"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, ticks) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let number =
                    line.split("tick ").nth(1).and_then(|it| it.trim_end_matches(';').parse().ok());
                if number.is_some_and(|number| sender.send(number).is_err()) {
                    return;
                }
            }
        });
        Self { child, ticks }
    }

    /// Takes lines until so many more have come, none twice and none left out; returns the last.
    fn takes(&self, last: Option<u64>, count: u64) -> Option<u64> {
        (0..count).fold(last, |last, _| {
            let tick = self.ticks.recv_timeout(LATE).unwrap();
            assert!(last.is_none_or(|last| tick == last + 1), "{tick} after {last:?}");
            Some(tick)
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_log_that_is_followed_survives_the_death_of_what_serves_it() {
    let test = "a_log_that_is_followed_survives_the_death_of_what_serves_it";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let Some(id) = cloud.shell(test, "box", TICKS).unwrap() else { return };
    let followers = [Follower::start(&cloud, &[]), Follower::start(&cloud, &["--machine", &id])];
    let mut last = followers.each_ref().map(|follower| follower.takes(None, 10));
    for role in ["host", "front"] {
        cloud.kill_role(role).unwrap();
        for (follower, last) in followers.iter().zip(&mut last) {
            *last = follower.takes(*last, 40);
        }
    }
    cloud.finish().unwrap();
}

#[test]
fn following_ends_when_nobody_wants_it_any_more() {
    let test = "following_ends_when_nobody_wants_it_any_more";
    let Some(cloud) = Cloud::start(test).unwrap() else { return };
    let Some(id) = cloud.shell(test, "box", TICKS).unwrap() else { return };
    // At a terminal following is the default, lines appear as they are written, Ctrl-C ends it.
    let mut command = cloud.perch();
    command.args(["logs", "--app", "box"]);
    let mut terminal = Terminal::start(&command, (24, 200)).unwrap();
    terminal.sees("tick 5;").unwrap();
    terminal.sees("tick 25;").unwrap();
    terminal.keys("\u{3}").unwrap();
    assert_eq!(terminal.ends().unwrap(), None, "the signal ends it");
    assert!(terminal.is_as_before().unwrap());

    // A reader that has had enough, as `| head -1`.
    for arguments in [&["--follow"][..], &["--follow", "--machine", &id]] {
        let mut command = cloud.perch();
        command.args(["logs", "--app", "box"]).args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let begun = Instant::now();
        let ended = wait_for("the command to end", LATE, || child.try_wait().ok().flatten());
        child.kill().ok();
        assert!(ended.unwrap().success(), "{arguments:?} after {:?}", begun.elapsed());
    }

    // A machine that is gone has nothing more to say.
    let mut follower = Follower::start(&cloud, &["--machine", &id]);
    follower.takes(None, 5);
    let path = format!("/v1/apps/box/machines/{id}?force=true");
    cloud.must("DELETE", &path, &serde_json::Value::Null).unwrap();
    let ended =
        wait_for("the command to end", 2 * LATE, || follower.child.try_wait().ok().flatten());
    assert!(ended.unwrap().success());
    cloud.finish().unwrap();
}
