//! The containers of a machine as its runtime gets them: files, programs, what they wait for.
//!
//! Never starts one, and never decides in which order: the runtime does.

use std::path::{Path, PathBuf};

use perch_runtime::containers::{
    ContainerSpec, ContainerStart, ContainerState, Dependency, SharedMount, SharedSpec,
};
use perch_types::api::ContainerSummary;
use perch_types::machine_config::{
    ContainerConfig, FileConfig, InitConfig, MachineConfig, RESTART_RETRIES_DEFAULT,
    STOP_TIMEOUT_DEFAULT, StorageType, TempDir, VolumeConfig,
};
use perch_types::{ApiError, Code};

use super::files::Given;
use super::guest::{Surroundings, guest_start};
use super::processes::{Sources, is_platforms};
use super::record::{Record, Version};
use crate::effects::MountedImage;

/// The size of a temporary folder in MiB when nothing else was said.
const TEMP_DIR_MB_DEFAULT: u64 = 64;

/// Returns where the files of a temporary folder on the disk are kept.
#[must_use]
pub fn disk_path(upper: &Path, volume: usize) -> PathBuf {
    let mut name = upper.file_name().unwrap_or_default().to_owned();
    name.push(format!(".v{volume}"));
    upper.with_file_name(name)
}

/// Returns the size of a temporary folder in MiB.
#[must_use]
pub fn size_mb(folder: &TempDir) -> u64 {
    folder.size_mb.filter(|size| *size > 0).unwrap_or(TEMP_DIR_MB_DEFAULT)
}

/// Returns the temporary folders on the disk: their numbers and sizes in MiB.
pub fn disks(config: &MachineConfig) -> impl Iterator<Item = (usize, u64)> {
    let all = config.volumes.iter().enumerate();
    let folders = all.filter_map(|(index, one)| Some((index, one.temp_dir.as_ref()?)));
    let on_disk =
        folders.filter(|(_, folder)| folder.storage_type.unwrap_or_default() == StorageType::Disk);
    on_disk.map(|(index, folder)| (index, size_mb(folder)))
}

/// Returns the files of all containers and what they share; `images` are those of
/// [`MachineConfig::image_references`].
#[must_use]
pub fn specs(
    config: &MachineConfig,
    images: &[MountedImage],
    upper: &Path,
) -> (Vec<ContainerSpec>, Vec<SharedSpec>) {
    let lower = |index: usize| images.get(index).map(|image| image.root.clone());
    let number = |name: &str| config.volumes.iter().position(|volume| volume.name == name);
    let containers = config.containers.iter().enumerate().map(|(index, container)| {
        let mounts = container.mounts.iter().filter_map(|mount| {
            Some(SharedMount { volume: number(&mount.name)?, target: mount.path.clone() })
        });
        ContainerSpec {
            name: container.name.clone(),
            lower: lower(index).unwrap_or_default(),
            shared: mounts.collect(),
        }
    });
    let containers: Vec<ContainerSpec> = containers.collect();
    let mut next_image = containers.len();
    let mut shared = Vec::new();
    for (index, volume) in config.volumes.iter().enumerate() {
        shared.push(shared_spec(volume, disk_path(upper, index), || {
            let found = lower(next_image).unwrap_or_default();
            next_image += 1;
            found
        }));
    }
    (containers, shared)
}

fn shared_spec(
    volume: &VolumeConfig,
    disk: PathBuf,
    image: impl FnOnce() -> PathBuf,
) -> SharedSpec {
    if volume.image().is_some() {
        return SharedSpec::Image { lower: image() };
    }
    let folder = volume.temp_dir.clone().unwrap_or_default();
    match folder.storage_type.unwrap_or_default() {
        StorageType::Memory => SharedSpec::Memory { size_bytes: size_mb(&folder) << 20 },
        StorageType::Disk => SharedSpec::Disk { image: disk },
    }
}

/// Returns the container in which a program is run: the one that is wanted, else the first that
/// runs, else the first.
///
/// # Errors
/// Which there are, when the wanted one is none of them.
pub fn choose(
    containers: &[ContainerSummary],
    wanted: Option<String>,
) -> Result<Option<String>, String> {
    let Some(wanted) = wanted else {
        let runs = |one: &&ContainerSummary| one.state == ContainerState::Started.word();
        let chosen = containers.iter().find(runs).or_else(|| containers.first());
        return Ok(chosen.map(|one| one.name.clone()));
    };
    if containers.iter().any(|one| one.name == wanted) {
        return Ok(Some(wanted));
    }
    if containers.is_empty() {
        return Err("the machine has no containers; leave it out".to_owned());
    }
    let names: Vec<&str> = containers.iter().map(|one| one.name.as_str()).collect();
    Err(format!("there is no container `{wanted}`; allowed are {}", names.join(", ")))
}

