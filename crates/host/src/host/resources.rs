//! What a machine uses while it runs: its processes, its memory.
//!
//! Never changes its record: a limit of memory lives in the boot's cgroup and ends with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use perch_runtime::{Consumed, Memory, Process, processes::TICKS_PER_SECOND};
use perch_types::api::{ListenSocket, MachineMemory, ProcessStat};
use perch_types::consumed::MachineConsumed;
use perch_types::{ApiError, Code, MachineConfig, MachineId};

use super::Host;
use crate::effects::Fault;

/// The least memory that a machine can be given while it runs, in MiB.
const MEMORY_LIMIT_MB_MIN: u64 = 32;
/// The most sockets of one process that are listed.
const SOCKETS_MAX: usize = 64;

impl Host {
    /// Lists the processes of a machine, by id; of a suspended one too.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn processes(&self, id: &MachineId) -> Result<Vec<ProcessStat>, ApiError> {
        let (instance, config) = self.alive(id).await?;
        let refused = |error: perch_runtime::Error| Fault::from(error).error;
        let found = instance.processes().await.map_err(refused)?;
        let inits = if config.containers.is_empty() {
            Vec::new()
        } else {
            // No counter is that high: the answer comes at once.
            instance.containers(u64::MAX).await.map_err(refused)?.inits
        };
        let names = container_names(&config, &inits, &found);
        let namespace = instance.network_namespace().map_err(refused)?;
        let networks = &self.shared.effects.networks;
        let mut listeners = networks.listeners(namespace).map_err(|fault| fault.error)?;
        let sockets = listeners.sockets().map_err(|fault| fault.error)?;
        let sockets: BTreeMap<u64, SocketAddr> = sockets
            .into_iter()
            .map(|one| (one.inode, SocketAddr::from((one.listener.address, one.listener.port))))
            .collect();
        let clock = &self.shared.effects.clock;
        let now = Now { boot_ms: clock.boot_ms(), unix_s: clock.now().unix_s() };
        let each = found.into_iter().map(|process| {
            let container = names.get(&process.table).cloned();
            ProcessStat { container, ..stat(process, &sockets, now) }
        });
        Ok(each.collect())
    }

    /// Returns what each machine that runs has used since its boot.
    pub async fn consumed(&self) -> Vec<MachineConsumed> {
        let mut all = Vec::new();
        for handle in self.shared.all() {
            let published = handle.published();
            let Some(instance) = &published.instance else { continue };
            // One that has just ended has used what nobody asks for any more.
            let Ok(consumed) = instance.consumed().await else { continue };
            let Consumed { cpu_user_us, cpu_system_us, throttled_us, memory_bytes, .. } = consumed;
            all.push(MachineConsumed {
                id: published.machine.id.clone(),
                cpu_user_us,
                cpu_system_us,
                throttled_us,
                memory_bytes,
                received_bytes: consumed.received.bytes,
                received_packets: consumed.received.packets,
                sent_bytes: consumed.sent.bytes,
                sent_packets: consumed.sent.packets,
            });
        }
        all
    }

    /// Returns a machine's memory.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn memory(&self, id: &MachineId) -> Result<MachineMemory, ApiError> {
        let (instance, _) = self.alive(id).await?;
        let memory = instance.memory().await;
        memory.map(in_mb).map_err(|error| Fault::from(error).error)
    }

    /// Changes how much memory a machine may use, until the end of its boot.
    ///
    /// # Errors
    /// When it does not run, uses more, or may not have so much.
    pub async fn set_memory(
        &self,
        id: &MachineId,
        limit_mb: u64,
    ) -> Result<MachineMemory, ApiError> {
        let (instance, config) = self.alive(id).await?;
        let max_mb = u64::from(config.max_memory_mb());
        if !(MEMORY_LIMIT_MB_MIN..=max_mb).contains(&limit_mb) {
            let text = format!("limit_mb: {limit_mb} is not {MEMORY_LIMIT_MB_MIN} to {max_mb}");
            return Err(ApiError::new(Code::InvalidValue, text)
                .with_hint("`config.guest.max_memory_mb` says how much it may have"));
        }
        instance
            .set_memory_limit(limit_mb << 20)
            .await
            .map_err(|error| Fault::from(error).error)?;
        self.memory(id).await
    }

    /// Takes back memory that a machine could do without; returns how much that was, in MiB.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn reclaim_memory(&self, id: &MachineId, amount_mb: u64) -> Result<u64, ApiError> {
        let (instance, config) = self.alive(id).await?;
        let max_mb = u64::from(config.max_memory_mb());
        if !(1..=max_mb).contains(&amount_mb) {
            let text = format!("amount_mb: {amount_mb} is not 1 to {max_mb}");
            return Err(ApiError::new(Code::InvalidValue, text));
        }
        let taken = instance.reclaim_memory(amount_mb << 20).await;
        taken.map(|bytes| bytes >> 20).map_err(|error| Fault::from(error).error)
    }
}

