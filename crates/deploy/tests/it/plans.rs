//! Plans of machines and files, as they are shown.
//!
//! Never a call.

use perch_deploy::{Op, Options, Plan, parse, plan};
use perch_types::api::Machine;
use perch_types::{MachineConfig, MachineState};

use crate::fake::World;

const WEB: &str = "app = 'web'\nprimary_region = 'local'\n[http_service]\ninternal_port = 8080\n";

fn deployed(group: &str, release: &str) -> MachineConfig {
    let mut config = parse(WEB).unwrap().to_machine_config("app", "web:1").unwrap();
    config.metadata.insert("fly_process_group".to_owned(), group.to_owned());
    config.metadata.insert("fly_release_version".to_owned(), release.to_owned());
    config
}

fn machines(list: &[(MachineState, MachineConfig)]) -> Vec<Machine> {
    let mut world = World::default();
    for (state, config) in list {
        world.add_machine(*state, config.clone());
    }
    world.machines
}

fn planned(list: &[(MachineState, MachineConfig)], file: &str) -> Plan {
    plan(&machines(list), &parse(file).unwrap(), "web:2", &Options::default()).unwrap()
}

#[test]
fn a_new_app_gets_one_machine_for_each_group() {
    let one = planned(&[], WEB);
    insta::assert_snapshot!(one, @"
    release 1 with the image web:2
    [1/1] create a machine for `app` in local
    ");
    let two = planned(&[], "[processes]\nweb = 'serve'\nworker = 'work'\n");
    insta::assert_snapshot!(two, @"
    release 1 with the image web:2
    [1/2] create a machine for `web`
    [2/2] create a machine for `worker`
    ");
    let options = Options { region: Some("ams".to_owned()), machines_per_group: 2 };
    let many = plan(&[], &parse(WEB).unwrap(), "web:2", &options).unwrap();
    assert_eq!(many.ops.len(), 2);
    assert!(many.to_string().contains("in ams"));
}

#[test]
fn running_machines_come_first_and_strangers_are_left_alone() {
    let plan = planned(
        &[
            (MachineState::Stopped, deployed("app", "6")),
            (MachineState::Started, deployed("app", "7")),
            (MachineState::Started, deployed("old", "2")),
            (MachineState::Started, MachineConfig::default()),
            (MachineState::Destroyed, deployed("app", "9")),
            (MachineState::Failed, deployed("app", "1")),
        ],
        WEB,
    );
    insta::assert_snapshot!(plan, @"
    release 8 with the image web:2
    [1/4] update machine 00000000000002 of `app`
    [2/4] update machine 00000000000006 of `app`
    [3/4] update machine 00000000000001 of `app`, which stays stopped
    [4/4] destroy machine 00000000000003: `old` is no longer in the file
    ");
}

#[test]
fn an_update_keeps_what_the_file_does_not_say() {
    let mut old = deployed("app", "1");
    old.env.insert("GONE".to_owned(), "1".to_owned());
    old.metadata.insert("mine".to_owned(), "kept".to_owned());
    old.other.insert("from_the_future".to_owned(), true.into());
    old.resolve_defaults();
    let plan = planned(&[(MachineState::Started, old.clone())], WEB);
    let [Op::Update { request, before, .. }] = plan.ops.as_slice() else { panic!("{plan}") };
    let new = &request.config;
    assert_eq!(new.image, "web:2");
    assert_eq!(new.env.get("GONE"), None);
    assert_eq!(new.metadata["mine"], "kept");
    assert_eq!(new.metadata["fly_release_version"], "2");
    assert_eq!(new.other, old.other);
    assert_eq!(new.guest, old.guest);
    assert_eq!(new.restart, None);
    assert_eq!(before.config, old);
    assert!(request.current_version.is_some());
}

#[test]
fn as_many_are_updated_at_once_as_the_file_allows() {
    let running = |count: usize| vec![(MachineState::Started, deployed("app", "1")); count];
    for (count, said, batches) in [
        (1, "", vec![1]),
        (3, "", vec![1, 1, 1]),
        // A third of seven, rounded up.
        (7, "", vec![1, 3, 3]),
        (4, "max_unavailable = 0.5", vec![1, 2, 1]),
        (5, "max_unavailable = 2", vec![1, 2, 2]),
        (5, "max_unavailable = 2.9", vec![1, 2, 2]),
        (3, "max_unavailable = 100", vec![1, 2]),
        (3, "max_unavailable = 1", vec![1, 1, 1]),
        (3, "max_unavailable = 0", vec![1, 1, 1]),
        (3, "max_unavailable = -1", vec![1, 1, 1]),
        (20, "max_unavailable = 1.0e9", vec![1, 8, 8, 3]),
    ] {
        let file = format!("{WEB}[deploy]\n{said}\n");
        assert_eq!(planned(&running(count), &file).batches, batches, "{count} {said}");
    }
    // Each group for itself; what does not run, and what is new or goes, one after another.
    let mut list = running(3);
    list.extend(vec![(MachineState::Started, deployed("work", "1")); 2]);
    list.push((MachineState::Stopped, deployed("app", "1")));
    list.push((MachineState::Started, deployed("gone", "1")));
    let file = "[deploy]\nmax_unavailable = 2\n[processes]\napp = 'a'\nnew = 'b'\nwork = 'c'\n";
    let plan = planned(&list, file);
    assert_eq!(plan.batches, [1, 2, 1, 1, 1, 1, 1]);
    insta::assert_snapshot!(plan);
}

#[test]
fn a_machine_with_a_mount_is_made_with_its_volume_and_an_update_keeps_the_one_it_has() {
    let file = format!("{WEB}[mounts]\nsource = 'data'\ndestination = '/data'\n");
    let plan = planned(&[], &file);
    let [Op::Create { request, volumes, .. }] = plan.ops.as_slice() else {
        panic!("{plan}");
    };
    assert_eq!((volumes[0].name.as_str(), volumes[0].size_gb), ("data", Some(1)));
    assert_eq!(volumes[0].region.as_deref(), Some("local"));
    assert_eq!((request.config.mounts[0].name.as_str(), request.config.mounts.len()), ("data", 1));

    let mut with = deployed("app", "1");
    let mut mount = request.config.mounts[0].clone();
    mount.volume = "vol_0123456789abcdef".to_owned();
    with.mounts = vec![mount.clone()];
    let plan = planned(
        &[(MachineState::Started, with), (MachineState::Started, deployed("app", "1"))],
        &file,
    );
    let [Op::Update { request, volumes, .. }, Op::Update { volumes: lacking, .. }] =
        plan.ops.as_slice()
    else {
        panic!("{plan}");
    };
    assert_eq!((&request.config.mounts, volumes.len()), (&vec![mount], 0));
    assert_eq!(lacking.len(), 1);
}
