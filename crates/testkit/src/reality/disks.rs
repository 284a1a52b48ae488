//! What there is of volumes: their files, loop devices, mounts and guards, beside their rows.
//!
//! Never opens an image: whose it is, its name says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use perch_durable::{Snapshot, Table};
use serde_json::Value;

use super::{Place, Said, folders, name};

const VOLUMES: Table<String, Value> = Table::new("volumes");
const SNAPSHOTS: Table<String, Value> = Table::new("snapshots");

/// What there is of the volumes of a host.
#[derive(Debug, Clone, Default)]
pub(super) struct Disks {
    volumes: BTreeMap<String, Value>,
    snapshots: BTreeMap<String, Value>,
    volume_files: BTreeSet<String>,
    snapshot_files: BTreeSet<String>,
    loops: BTreeMap<String, usize>,
    /// Files that are not in their place yet, mounts that nobody asked for, guards of copies.
    odd: Vec<String>,
}

impl Disks {
    /// Looks at what there is outside of the host's own file.
    pub(super) fn look(place: &Place) -> Result<Self> {
        let mut disks = Self::default();
        disks.volume_files = disks.files(&place.pool.join("volumes"));
        disks.snapshot_files = disks.files(&place.pool.join("snapshots"));
        for device in folders(Path::new("/sys/block")) {
            let file = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
            let file = Path::new(file.trim());
            if file.starts_with(place.pool.join("volumes")) {
                *disks.loops.entry(stem(file)).or_default() += 1;
            } else if file.starts_with(&place.pool) {
                disks.odd.push(format!("loop device of {}", file.display()));
            }
        }
        disks.look_at_mounts(place)?;
        disks.look_at_guards(place)?;
        Ok(disks)
    }

    pub(super) fn take_rows(&mut self, snapshot: &Snapshot<'_>) -> Result<()> {
        self.volumes = VOLUMES.list(snapshot)?.records.into_iter().collect();
        self.snapshots = SNAPSHOTS.list(snapshot)?.records.into_iter().collect();
        Ok(())
    }

    fn files(&mut self, folder: &Path) -> BTreeSet<String> {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let (whole, other): (Vec<_>, Vec<_>) = files
            .map(|file| file.path())
            .partition(|path| path.extension().is_some_and(|extension| extension == "img"));
        self.odd.extend(other.iter().map(|path| format!("unfinished file {}", path.display())));
        whole.iter().map(|path| stem(path)).collect()
    }

