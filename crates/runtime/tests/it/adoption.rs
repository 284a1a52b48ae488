//! C4: machines outlive the agent; nothing outlives a killed monitor but what `clean` removes.

use std::time::{Duration, Instant};

use perch_runtime::protocol::{Answer, CLIENTS_MAX, FRAME_BYTES_MAX, Request};
use perch_runtime::{Adopted, ExitReason, Instance, Runtime as _, frame};
use tokio::net::UnixStream;

use crate::machine::{LIMIT, Machine, exec, wait};

async fn adopt(machine: &Machine) -> Box<dyn Instance> {
    match machine.runtime.adopt(&machine.spec.dir).await.unwrap() {
        Adopted::Running(instance) => instance,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn c4_a_running_machine_is_adopted_by_the_next_agent() {
    let Some(machine) = Machine::new("adoption") else {
        return;
    };
    let instance = machine.boot("echo up; sleep 1000").await;
    let info = instance.info().clone();
    drop(instance);
    let instance = adopt(&machine).await;
    assert_eq!(*instance.info(), info);
    assert_eq!(exec(&*instance, "echo still here").await.stdout, b"still here\n");
    instance.network_namespace().unwrap();
    instance.stop(15, 0).await.unwrap();
    let status = wait(&*instance).await;
    assert!(status.requested_stop);
    match machine.runtime.adopt(&machine.spec.dir).await.unwrap() {
        Adopted::Ended(found) => assert_eq!(found, status),
        other => panic!("{other:?}"),
    }
    // Waiting again after the monitor is gone reads the disk.
    assert_eq!(wait(&*instance).await, status);
}

/// systemd kills what is left in the agent's cgroup when it stops or restarts the agent.
#[tokio::test]
async fn c4_a_monitor_leaves_the_agents_cgroup() {
    let Some(machine) = Machine::new("the monitor's cgroup") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    let monitor = instance.info().monitor.pid;
    let deadline = Instant::now() + LIMIT;
    loop {
        let text = std::fs::read_to_string(format!("/proc/{monitor}/cgroup")).unwrap();
        let inside = text.lines().filter(|line| line.ends_with(":/perch-test/monitors")).count();
        // One line in all with version 2, one a hierarchy with version 1.
        if inside >= if text.lines().count() == 1 { 1 } else { 4 } {
            break;
        }
        assert!(Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    instance.stop(15, 0).await.unwrap();
    wait(&*instance).await;
}

#[tokio::test]
async fn c4_a_wait_that_was_dropped_may_come_again_and_several_may_wait() {
    let Some(machine) = Machine::new("wait") else {
        return;
    };
    let instance = machine.boot("sleep 0.3; exit 5").await;
    tokio::time::timeout(Duration::from_millis(20), instance.wait()).await.unwrap_err();
    let other = adopt(&machine).await;
    let (one, two) = tokio::join!(wait(&*instance), wait(&*other));
    assert_eq!((one.code, one), (5, two));
}

/// Does what an agent does that waits for a machine's end and is killed meanwhile; `false` when
/// the monitor had no place for it.
async fn waits_and_dies(machine: &Machine) -> bool {
    let mut stream = UnixStream::connect(machine.spec.dir.socket()).await.unwrap();
    let hello = frame::receive::<Answer, _>(&mut stream, FRAME_BYTES_MAX).await;
    // A place that is free is given up again only when the monitor has read this.
    hello.is_ok() && frame::send(&mut stream, &Request::Wait, FRAME_BYTES_MAX).await.is_ok()
}

#[tokio::test]
async fn c4_agents_that_died_while_they_waited_keep_no_place_at_the_monitor() {
    let Some(machine) = Machine::new("dead agents") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    for dead in 0..=2 * CLIENTS_MAX {
        let deadline = Instant::now() + LIMIT;
        // The monitor hears of the last one's death a moment later.
        while !waits_and_dies(&machine).await {
            assert!(Instant::now() < deadline, "no place after {dead} dead agents");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let deadline = Instant::now() + LIMIT;
    while instance.stats().await.is_err() {
        assert!(Instant::now() < deadline, "no answer after dead agents");
    }
    let other = adopt(&machine).await;
    let (status, asked) = tokio::join!(wait(&*instance), async {
        assert_eq!(exec(&*other, "echo still here").await.stdout, b"still here\n");
        other.kill().await
    });
    asked.unwrap();
    assert_eq!(status.reason, ExitReason::Killed);
    machine.assert_clean();
}

#[tokio::test]
async fn c4_a_killed_monitor_takes_its_machine_along_and_the_next_boot_works() {
    let Some(mut machine) = Machine::new("killed monitor") else {
        return;
    };
    let instance = machine.boot("echo up; sleep 1000").await;
    machine.wait_for_output("up").await;
    let monitor = instance.info().monitor.open().unwrap();
    perch_runtime::process::kill(&monitor).unwrap();
    let status = wait(&*instance).await;
    assert_eq!(status.reason, ExitReason::MonitorLost);
    let deadline = Instant::now() + LIMIT;
    while instance.info().init.runs() {
        assert!(Instant::now() < deadline, "init outlives its monitor");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    match machine.runtime.adopt(&machine.spec.dir).await.unwrap() {
        Adopted::Gone => {}
        other => panic!("{other:?}"),
    }
    machine.runtime.clean(&machine.spec.dir).await.unwrap();
    machine.runtime.clean(&machine.spec.dir).await.unwrap();
    machine.spec.boot = 2;
    assert_eq!(machine.run("echo again").await.1, "up\nagain\n");
    machine.assert_clean();
}

#[tokio::test]
async fn clean_ends_a_machine_that_runs() {
    let Some(machine) = Machine::new("clean") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    machine.runtime.clean(&machine.spec.dir).await.unwrap();
    assert!(!instance.info().init.runs());
    let deadline = Instant::now() + LIMIT;
    while machine.image_in_use() {
        assert!(Instant::now() < deadline, "the image is still attached");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    machine.assert_clean();
}

#[tokio::test]
async fn a_boot_that_cannot_be_made_says_why_and_leaves_nothing() {
    let Some(mut machine) = Machine::new("failed boot") else {
        return;
    };
    let upper = std::mem::replace(&mut machine.spec.upper, "/no/such/image".into());
    let error = machine.runtime.create(&machine.spec).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/image"), "{error}");
    machine.spec.upper = upper;
    machine.assert_clean();
    assert_eq!(machine.run("echo fine").await.1, "fine\n");
}

#[tokio::test]
async fn a_program_is_started_once() {
    let Some(machine) = Machine::new("once") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    instance.start(crate::machine::shell("true")).await.unwrap_err();
    instance.kill().await.unwrap();
    assert_eq!(wait(&*instance).await.reason, ExitReason::Killed);
    machine.assert_clean();
}

#[tokio::test]
async fn a_machine_that_was_never_started_can_be_killed() {
    let Some(machine) = Machine::new("not started") else {
        return;
    };
    let instance = machine.runtime.create(&machine.spec).await.unwrap();
    instance.stop(15, 10_000).await.unwrap();
    let status = wait(&*instance).await;
    assert_eq!((status.code, status.started_unix_ms), (137, 0));
    machine.assert_clean();
}

/// An agent that gives a boot up right after it asked for it: by the time it begins the next one,
/// nothing of the first may come any more, whatever it was doing.
#[tokio::test]
async fn a_boot_that_was_given_up_never_meets_the_next_one() {
    let Some(machine) = Machine::new("given up") else {
        return;
    };
    for round in 0..24_u64 {
        let moment = Duration::from_micros(round * round * 150);
        let given_up = tokio::time::timeout(moment, machine.runtime.create(&machine.spec)).await;
        drop(given_up);
        machine.runtime.clean(&machine.spec.dir).await.unwrap();
        let instance = machine.boot("echo up; sleep 1000").await;
        let output = exec(&*instance, "echo here").await;
        assert_eq!(output.stdout, b"here\n", "round {round}, given up after {moment:?}");
        instance.kill().await.unwrap();
        wait(&*instance).await;
    }
    machine.runtime.clean(&machine.spec.dir).await.unwrap();
    machine.assert_clean();
}
