//! What a boot costs; printed, with a generous ceiling.

use std::time::{Duration, Instant};

use perch_runtime::Runtime as _;

use crate::machine::{Machine, skip, wait};

const ROUNDS: u64 = 20;

#[tokio::test]
async fn a_boot_is_quick_and_its_monitor_small() {
    let Some(mut machine) = Machine::new("bench") else {
        return;
    };
    let mut times = Vec::new();
    let mut sizes = Vec::new();
    let dir = machine.spec.dir.log_dir();
    std::fs::create_dir_all(&dir).unwrap();
    for boot in 1..=ROUNDS {
        machine.spec.boot = boot;
        let next = perch_runtime::log::next_seq(&dir).unwrap();
        let mut follower = perch_runtime::log::Follower::new(&dir, next).unwrap();
        let begin = Instant::now();
        let instance = machine.runtime.create(&machine.spec).await.unwrap();
        let created = begin.elapsed();
        instance.start(crate::machine::shell("echo up; exec sleep 1000")).await.unwrap();
        follower.next(1).await.unwrap();
        times.push((begin.elapsed(), created));
        let smaps = format!("/proc/{}/smaps_rollup", instance.info().monitor.pid);
        sizes.push(pss_kib(&std::fs::read_to_string(smaps).unwrap()));
        instance.kill().await.unwrap();
        wait(&*instance).await;
    }
    times.sort();
    sizes.sort_unstable();
    let middle = times[times.len() / 2];
    skip(
        "nothing",
        &format!(
            "boot to first output: median {:?} (created after {:?}), min {:?}; monitor PSS {} KiB",
            middle.0,
            middle.1,
            times[0].0,
            sizes[sizes.len() / 2]
        ),
    );
    assert!(middle.0 < Duration::from_millis(500), "{times:?}");
}

fn pss_kib(smaps: &str) -> u64 {
    let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