    /// A machine's volume is mounted where only the machine sees it.
    fn look_at_mounts(&mut self, place: &Place) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
        let images = place.run.join("images");
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new) {
            let is_ours = point.starts_with(&place.data) || point.starts_with(&place.run);
            let is_known = point == place.data || point == place.pool || point.starts_with(&images);
            if is_ours && !is_known {
                self.odd.push(format!("mount on {}", point.display()));
            }
        }
        Ok(())
    }

    fn look_at_guards(&mut self, place: &Place) -> Result<()> {
        let pool = place.pool.display().to_string();
        for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains("--thaw-when-alone") && line.contains(&pool) {
                self.odd.push(format!("process {}: {line}", name(&entry.path())));
            }
        }
        Ok(())
    }

    /// Returns in what the disks differ from their rows and from the machines that have them.
    pub(super) fn differences(
        &self,
        said: &[Said],
        records: &BTreeMap<String, Value>,
    ) -> Vec<String> {
        let mut wrong = self.odd.clone();
        for (id, row) in &self.volumes {
            let row = &row["record"];
            let state = row["state"].as_str().unwrap_or_default();
            if !["created", "pending_destroy", "recovering"].contains(&state) {
                wrong.push(format!("volume {id} is {state}"));
            }
            if self.volume_files.contains(id) == (state == "recovering") {
                wrong.push(format!("volume {id} is {state} and has a disk or none"));
            }
            let holder = row["attached"].as_str();
            let holder_said = said.iter().find(|one| Some(one.id.as_str()) == holder);
            if holder.is_some() && holder_said.is_none() {
                wrong.push(format!("volume {id} belongs to machine {holder:?}, which is no more"));
            }
            let wanted = usize::from(holder_said.is_some_and(|one| one.runs));
            let found = self.loops.get(id).copied().unwrap_or_default();
            if found != wanted {
                wrong.push(format!("volume {id} is mounted {found} times, expected {wanted}"));
            }
        }
        for one in said {
            let mounts = records.get(&one.id).map(|record| &record["version"]["config"]["mounts"]);
            for mount in mounts.and_then(Value::as_array).into_iter().flatten() {
                let id = mount["volume"].as_str().unwrap_or_default();
                let row = self.volumes.get(id).map(|row| &row["record"]["attached"]);
                if row.and_then(Value::as_str) != Some(one.id.as_str()) {
                    wrong.push(format!("machine {} mounts volume {id}, which has {row:?}", one.id));
                }
            }
        }
        for (id, row) in &self.snapshots {
            if row["is_whole"] != true {
                wrong.push(format!("snapshot {id} is not whole"));
            }
            if self.snapshot_files.contains(id) == (row["is_lost"] == true) {
                wrong
                    .push(format!("snapshot {id} has a disk, or none, and its row says otherwise"));
            }
        }
        let nobodys = |files: &BTreeSet<String>, rows: &BTreeMap<String, Value>| -> Vec<String> {
            files.iter().filter(|id| !rows.contains_key(*id)).cloned().collect()
        };
        let left = nobodys(&self.volume_files, &self.volumes);
        let left = [left, nobodys(&self.snapshot_files, &self.snapshots)].concat();
        wrong.extend(left.iter().map(|id| format!("disk {id}, which nobody knows")));
        let gone = self.loops.keys().filter(|id| !self.volumes.contains_key(*id));
        wrong.extend(gone.map(|id| format!("loop device of volume {id}, which nobody knows")));
        wrong
    }

    /// Returns in what the rows differ from what the API says of all volumes.
    pub(super) fn said_otherwise(&self, said: &[Value]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut unknown = self.volumes.clone();
        for volume in said {
            let id = volume["id"].as_str().unwrap_or_default();
            let Some(row) = unknown.remove(id) else {
                wrong.push(format!("volume {id} is said to be, and has no row"));
                continue;
            };
            let row = &row["record"];
            let pairs =
                [("state", "state"), ("size_gb", "size_gb"), ("attached_machine_id", "attached")];
            for (public, own) in pairs.iter().filter(|(public, own)| volume[public] != row[own]) {
                let (public, own) = (&volume[public], &row[own]);
                wrong.push(format!("of volume {id} is said {public}, there is {own}"));
            }
        }
        let kept = |state: &Value| state == "created" || state == "recovering";
        let kept = unknown.iter().filter(|(_, row)| kept(&row["record"]["state"]));
        wrong.extend(kept.map(|(id, _)| format!("volume {id} is lost")));
        wrong
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mounted() -> Disks {
        let row = json!({"record": {"state": "created", "attached": "a"}});
        Disks {
            volumes: [("vol_1".to_owned(), row)].into(),
            snapshots: [("vs_1".to_owned(), json!({"is_whole": true}))].into(),
            volume_files: ["vol_1".to_owned()].into(),
            snapshot_files: ["vs_1".to_owned()].into(),
            loops: [("vol_1".to_owned(), 1)].into(),
            odd: Vec::new(),
        }
    }

    #[test]
    fn each_difference_of_a_disk_is_seen() {
        let config = json!({"mounts": [{"volume": "vol_1", "path": "/data"}]});
        let records: BTreeMap<String, Value> =
            [("a".to_owned(), json!({"version": {"config": config}}))].into();
        let runs = [Said { id: "a".to_owned(), runs: true }];
        let rests = [Said { id: "a".to_owned(), runs: false }];
        assert_eq!(mounted().differences(&runs, &records), Vec::<String>::new());
        let unmounted = Disks { loops: BTreeMap::new(), ..mounted() };
        assert_eq!(unmounted.differences(&rests, &records), Vec::<String>::new());
        let lost = Disks {
            volumes: [(
                "vol_1".to_owned(),
                json!({"record": {"state": "recovering", "attached": "a"}}),
            )]
            .into(),
            snapshots: [("vs_1".to_owned(), json!({"is_whole": true, "is_lost": true}))].into(),
            ..Disks::default()
        };
        assert_eq!(lost.differences(&rests, &records), Vec::<String>::new());
        let row = |state: &str, attached: Value| {
            let row = json!({"record": {"state": state, "attached": attached}});
            BTreeMap::from([("vol_1".to_owned(), row)])
        };
        for wrong in [
            unmounted,
            Disks { loops: [("vol_1".to_owned(), 2)].into(), ..mounted() },
            Disks { volumes: row("extending", json!("a")), ..mounted() },
            Disks { volumes: row("recovering", json!("a")), ..mounted() },
            Disks {
                snapshots: [("vs_1".to_owned(), json!({"is_whole": true, "is_lost": true}))].into(),
                ..mounted()
            },
            Disks { volumes: row("created", Value::Null), ..mounted() },
            Disks { volumes: row("created", json!("b")), ..mounted() },
            Disks { volumes: BTreeMap::new(), ..mounted() },
            Disks { volume_files: BTreeSet::new(), ..mounted() },
            Disks { snapshots: BTreeMap::new(), ..mounted() },
            Disks { snapshot_files: BTreeSet::new(), ..mounted() },
            Disks {
                snapshots: [("vs_1".to_owned(), json!({"is_whole": false}))].into(),
                ..mounted()
            },
            Disks { odd: vec!["mount".to_owned()], ..mounted() },
        ] {
            assert_ne!(wrong.differences(&runs, &records), Vec::<String>::new(), "{wrong:?}");
        }
        assert_ne!(mounted().differences(&rests, &records), Vec::<String>::new(), "mounted");
    }

    #[test]
    fn what_the_api_says_of_volumes_is_compared() {
        let said = |id: &str, machine: Value| json!({"id": id, "state": "created", "attached_machine_id": machine});
        let right = said("vol_1", json!("a"));
        assert_eq!(mounted().said_otherwise(std::slice::from_ref(&right)), Vec::<String>::new());
        for wrong in
            [vec![], vec![said("vol_1", Value::Null)], vec![right, said("vol_2", json!("a"))]]
        {
            assert_ne!(mounted().said_otherwise(&wrong), Vec::<String>::new(), "{wrong:?}");
        }
    }
}
