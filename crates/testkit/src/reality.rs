//! What there is of a host's machines and volumes, looked at from outside: processes, cgroups,
//! interfaces, the firewall, mounts, loop devices, files, and the rows of the host's own file.
//!
//! Never asks the server: what its API says is compared with this.

mod disks;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use perch_durable::{Frozen, Table};
use serde_json::Value;

use self::disks::Disks;

const RECORDS: Table<String, Value> = Table::new("machines");
const QUEUES: Table<String, Value> = Table::new("queues");
const SLOTS: Table<String, Value> = Table::new("slots");

/// Where a host keeps its things.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its data folder.
    pub data: PathBuf,
    /// Its folder of sockets.
    pub run: PathBuf,
    /// The name of its cgroups.
    pub cgroup: String,
    /// Where its volumes are.
    pub pool: PathBuf,
}

/// What a machine is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its id.
    pub id: String,
    /// Whether its program is there, running or frozen.
    pub runs: bool,
}

/// What there is of one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    monitors: usize,
    cgroups: usize,
    processes: usize,
    interfaces: usize,
    /// Networks whose machines it may talk to, of those that its address is in.
    networks_open: usize,
    loops: usize,
    disks: Vec<String>,
    has_run_folder: bool,
    has_data_folder: bool,
}

/// What there is of a host.
#[derive(Debug, Default)]
pub struct Reality {
    machines: BTreeMap<String, Found>,
    image_mounts: BTreeMap<String, usize>,
    unfinished_files: Vec<String>,
    records: BTreeMap<String, Value>,
    queued: Vec<String>,
    slots_taken: BTreeSet<u64>,
    open_runs: Vec<String>,
    volumes: Disks,
}

impl Reality {
    /// Looks at a host from a thread that is in its network namespace.
    ///
    /// # Errors
    /// When something cannot be looked at.
    pub fn look(place: &Place) -> Result<Self> {
        let mut reality = Self::default();
        reality.look_at_processes(place)?;
        reality.look_at_cgroups(place);
        reality.look_at_interfaces()?;
        reality.look_at_mounts(place)?;
        reality.look_at_loops(place);
        reality.look_at_files(place);
        reality.volumes = Disks::look(place)?;
        reality.look_at_rows(place)?;
        Ok(reality)
    }

    fn machine(&mut self, id: &str) -> &mut Found {
        self.machines.entry(id.to_owned()).or_default()
    }