/// Returns what all containers are started with.
///
/// # Errors
/// When one names no program, or a secret that the app does not have.
pub fn starts(
    record: &Record,
    version: &Version,
    images: &[MountedImage],
    given: (&Surroundings, &Given),
) -> Result<Vec<ContainerStart>, ApiError> {
    let config = &version.config;
    let each = config.containers.iter().enumerate();
    each.map(|(index, container)| {
        let path = format!("config.containers[{index}]");
        let image = images.get(index).ok_or_else(|| {
            ApiError::new(Code::Internal, format!("{path}.image: is not mounted"))
        })?;
        one(&path, container, (record, version, index), image, given)
    })
    .collect()
}

fn one(
    path: &str,
    container: &ContainerConfig,
    (record, version, index): (&Record, &Version, usize),
    image: &MountedImage,
    (around, given): (&Surroundings, &Given),
) -> Result<ContainerStart, ApiError> {
    let own = as_machine(container, version, index);
    // One that names secrets gets these and no others.
    let mut own_given = given.clone();
    if !container.secrets.is_empty() {
        own_given.secrets.clear();
    }
    let mut start = guest_start(record, &own, &image.config, around, &own_given)
        .map_err(|error| ApiError { error: format!("{path}: {}", error.error), ..error })?;
    let sources = Sources { record, version: &own, around, secrets: &given.secrets };
    let mut more = sources.variables(path, &container.env_from, &container.secrets)?;
    more.retain(|name, _| !is_platforms(name));
    start.env.extend(more);
    if let Some(user) = container.user.as_ref().filter(|user| !user.is_empty()) {
        start.user.clone_from(user);
    }
    start.stays = true;
    let config = &version.config;
    let restart = container.restart.clone().unwrap_or_default();
    let grace = container.stop_timeout(config_timeout(config));
    let position = |name: &str| config.containers.iter().position(|one| one.name == name);
    Ok(ContainerStart {
        start,
        depends_on: container
            .depends_on
            .iter()
            .filter_map(|one| {
                let container = position(&one.name)?;
                Some(Dependency { container, condition: one.condition.unwrap_or_default() })
            })
            .collect(),
        restart: restart.policy.unwrap_or_default(),
        retries_max: restart.max_retries.unwrap_or(RESTART_RETRIES_DEFAULT),
        stop_signal: container
            .stop
            .as_ref()
            .and_then(|stop| stop.signal)
            .map_or(0, |signal| signal.number()),
        stop_grace_ms: u64::try_from(grace.get().as_millis()).unwrap_or(u64::MAX),
    })
}

fn config_timeout(config: &MachineConfig) -> perch_types::GoDuration {
    config.stop_config.as_ref().and_then(|stop| stop.timeout).unwrap_or(STOP_TIMEOUT_DEFAULT)
}

/// Returns the version that a machine of this container alone would have.
fn as_machine(container: &ContainerConfig, version: &Version, index: usize) -> Version {
    let mut own = version.clone();
    own.config.init = InitConfig {
        exec: container.exec.clone(),
        entrypoint: container.entrypoint.clone(),
        cmd: container.cmd.clone(),
        ..InitConfig::default()
    };
    own.config.processes.clear();
    // The machine's files are in every container, but for those that it has itself.
    own.config.files.retain(|file| {
        let has = |one: &FileConfig| one.guest_path == file.guest_path;
        !container.files.iter().any(has)
    });
    own.config.files.extend(container.files.iter().cloned());
    own.config.env.extend(container.env.clone());
    own.config.image.clone_from(&container.image);
    if let Some(image) = index.checked_sub(1).and_then(|index| version.others.get(index)) {
        own.image = image.clone();
    }
    own
}

#[cfg(test)]
mod tests {
    use perch_types::image::ImageConfig;
    use perch_types::machine_config::{ContainerCondition, RestartPolicy};

    use super::*;
    use crate::machine::guest::tests::around;
    use crate::machine::record::tests::record;

    fn config() -> MachineConfig {
        serde_json::from_value(serde_json::json!({
            "env": {"A": "machine", "B": "machine"},
            "files": [{"guest_path": "/a", "raw_value": "YQ=="}, {"guest_path": "/b", "raw_value": "Yg=="}],
            "stop_config": {"timeout": "20s"},
            "containers": [
                {"name": "web", "image": "web:1", "cmd": ["serve"], "user": "web",
                 "env": {"B": "own", "FLY_MACHINE_ID": "forged"},
                 "env_from": [{"env_var": "APP", "field_ref": "app_name"}],
                 "depends_on": [{"name": "db", "condition": "healthy"}, {"name": "setup"}],
                 "files": [{"guest_path": "/b", "raw_value": "Yw=="}],
                 "mounts": [{"name": "scratch", "path": "/scratch"}, {"name": "site", "path": "/www"}]},
                {"name": "db", "image": "db:1", "restart": {"policy": "always"},
                 "stop": {"signal": "SIGQUIT", "timeout": "7s"}},
                {"name": "setup", "image": "setup:1"},
            ],
            "volumes": [{"name": "scratch", "temp_dir": {"size_mb": 8}},
                        {"name": "site", "image": "site:1"},
                        {"name": "fast", "temp_dir": {"storage_type": "memory"}}],
        }))
        .unwrap()
    }

