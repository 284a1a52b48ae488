//! What a machine has used since its boot, read where the kernel counts it.
//!
//! Never asks the machine or its monitor: an answer would cost them time.

use std::fs;
use std::path::Path;

use crate::cgroup::{Hierarchies, named_number, number};
use crate::processes::TICKS_PER_SECOND;

const US_PER_TICK: u64 = 1_000_000 / TICKS_PER_SECOND;

/// Counters since the boot, but for the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Consumed {
    /// Time on a CPU in its programs, in microseconds.
    pub cpu_user_us: u64,
    /// Time on a CPU in the kernel for them, in microseconds.
    pub cpu_system_us: u64,
    /// How long it would have run and was over its ceiling, in microseconds.
    pub throttled_us: u64,
    /// Memory in bytes now, page cache included.
    pub memory_bytes: u64,
    /// What came to it over its network.
    pub received: Traffic,
    /// What it sent.
    pub sent: Traffic,
}

/// Traffic in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// Reads what the machine in a cgroup has used, whose first process is `init`; what cannot be read
/// is 0.
pub(crate) fn read(all: &Hierarchies, group: &Path, init: i32) -> Consumed {
    let text = |controller: &str, file: &str| {
        let root = all.of(controller)?;
        fs::read_to_string(root.join(group).join(file)).ok()
    };
    let memory = |file: &str| all.of("memory").and_then(|at| number(&at.join(group).join(file)));
    let cpu = text("cpu", "cpu.stat").unwrap_or_default();
    let (times, memory_bytes) = match all {
        Hierarchies::Unified(_) => (times_v2(&cpu), memory("memory.current")),
        Hierarchies::Legacy(_) => {
            let spent = text("cpuacct", "cpuacct.stat").unwrap_or_default();
            (times_v1(&cpu, &spent), memory("memory.usage_in_bytes"))
        }
    };
    let devices = fs::read_to_string(format!("/proc/{init}/net/dev")).unwrap_or_default();
    let (received, sent) = traffic(&devices);
    let [cpu_user_us, cpu_system_us, throttled_us] = times;
    let memory_bytes = memory_bytes.unwrap_or_default();
    Consumed { cpu_user_us, cpu_system_us, throttled_us, memory_bytes, received, sent }
}

/// Returns the times of its programs, of the kernel for them, and over its ceiling.
fn times_v2(cpu: &str) -> [u64; 3] {
    ["user_usec", "system_usec", "throttled_usec"]
        .map(|name| named_number(cpu, name).unwrap_or_default())
}

fn times_v1(cpu: &str, spent: &str) -> [u64; 3] {
    let of = |name: &str| named_number(spent, name).unwrap_or_default();
    let throttled_ns = named_number(cpu, "throttled_time").unwrap_or_default();
    let in_us = |ticks: u64| ticks.saturating_mul(US_PER_TICK);
    [in_us(of("user")), in_us(of("system")), throttled_ns / 1_000]
}

/// Returns what came and what went over all devices but the one that leads to itself.
fn traffic(devices: &str) -> (Traffic, Traffic) {
    let (mut received, mut sent) = (Traffic::default(), Traffic::default());
    for line in devices.lines() {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let numbers: Vec<u64> =
            numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        // Eight of what came, then as many of what went.
        let [bytes_in, packets_in, _, _, _, _, _, _, bytes_out, packets_out, ..] =
            numbers.as_slice()
        else {
            continue;
        };
        for (all, bytes, packets) in
            [(&mut received, bytes_in, packets_in), (&mut sent, bytes_out, packets_out)]
        {
            all.bytes = all.bytes.saturating_add(*bytes);
            all.packets = all.packets.saturating_add(*packets);
        }
    }
    (received, sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_same_in_both_versions() {
        let unified = "usage_usec 30\nuser_usec 20000\nsystem_usec 10000\nthrottled_usec 7\n";
        assert_eq!(times_v2(unified), [20_000, 10_000, 7]);
        let legacy = "nr_periods 1\nnr_throttled 1\nthrottled_time 7000\n";
        assert_eq!(times_v1(legacy, "user 2\nsystem 1\n"), [20_000, 10_000, 7]);
        assert_eq!((times_v2(""), times_v1("", "")), ([0; 3], [0; 3]));
    }

    #[test]
    fn traffic_with_itself_is_none() {
        let devices = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n    \
            lo: 900 9 0 0 0 0 0 0 900 9 0 0 0 0 0 0\n  eth0:100 2 0 0 0 0 0 0 50 1 0 0 0 0 0 0\n \
            eth1: 1 1 0 0 0 0 0 0 2 2 0 0 0 0 0 0\n bad: 1 2\n";
        let (received, sent) = traffic(devices);
        assert_eq!(received, Traffic { bytes: 101, packets: 3 });
        assert_eq!(sent, Traffic { bytes: 52, packets: 3 });
        assert_eq!(traffic(""), (Traffic::default(), Traffic::default()));
    }
}