    fn look_at_processes(&mut self, place: &Place) -> Result<()> {
        for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let words: Vec<&str> = line.split('\0').collect();
            if let [program, machine, cgroup, ..] = words.as_slice()
                && program.ends_with("/perch-monitor")
                && *cgroup == place.cgroup
            {
                self.machine(machine).monitors += 1;
            }
        }
        Ok(())
    }

    fn look_at_cgroups(&mut self, place: &Place) {
        let root = Path::new("/sys/fs/cgroup");
        let mut roots = vec![root.to_owned()];
        roots.extend(folders(root));
        for root in roots {
            for folder in folders(&root.join(&place.cgroup).join("machines")) {
                let processes = count_processes(&folder);
                let found = self.machine(&name(&folder));
                found.cgroups += 1;
                found.processes = found.processes.max(processes);
            }
        }
    }

    fn look_at_interfaces(&mut self) -> Result<()> {
        let output = Command::new("ip").args(["-o", "link"]).output().context("run ip")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in text.lines() {
            let name = line.split([' ', '@', ':']).filter(|word| !word.is_empty()).nth(1);
            let id = name.and_then(|name| name.strip_prefix('p'));
            if let Some(id) = id.filter(|id| id.len() == 14) {
                self.machine(id).interfaces += 1;
            }
        }
        self.look_at_firewall()
    }

    /// Finds out whether the firewall knows the networks that routes to machines are of.
    fn look_at_firewall(&mut self) -> Result<()> {
        let said = |program: &str, words: &[&str]| -> Result<String> {
            let output = Command::new(program).args(words).output();
            let output = output.with_context(|| format!("run {program}"))?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let rules = said("nft", &["list", "ruleset"])?;
        let routes = said("ip", &["-6", "route", "show"])?;
        for line in routes.lines() {
            let mut words = line.split_whitespace();
            let address = words.next().and_then(|word| word.parse::<Ipv6Addr>().ok());
            let id = words.skip_while(|word| *word != "dev").nth(1);
            let id = id.and_then(|name| name.strip_prefix('p')).filter(|id| id.len() == 14);
            let (Some(address), Some(id)) = (address, id) else { continue };
            let [a, b, c, ..] = address.segments();
            let network = Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0);
            if rules.contains(&format!("{network} . {network}")) {
                self.machine(id).networks_open += 1;
            }
        }
        Ok(())
    }

    fn look_at_mounts(&mut self, place: &Place) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
        let images = place.run.join("images");
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter_map(|point| Path::new(point).strip_prefix(&images).ok()) {
            *self.image_mounts.entry(point.display().to_string()).or_default() += 1;
        }
        Ok(())
    }

    fn look_at_loops(&mut self, place: &Place) {
        let machines = place.data.join("machines");
        for device in folders(Path::new("/sys/block")) {
            let file = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
            let below = Path::new(file.trim()).strip_prefix(&machines);
            let id = below.ok().and_then(|path| path.iter().next());
            if let Some(id) = id {
                self.machine(&id.to_string_lossy()).loops += 1;
            }
        }
    }

    fn look_at_files(&mut self, place: &Place) {
        for folder in folders(&place.run.join("machines")) {
            self.machine(&name(&folder)).has_run_folder = true;
        }
        for folder in folders(&place.data.join("machines")) {
            let id = name(&folder);
            self.machine(&id).has_data_folder = true;
            for file in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let file = name(&file.path());
                if file.ends_with(".new") {
                    self.unfinished_files.push(format!("{id}/{file}"));
                } else if file.starts_with("root-") {
                    self.machine(&id).disks.push(file);
                }
            }
        }
    }

    fn look_at_rows(&mut self, place: &Place) -> Result<()> {
        let file = Frozen::open(place.data.join("host.db")).context("open the host's file")?;
        let snapshot = file.snapshot();
        self.records = RECORDS.list(&snapshot)?.records.into_iter().collect();
        self.volumes.take_rows(&snapshot)?;
        self.queued = QUEUES.list(&snapshot)?.records.into_iter().map(|(id, _)| id).collect();
        for (_, slots) in SLOTS.list(&snapshot)?.records {
            let taken = slots["taken"].as_array().into_iter().flatten();
            self.slots_taken = taken.filter_map(Value::as_u64).collect();
        }
        let mut query = snapshot
            .sql()
            .prepare("SELECT owner || ' ' || kind FROM runs WHERE finished_ms IS NULL")?;
        let runs = query.query_map([], |row| row.get(0))?;
        self.open_runs = runs.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Returns whether a monitor or a process of a machine is there.
    #[must_use]
    pub fn has_processes(&self) -> bool {
        self.machines.values().any(|found| found.monitors + found.processes > 0)
    }

    /// Returns in what this differs from what the API says of all volumes.
    #[must_use]
    pub fn volumes_said_otherwise(&self, said: &[Value]) -> Vec<String> {
        self.volumes.said_otherwise(said)
    }

    /// Returns in what this differs from what the API says of all machines that are not destroyed;
    /// nothing when all of it is so. Only a host at rest can be judged: a run under way is one of
    /// the differences.
    #[must_use]
    pub fn differences(&self, said: &[Said]) -> Vec<String> {
        let mut wrong: Vec<String> = Vec::new();
        let mut unknown = self.machines.clone();
        for Said { id, runs } in said {
            let found = unknown.remove(id).unwrap_or_default();
            let record = self.records.get(id);
            if record.is_none() {
                wrong.push(format!("machine {id} has no record"));
            }
            wrong.extend(of_one(id, *runs, &found, record));
        }
        for (id, found) in unknown {
            // The log of a machine that was destroyed stays for a while.
            let destroyed = self.records.get(&id).is_some_and(is_destroyed);
            let left = Found { has_data_folder: false, ..found.clone() };
            if !destroyed || left != Found::default() {
                wrong.push(format!("of machine {id}, which nobody knows, there is {found:?}"));
            }
        }
        for (id, record) in self.records.iter().filter(|(_, record)| !is_destroyed(record)) {
            if !said.iter().any(|one| one.id == *id) {
                wrong.push(format!("machine {id} is lost, it was {}", record["state"]));
            }
        }
        let slots: Vec<u64> = self
            .records
            .values()
            .filter(|record| !is_destroyed(record))
            .filter_map(|record| record["slot"].as_u64())
            .collect();
        let distinct: BTreeSet<u64> = slots.iter().copied().collect();
        if distinct.len() != slots.len() || distinct != self.slots_taken {
            wrong.push(format!("slots of machines {slots:?}, taken {:?}", self.slots_taken));
        }
        for (image, count) in self.image_mounts.iter().filter(|(_, count)| **count != 1) {
            wrong.push(format!("image {image} is mounted {count} times"));
        }
        wrong.extend(self.unfinished_files.iter().map(|file| format!("unfinished file {file}")));
        wrong.extend(self.open_runs.iter().map(|run| format!("unfinished run {run}")));
        wrong.extend(self.queued.iter().map(|id| format!("a command waits for {id}")));
        wrong.extend(self.volumes.differences(said, &self.records));
        wrong
    }
}

