//! X1: what a machine may use has hard edges, and reaching one hurts only the machine.

use std::time::Duration;

use perch_runtime::cgroup::{Hierarchies, Paths};

use crate::machine::{Machine, exec, wait};

#[tokio::test]
async fn x1_memory_has_a_limit_and_an_oom_kill_is_reported() {
    let Some(machine) = Machine::new("memory") else {
        return;
    };
    let (status, _) = machine.run("exec tail /dev/zero").await;
    assert!(status.oom_killed, "{status:?}");
    assert_eq!((status.code, status.signal), (137, Some(9)));
    machine.assert_clean();
}

#[tokio::test]
async fn x1_processes_have_a_limit() {
    let Some(machine) = Machine::new("processes") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    let script = "for i in $(seq 200); do sleep 100 & done 2>&1; echo made";
    let output = exec(&*instance, script).await;
    assert!(String::from_utf8_lossy(&output.stdout).contains("can't fork"), "{output:?}");
    let stats = instance.stats().await.unwrap();
    assert!(stats.pids <= 64, "{stats:?}");
    assert!(stats.memory_bytes > 0 && stats.memory_max_bytes == 64 << 20, "{stats:?}");
    instance.kill().await.unwrap();
    // What killed it says nothing of it.
    assert!(wait(&*instance).await.forks_refused);
    machine.assert_clean();
}

#[tokio::test]
async fn x1_f6_the_disk_has_a_hard_edge() {
    let Some(machine) = Machine::new("disk") else {
        return;
    };
    let script = "dd if=/dev/zero of=/big bs=1M count=200 2>&1 | grep -o 'No space left on device'; \
         rm /big; sync; echo room > /small && cat /small";
    let (status, output) = machine.run(script).await;
    assert_eq!((status.code, output.as_str()), (0, "No space left on device\nroom\n"));
    let image = std::fs::metadata(&machine.spec.upper).unwrap();
    assert_eq!(image.len(), 64 << 20);
    machine.assert_clean();
}