/// A moment by both clocks.
#[derive(Debug, Clone, Copy)]
struct Now {
    boot_ms: u64,
    unix_s: i64,
}

const fn in_mb(memory: Memory) -> MachineMemory {
    MachineMemory {
        available_mb: memory.available_bytes() >> 20,
        limit_mb: memory.limit_bytes >> 20,
    }
}

/// Returns the names of containers by their tables of processes.
fn container_names(
    config: &MachineConfig,
    inits: &[i32],
    processes: &[Process],
) -> BTreeMap<u64, String> {
    let table_of = |init: i32| {
        let found = processes.iter().find(|process| process.host_pid == init);
        found.map(|process| process.table)
    };
    let each = config.containers.iter().zip(inits);
    each.filter_map(|(one, init)| Some((table_of(*init)?, one.name.clone()))).collect()
}

fn stat(process: Process, sockets: &BTreeMap<u64, SocketAddr>, now: Now) -> ProcessStat {
    let ticks = now.boot_ms / (1000 / TICKS_PER_SECOND);
    let ran_ticks = ticks.saturating_sub(process.start_ticks);
    let ran_s = ran_ticks / TICKS_PER_SECOND;
    let started_s = now.unix_s.saturating_sub(i64::try_from(ran_s).unwrap_or(i64::MAX));
    let listens = process.sockets.iter().filter_map(|inode| sockets.get(inode));
    ProcessStat {
        pid: process.pid,
        stime: u64::try_from(started_s).unwrap_or(0),
        rtime: ran_s,
        command: process.command,
        directory: process.directory,
        cpu: process.cpu_ticks.saturating_mul(100) / ran_ticks.max(1),
        rss: process.rss_bytes,
        listen_sockets: listens
            .take(SOCKETS_MAX)
            .map(|address| ListenSocket { proto: "tcp".to_owned(), address: address.to_string() })
            .collect(),
        ..ProcessStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_the_container_whose_init_is_in_its_table() {
        let containers = serde_json::json!({"containers": [{"name": "web"}, {"name": "db"}]});
        let config: MachineConfig = serde_json::from_value(containers).unwrap();
        let process = |host_pid, table| Process { host_pid, table, ..Process::default() };
        let processes = [process(10, 5), process(11, 5), process(12, 6)];
        let names = container_names(&config, &[10, 12], &processes);
        assert_eq!(names, BTreeMap::from([(5, "web".to_owned()), (6, "db".to_owned())]));
        // One that has ended since has no processes either.
        assert_eq!(container_names(&config, &[10, 13], &processes).len(), 1);
    }

    #[test]
    fn times_are_of_the_process_and_sockets_are_those_that_listen() {
        let process = Process {
            pid: 7,
            host_pid: 1007,
            table: 1,
            start_ticks: 1_000,
            cpu_ticks: 50,
            rss_bytes: 4096,
            command: "web".to_owned(),
            directory: "/".to_owned(),
            sockets: vec![1, 2],
        };
        let sockets = BTreeMap::from([(2, "[::]:80".parse().unwrap())]);
        let found = stat(process, &sockets, Now { boot_ms: 12_000, unix_s: 1_700_000_000 });
        assert_eq!((found.rtime, found.stime, found.cpu), (2, 1_699_999_998, 25));
        let listens = ListenSocket { proto: "tcp".to_owned(), address: "[::]:80".to_owned() };
        assert_eq!(found.listen_sockets, [listens]);
        // One that has just started, by a clock that is behind.
        let young = Process { start_ticks: 5_000, ..Process::default() };
        let found = stat(young, &sockets, Now { boot_ms: 1_000, unix_s: 5 });
        assert_eq!((found.rtime, found.stime, found.cpu), (0, 5, 0));
    }
}