fn of_one(id: &str, runs: bool, found: &Found, record: Option<&Value>) -> Vec<String> {
    let mut wrong = Vec::new();
    let upper = record.and_then(|record| record["version"]["upper"].as_str()).unwrap_or_default();
    let others: Vec<&String> = found.disks.iter().filter(|disk| *disk != upper).collect();
    if !others.is_empty() {
        wrong.push(format!("machine {id} has disks of no version: {others:?}"));
    }
    let counts = (found.monitors, found.interfaces, found.networks_open, found.loops);
    if runs && (counts != (1, 1, 1, 1) || found.processes == 0 || found.disks.len() != 1) {
        wrong.push(format!("machine {id} is said to run, there is {found:?}"));
    }
    let left = (found.cgroups, found.has_run_folder);
    if !runs && (counts != (0, 0, 0, 0) || left != (0, false)) {
        wrong.push(format!("machine {id} is said not to run, there is {found:?}"));
    }
    wrong
}

fn is_destroyed(record: &Value) -> bool {
    record["state"] == "destroyed"
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn count_processes(cgroup: &Path) -> usize {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines().count();
    own + folders(cgroup).iter().map(|folder| count_processes(folder)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn running() -> Found {
        Found {
            monitors: 1,
            cgroups: 5,
            processes: 2,
            interfaces: 1,
            networks_open: 1,
            loops: 1,
            disks: vec!["root-1.img".to_owned()],
            has_run_folder: true,
            has_data_folder: true,
        }
    }

    fn reality(found: Found) -> Reality {
        let record = json!({"state": "started", "slot": 3, "version": {"upper": "root-1.img"}});
        Reality {
            machines: [("a".to_owned(), found)].into(),
            records: [("a".to_owned(), record)].into(),
            slots_taken: [3].into(),
            ..Reality::default()
        }
    }

    #[test]
    fn each_difference_is_seen() {
        let said = [Said { id: "a".to_owned(), runs: true }];
        assert_eq!(reality(running()).differences(&said), Vec::<String>::new());
        for wrong in [
            Found { monitors: 2, ..running() },
            Found { monitors: 0, ..running() },
            Found { processes: 0, ..running() },
            Found { interfaces: 0, ..running() },
            Found { networks_open: 0, ..running() },
            Found { loops: 2, ..running() },
            Found { disks: vec!["root-1.img".to_owned(), "root-0.img".to_owned()], ..running() },
        ] {
            assert_ne!(
                reality(wrong.clone()).differences(&said),
                Vec::<String>::new(),
                "{wrong:?}"
            );
        }
        let stopped = [Said { id: "a".to_owned(), runs: false }];
        assert_ne!(reality(running()).differences(&stopped), Vec::<String>::new());
        assert_eq!(reality(Found::default()).differences(&stopped), Vec::<String>::new());
        assert_ne!(reality(running()).differences(&[]), Vec::<String>::new(), "lost");
        let slots = Reality { slots_taken: [3, 4].into(), ..reality(running()) };
        assert_ne!(slots.differences(&said), Vec::<String>::new());
        let open = Reality { open_runs: vec!["a stop".to_owned()], ..reality(running()) };
        assert_ne!(open.differences(&said), Vec::<String>::new());
    }
}