#[tokio::test]
async fn a_full_disk_and_lost_lines_are_seen_from_outside() {
    let Some(mut machine) = Machine::new("pressure") else {
        return;
    };
    // However slow it is, a program that writes without a pause is above it.
    machine.spec.log.bytes_per_second_max = 64 * 1024;
    let script = "line=$(head -c 4000 /dev/zero | tr '\\0' x); echo up; \
         while [ ! -e /go ]; do sleep 0.02; done; exec yes $line";
    let instance = machine.boot(script).await;
    machine.wait_for_output("up").await;
    let pressure = instance.pressure().await.unwrap();
    assert_eq!((pressure.root_full, pressure.log_dropped), (false, 0), "{pressure:?}");
    exec(&*instance, "dd if=/dev/zero of=/big bs=64k").await;
    assert!(instance.pressure().await.unwrap().root_full);
    exec(&*instance, "rm /big && sync && touch /go").await;
    let seen = async {
        loop {
            let pressure = instance.pressure().await.unwrap();
            if pressure.log_dropped > 0 && !pressure.root_full {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::machine::LIMIT, seen).await.expect("dropped lines are seen");
    instance.kill().await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}

#[tokio::test]
async fn x1_k10_open_files_and_core_files_have_a_limit() {
    let Some(machine) = Machine::new("files") else {
        return;
    };
    let (_, output) = machine.run("ulimit -n; ulimit -Hn; ulimit -c; ulimit -Hc").await;
    assert_eq!(output, "1024\n1024\n0\n0\n");
}

#[tokio::test]
async fn the_memory_limit_changes_while_it_runs_and_never_below_what_is_in_use() {
    let Some(machine) = Machine::new("memory limit") else {
        return;
    };
    // 20 MB that only an end of the program gives back: an array of awk.
    let script = "exec awk 'BEGIN { while (n++ < 200000) a[n] = sprintf(\"%64d\", n); \
                  print \"full\"; fflush(); while ((\"sleep 1000\" | getline) > 0) {} }'";
    let instance = machine.boot(script).await;
    machine.wait_for_output("full").await;
    let before = instance.memory().await.unwrap();
    assert_eq!(before.limit_bytes, 64 << 20);
    assert!(before.used_bytes > 10 << 20 && before.available_bytes() > 0, "{before:?}");
    let refused = instance.set_memory_limit(8 << 20).await.unwrap_err();
    assert!(matches!(refused, perch_runtime::Error::InUse { used_mb } if used_mb > 8), "{refused}");
    assert_eq!(instance.memory().await.unwrap().limit_bytes, 64 << 20);
    for mb in [56_u64, 128] {
        instance.set_memory_limit(mb << 20).await.unwrap();
        assert_eq!(instance.memory().await.unwrap().limit_bytes, mb << 20);
    }
    assert_eq!(exec(&*instance, "echo alive").await.stdout, b"alive\n");
    instance.kill().await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}

/// Returns how much swap the kernel lets a machine have beside so much memory; nothing where it
/// does not count it.
fn swap_bytes(machine: &Machine, memory_bytes: u64) -> Option<u64> {
    let group = Paths::new("perch-test", machine.spec.dir.machine.as_str()).machine;
    // Version 1 counts both together.
    let (file, memory_bytes) = match Hierarchies::detect().unwrap() {
        Hierarchies::Unified(root) => (root.join(group).join("memory.swap.max"), 0),
        Hierarchies::Legacy(all) => {
            let has = |controllers: &[String]| controllers.iter().any(|it| it == "memory");
            let (root, _) = all.iter().find(|(_, controllers)| has(controllers)).unwrap();
            (root.join(group).join("memory.memsw.limit_in_bytes"), memory_bytes)
        }
    };
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.trim().parse::<u64>().unwrap() - memory_bytes)
}

#[tokio::test]
async fn what_a_machine_uses_is_counted() {
    let Some(machine) = Machine::new("consumed") else {
        return;
    };
    let instance = machine.boot("while :; do :; done").await;
    let spun = tokio::time::timeout(crate::machine::LIMIT, async {
        loop {
            let consumed = instance.consumed().await.unwrap();
            if consumed.cpu_user_us >= 20_000 && consumed.memory_bytes > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    spun.await.unwrap();
    instance.kill().await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}

#[tokio::test]
async fn x1_swap_has_a_limit_of_its_own_that_a_change_of_the_memory_leaves_alone() {
    for swap_mb in [0_u64, 32] {
        let Some(mut machine) = Machine::new("swap") else {
            return;
        };
        machine.spec.limits.swap_bytes = swap_mb << 20;
        let instance = machine.boot("sleep 1000").await;
        for memory_mb in [64_u64, 128, 48] {
            if memory_mb != 64 {
                instance.set_memory_limit(memory_mb << 20).await.unwrap();
            }
            match swap_bytes(&machine, memory_mb << 20) {
                Some(bytes) => assert_eq!(bytes, swap_mb << 20, "beside {memory_mb} MiB"),
                None => perch_testkit::skipped("swap", "a kernel that counts swap (swapaccount=1)"),
            }
        }
        instance.kill().await.unwrap();
        wait(&*instance).await;
        machine.assert_clean();
    }
}

#[tokio::test]
async fn memory_of_files_is_taken_back_and_told_truthfully() {
    let Some(machine) = Machine::new("reclaim") else {
        return;
    };
    let script = "dd if=/dev/zero of=/file bs=1M count=20 2>/dev/null; sync; echo written; \
                  exec sleep 1000";
    let instance = machine.boot(script).await;
    machine.wait_for_output("written").await;
    let before = instance.stats().await.unwrap().memory_bytes;
    let taken = instance.reclaim_memory(10 << 20).await.unwrap();
    let after = instance.stats().await.unwrap().memory_bytes;
    assert!(taken >= 5 << 20, "{taken} of {before}, {after} left");
    assert!(before.saturating_sub(after) >= 5 << 20, "{taken} of {before}, {after} left");
    instance.kill().await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}

#[tokio::test]
async fn processes_are_seen_from_outside_whatever_they_call_themselves() {
    let Some(machine) = Machine::new("processes seen") else {
        return;
    };
    let script = "cd /tmp; sleep 1000 & printf '#!/bin/sh\\nsleep 1000' > '/tmp/a) S 1'; \
                  chmod +x '/tmp/a) S 1'; '/tmp/a) S 1' \"$(printf 'x\\033[2J\\ny')\" & \
                  echo up; exec nc -l -p 7000";
    let instance = machine.boot(script).await;
    machine.wait_for_output("up").await;
    let deadline = std::time::Instant::now() + crate::machine::LIMIT;
    let found = loop {
        let found = instance.processes().await.unwrap();
        let has = |text: &str| found.iter().any(|one| one.command.contains(text));
        // The shell, which becomes the one that listens, names it too.
        let listens =
            found.iter().any(|one| one.command.starts_with("nc") && !one.sockets.is_empty());
        if listens && has("a) S 1 ") && has("sleep 1000") {
            break found;
        }
        assert!(std::time::Instant::now() < deadline, "{found:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(found[0].pid, 1, "{found:?}");
    let nc = found.iter().find(|one| one.command.starts_with("nc")).unwrap();
    assert_eq!(nc.directory, "/tmp");
    assert!(nc.rss_bytes > 0 && nc.start_ticks > 0 && !nc.sockets.is_empty(), "{nc:?}");
    let odd = found.iter().find(|one| one.command.contains("a) S 1 ")).unwrap();
    assert!(odd.command.ends_with("x\u{fffd}[2J\u{fffd}y"), "{odd:?}");
    // Only those of this machine: this test is a process of the server.
    let own = std::process::id();
    assert!(found.iter().all(|one| one.pid.unsigned_abs() != own && one.pid < 1_000), "{found:?}");
    instance.kill().await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}