    fn images() -> Vec<MountedImage> {
        let image = |name: &str| MountedImage {
            root: PathBuf::from(format!("/i/{name}")),
            config: ImageConfig { cmd: vec![format!("/{name}")], ..ImageConfig::default() },
        };
        ["web", "db", "setup", "site"].map(image).to_vec()
    }

    #[test]
    fn every_container_has_its_own_image_and_volumes_are_found_by_name() {
        let (containers, shared) = specs(&config(), &images(), Path::new("/m/root-1.img"));
        let lowers: Vec<_> =
            containers.iter().map(|one| (one.name.as_str(), one.lower.to_str().unwrap())).collect();
        assert_eq!(lowers, [("web", "/i/web"), ("db", "/i/db"), ("setup", "/i/setup")]);
        let mounts: Vec<_> =
            containers[0].shared.iter().map(|one| (one.volume, one.target.as_str())).collect();
        assert_eq!(mounts, [(0, "/scratch"), (1, "/www")]);
        assert_eq!(
            shared,
            [
                SharedSpec::Disk { image: "/m/root-1.img.v0".into() },
                SharedSpec::Image { lower: "/i/site".into() },
                SharedSpec::Memory { size_bytes: 64 << 20 },
            ]
        );
        assert_eq!(disks(&config()).collect::<Vec<_>>(), [(0, 8)]);
    }

    #[test]
    fn a_container_is_started_as_it_says_then_as_its_image_says() {
        let mut record = record();
        record.version.config = config();
        let starts =
            starts(&record, &record.version, &images(), (&around(), &Given::default())).unwrap();
        let [web, db, setup] = &starts[..] else {
            panic!("three are needed");
        };
        assert_eq!((web.start.argv.join(" "), web.start.user.as_str()), ("serve".into(), "web"));
        assert_eq!(db.start.argv, ["/db"]);
        let env = |name: &str| web.start.env.get(name).map(|value| value.expose().to_owned());
        assert_eq!(env("A").as_deref(), Some("machine"));
        assert_eq!(env("B").as_deref(), Some("own"));
        assert_eq!(env("APP").as_deref(), Some("web"));
        assert_eq!(env("FLY_MACHINE_ID").as_deref(), Some("00000000000abc"));
        assert_eq!(env("FLY_IMAGE_REF").as_deref(), Some("web:1"));
        assert!(starts.iter().all(|one| one.start.stays));
        let files = |one: &ContainerStart| {
            let all = one.start.files.iter();
            all.map(|file| format!("{} {}", file.path, file.content.expose())).collect::<Vec<_>>()
        };
        assert_eq!(
            (files(web), files(db)),
            (
                vec!["/a YQ==".to_owned(), "/b Yw==".to_owned()],
                vec!["/a YQ==".to_owned(), "/b Yg==".to_owned()],
            )
        );
        assert_eq!(
            web.depends_on,
            [
                Dependency { container: 1, condition: ContainerCondition::Healthy },
                Dependency { container: 2, condition: ContainerCondition::Started },
            ]
        );
        assert_eq!((web.stop_signal, web.stop_grace_ms), (0, 20_000));
        assert_eq!((db.stop_signal, db.stop_grace_ms), (3, 7_000));
        assert_eq!((db.restart, setup.restart), (RestartPolicy::Always, RestartPolicy::OnFailure));
    }

    #[test]
    fn a_program_runs_in_the_container_that_is_wanted_or_the_first_that_runs() {
        let all = [("setup", "stopped"), ("web", "started"), ("db", "started")];
        let all = all.map(|(name, state)| ContainerSummary {
            name: name.to_owned(),
            state: state.to_owned(),
        });
        let wanted = |name: &str| Some(name.to_owned());
        for (containers, asked, want) in [
            (&all[..], None, Ok(wanted("web"))),
            (&all[..], wanted("db"), Ok(wanted("db"))),
            (&all[..1], None, Ok(wanted("setup"))),
            (&[], None, Ok(None)),
            (&all[..], wanted("no"), Err("there is no container `no`; allowed are setup, web, db")),
            (&[], wanted("web"), Err("the machine has no containers; leave it out")),
        ] {
            assert_eq!(choose(containers, asked), want.map_err(str::to_owned));
        }
    }

    #[test]
    fn a_container_without_a_program_is_named() {
        let mut record = record();
        record.version.config = config();
        let mut images = images();
        images[1].config.cmd.clear();
        let error =
            starts(&record, &record.version, &images, (&around(), &Given::default())).unwrap_err();
        assert!(error.error.starts_with("config.containers[1]: "), "{}", error.error);
    }
}
