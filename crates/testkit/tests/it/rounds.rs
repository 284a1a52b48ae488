//! Rounds of mixed operations on machines and volumes, each with something killed at a random
//! moment; after each round everything is looked at: nothing lost, nothing twice, nothing left
//! over, and what the API says is what is.
//!
//! `PERCH_TEST_SEED` repeats a sequence of decisions (not of moments: two processes race),
//! `PERCH_TEST_ROUNDS` sets their number.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use perch_testkit::{Caller, Cloud};
use serde_json::{Value, json};

/// Rounds of each of the five tests in an ordinary run, together 200, and in a long one.
const ROUNDS: u64 = 40;
const ROUNDS_LONG: u64 = 200;
/// Machines at once, so that the test stays light.
const MACHINES_MAX: usize = 6;
/// Volumes at once, destroyed ones not counted, and in all: each takes room for a while.
const VOLUMES_MAX: usize = 3;
const VOLUMES_ALL_MAX: usize = 24;
/// The most that a volume is extended to.
const SIZE_GB_MAX: u64 = 4;
/// Operations of one round, each on a machine of its own.
const OPERATIONS_MAX: u64 = 4;
/// The longest that operations run before something is killed.
const MOMENT_MS_MAX: u64 = 250;

/// Numbers that a seed gives (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// What is done to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Create,
    Start,
    Stop,
    Restart,
    Update,
    Suspend,
    Metadata,
    Exec,
    Signal,
    Cordon,
    Uncordon,
    Destroy,
    /// A machine that has a volume, which the round chose.
    CreateMounting,
    VolumeCreate,
    VolumeFork,
    VolumeExtend,
    VolumeSnapshot,
    VolumeDestroy,
}

/// What is done to volumes.
const OF_VOLUMES: [Operation; 5] = [
    Operation::VolumeFork,
    Operation::VolumeExtend,
    Operation::VolumeSnapshot,
    Operation::VolumeSnapshot,
    Operation::VolumeDestroy,
];

/// Often what changes a machine's boots, seldom the rest.
const OPERATIONS: [Operation; 15] = [
    Operation::Start,
    Operation::Start,
    Operation::Stop,
    Operation::Stop,
    Operation::Restart,
    Operation::Restart,
    Operation::Update,
    Operation::Update,
    Operation::Suspend,
    Operation::Metadata,
    Operation::Exec,
    Operation::Signal,
    Operation::Cordon,
    Operation::Uncordon,
    Operation::Destroy,
];

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Host,
    Front,
    Server,
    Monitor,
    Init,
}

const VICTIMS: [Victim; 8] = [
    Victim::Host,
    Victim::Host,
    Victim::Server,
    Victim::Server,
    Victim::Server,
    Victim::Front,
    Victim::Monitor,
    Victim::Init,
];

/// What must be true of a machine after a round.
#[derive(Debug, Clone, Default)]
struct Known {
    /// A state in which it must be; nothing if an answer is missing.
    state: Option<&'static str>,
    /// A version that it must have.
    instance: Option<String>,
    /// Whether its end was asked for without an answer.
    may_be_gone: bool,
    /// Whether nobody was told that it is made: then it may be taken back, later too.
    is_nobodys: bool,
}

/// What must be true of a volume after a round.
#[derive(Debug, Clone, Default)]
struct KnownVolume {
    size_gb: u64,
    is_free: bool,
    snapshots: usize,
    may_be_gone: bool,
}

/// All that was asked for so far.
struct Model {
    image: String,
    machines: BTreeMap<String, Known>,
    volumes: BTreeMap<String, KnownVolume>,
    /// All that were ever made.
    volumes_all: usize,
    names: u64,
    gone: BTreeSet<String>,
}

/// An operation on its way, and what came of it.
struct Asked {
    operation: Operation,
    /// The machine, or the volume.
    machine: String,
    answer: Option<(u16, Value)>,
}

impl Operation {
    /// Returns whether it is done to a volume and to no machine.
    fn is_of_volume(self) -> bool {
        let makes = matches!(self, Self::VolumeCreate | Self::VolumeFork);
        makes || OF_VOLUMES.contains(&self)
    }
}

fn config(image: &str, version: u64) -> Value {
    json!({
        "image": image,
        "env": {"VERSION": version.to_string()},
        "restart": {"policy": "always"},
        "stop_config": {"signal": "SIGTERM", "timeout": "1s"},
    })
}

impl Model {
    /// Chooses what a round does, at most one thing to a machine.
    fn choose(&mut self, dice: &mut Dice) -> Vec<(Operation, String)> {
        let mut free: Vec<String> = self.machines.keys().cloned().collect();
        let mut volumes: Vec<String> = self.volumes.keys().cloned().collect();
        let mut chosen = Vec::new();
        for _ in 0..=dice.below(OPERATIONS_MAX) {
            if dice.below(4) == 0 {
                chosen.extend(self.choose_of_volumes(dice, &mut volumes));
                continue;
            }
            let count = self.machines.len() + chosen.len();
            if free.is_empty() || (count < MACHINES_MAX && dice.below(4) == 0) {
                self.names += 1;
                chosen.push((Operation::Create, format!("m{}", self.names)));
            } else {
                let index = usize::try_from(dice.below(free.len() as u64)).unwrap();
                chosen.push((*dice.pick(&OPERATIONS), free.swap_remove(index)));
            }
        }
        chosen
    }

    /// Chooses what is done to a volume, at most one thing to each.
    fn choose_of_volumes(
        &mut self,
        dice: &mut Dice,
        left: &mut Vec<String>,
    ) -> Option<(Operation, String)> {
        let is_room = self.volumes_all < VOLUMES_ALL_MAX && self.volumes.len() < VOLUMES_MAX;
        if is_room && (left.is_empty() || dice.below(3) == 0) {
            self.volumes_all += 1;
            return Some((Operation::VolumeCreate, String::new()));
        }
        if left.is_empty() {
            return None;
        }
        let index = usize::try_from(dice.below(left.len() as u64)).unwrap();
        let volume = left.swap_remove(index);
        let is_free = self.volumes[&volume].is_free;
        if is_free && self.machines.len() < MACHINES_MAX && dice.below(2) == 0 {
            return Some((Operation::CreateMounting, volume));
        }
        let operation = *dice.pick(&OF_VOLUMES);
        let makes = operation == Operation::VolumeFork;
        self.volumes_all += usize::from(makes && is_room);
        (is_room || !makes).then_some((operation, volume))
    }

    fn ask(&self, caller: &Caller, operation: Operation, machine: &str, round: u64) -> Asked {
        let of = format!("/v1/apps/web/machines/{machine}");
        let volumes = "/v1/apps/web/volumes".to_owned();
        let of_volume = format!("{volumes}/{machine}");
        // An update takes the machine's volume away.
        let mut new = config(&self.image, round);
        let none = json!({});
        let (method, path, body) = match operation {
            Operation::Create => {
                let path = "/v1/apps/web/machines".to_owned();
                ("POST", path, json!({"name": machine, "config": new}))
            }
            Operation::Start => ("POST", format!("{of}/start"), none),
            Operation::Stop => ("POST", format!("{of}/stop"), none),
            Operation::Restart => ("POST", format!("{of}/restart"), none),
            Operation::Update => ("POST", of, json!({"config": new})),
            Operation::Suspend => ("POST", format!("{of}/suspend"), none),
            Operation::Metadata => {
                ("POST", format!("{of}/metadata/round"), json!({"value": round.to_string()}))
            }
            Operation::Exec => {
                ("POST", format!("{of}/exec"), json!({"command": ["/perch-testserver"]}))
            }
            Operation::Signal => ("POST", format!("{of}/signal"), json!({"signal": "SIGKILL"})),
            Operation::Cordon => ("POST", format!("{of}/cordon"), none),
            Operation::Uncordon => ("POST", format!("{of}/uncordon"), none),
            Operation::Destroy => ("DELETE", format!("{of}?force=true"), Value::Null),
            Operation::CreateMounting => {
                new["mounts"] = json!([{"volume": machine, "path": "/data"}]);
                ("POST", "/v1/apps/web/machines".to_owned(), json!({"config": new}))
            }
            Operation::VolumeCreate => ("POST", volumes, json!({"name": "data", "size_gb": 1})),
            Operation::VolumeFork => {
                ("POST", volumes, json!({"name": "fork", "source_volume_id": machine}))
            }
            Operation::VolumeExtend => {
                let size_gb = (self.volumes[machine].size_gb + 1).min(SIZE_GB_MAX);
                ("PUT", format!("{of_volume}/extend"), json!({"size_gb": size_gb}))
            }
            Operation::VolumeSnapshot => ("POST", format!("{of_volume}/snapshots"), none),
            Operation::VolumeDestroy => ("DELETE", of_volume, Value::Null),
        };
        let answer = caller.call(method, &path, &body).ok();
        let answer = answer.map(|answer| {
            let body = serde_json::from_slice(&answer.body).unwrap_or_default();
            (answer.status, body)
        });
        Asked { operation, machine: machine.to_owned(), answer }
    }

    /// Notes what must be true after an answer, or what may be after none.
    fn learn(&mut self, asked: &Asked) {
        let Asked { operation, machine, answer } = asked;
        // Whatever the server says while a part of it is killed, it may have begun.
        let done = answer.as_ref().filter(|(status, _)| *status < 300);
        let refused = answer.as_ref().is_some_and(|(status, _)| (400..500).contains(status));
        if operation.is_of_volume() {
            return self.learn_of_volume(asked);
        }
        if matches!(operation, Operation::Create | Operation::CreateMounting) {
            if let Some((_, body)) = done {
                let id = body["id"].as_str().unwrap().to_owned();
                let known = Known { state: Some("started"), ..Known::default() };
                self.machines.insert(id, known);
            }
            return;
        }
        let known = self.machines.get_mut(machine).unwrap();
        let before = known.state;
        let state = match operation {
            Operation::Start | Operation::Restart => Some("started"),
            Operation::Stop => Some("stopped"),
            Operation::Suspend => Some("suspended"),
            // What it becomes depends on what it was.
            Operation::Update => None,
            Operation::Metadata | Operation::Exec | Operation::Cordon | Operation::Uncordon => {
                before
            }
            // One that is frozen dies when it is thawed, or now: both are right.
            Operation::Signal => before.filter(|state| *state != "suspended"),
            Operation::Destroy => {
                if done.is_some() {
                    self.gone.insert(machine.clone());
                    self.machines.remove(machine);
                } else if !refused {
                    known.may_be_gone = true;
                    known.state = None;
                }
                return;
            }
            _ => return,
        };
        known.state = match (done, refused) {
            (Some(_), _) => state,
            (None, true) => before,
            (None, false) => None,
        };
        if *operation == Operation::Update && !refused {
            known.instance =
                done.and_then(|(_, body)| body["instance_id"].as_str().map(str::to_owned));
        }
    }

    fn learn_of_volume(&mut self, asked: &Asked) {
        let Asked { operation, machine: id, answer } = asked;
        let done = answer.as_ref().filter(|(status, _)| *status < 300).map(|(_, body)| body);
        let refused = answer.as_ref().is_some_and(|(status, _)| (400..500).contains(status));
        if matches!(operation, Operation::VolumeCreate | Operation::VolumeFork) {
            if let Some(body) = done {
                let size_gb = body["size_gb"].as_u64().unwrap();
                let known = KnownVolume { size_gb, ..KnownVolume::default() };
                self.volumes.insert(body["id"].as_str().unwrap().to_owned(), known);
            }
            return;
        }
        let known = self.volumes.get_mut(id).unwrap();
        match (operation, done) {
            (Operation::VolumeExtend, Some(body)) => {
                known.size_gb = body["volume"]["size_gb"].as_u64().unwrap();
            }
            (Operation::VolumeSnapshot, Some(_)) => known.snapshots += 1,
            (Operation::VolumeDestroy, Some(_)) => {
                self.gone.insert(id.clone());
                self.volumes.remove(id);
            }
            (Operation::VolumeDestroy, None) => known.may_be_gone = !refused,
            _ => {}
        }
    }

    /// Compares what the API says of volumes with what must be, and takes over what may have
    /// become.
    fn compare_volumes(&mut self, cloud: &Cloud) -> Vec<String> {
        let mut wrong = Vec::new();
        let list = cloud.must("GET", "/v1/apps/web/volumes", &Value::Null).unwrap();
        let mut found = BTreeMap::new();
        for volume in list.as_array().unwrap().iter().filter(|one| one["state"] == "created") {
            let id = volume["id"].as_str().unwrap().to_owned();
            if self.gone.contains(&id) {
                wrong.push(format!("volume {id} was destroyed and is there"));
            }
            let snapshots = format!("/v1/apps/web/volumes/{id}/snapshots");
            let snapshots = cloud.call("GET", &snapshots, &Value::Null).unwrap();
            if snapshots.status == 404 && !self.volumes.contains_key(&id) {
                // Nobody was told that it is made; it is taken up soon.
                continue;
            }
            let snapshots = snapshots.json();
            let now = KnownVolume {
                size_gb: volume["size_gb"].as_u64().unwrap(),
                is_free: volume["attached_machine_id"].is_null(),
                snapshots: snapshots.as_array().unwrap().len(),
                may_be_gone: false,
            };
            found.insert(id, now);
        }
        for (id, known) in &self.volumes {
            match found.get(id) {
                None if !known.may_be_gone => wrong.push(format!("volume {id} is lost")),
                Some(now) if now.size_gb < known.size_gb || now.snapshots < known.snapshots => {
                    wrong.push(format!("volume {id} is {now:?}, expected {known:?}"));
                }
                _ => {}
            }
        }
        self.volumes = found;
        wrong
    }

    /// Compares what the API says with what must be, and takes over what may have become.
    fn compare(&mut self, machines: &[Value], was_inside_killed: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut names = BTreeSet::new();
        let mut found = BTreeMap::new();
        for machine in machines {
            let id = machine["id"].as_str().unwrap().to_owned();
            if !names.insert(machine["name"].as_str().unwrap().to_owned()) {
                wrong.push(format!("there are two machines called {}", machine["name"]));
            }
            if self.gone.contains(&id) {
                wrong.push(format!("machine {id} was destroyed and is there"));
            }
            found.insert(id, machine);
        }
        for (id, known) in &self.machines {
            let Some(machine) = found.get(id) else {
                if !known.may_be_gone && !known.is_nobodys {
                    wrong.push(format!("machine {id} is lost"));
                }
                continue;
            };
            let state = machine["state"].as_str().unwrap();
            // A suspended machine whose monitor is killed is started again or stopped.
            let is_excused = was_inside_killed && known.state == Some("suspended");
            if known.state.is_some_and(|wanted| wanted != state) && !is_excused {
                wrong.push(format!("machine {id} is {state}, expected {:?}", known.state));
            }
            let instance = machine["instance_id"].as_str().map(str::to_owned);
            if known.instance.is_some() && known.instance != instance {
                wrong.push(format!("machine {id} is version {instance:?}, expected {known:?}"));
            }
        }
        self.machines = found
            .into_iter()
            .map(|(id, machine)| {
                let states = ["started", "stopped", "suspended", "failed"];
                let state = states.into_iter().find(|state| machine["state"] == *state);
                let instance = machine["instance_id"].as_str().map(str::to_owned);
                let is_nobodys = self.machines.get(&id).is_none_or(|known| known.is_nobodys);
                (id, Known { state, instance, may_be_gone: false, is_nobodys })
            })
            .collect();
        wrong
    }
}

fn kill(cloud: &mut Cloud, victim: Victim, machine: Option<&String>) -> bool {
    match victim {
        Victim::Host => cloud.kill_role("host").unwrap(),
        Victim::Front => cloud.kill_role("front").unwrap(),
        Victim::Server => {
            cloud.kill().unwrap();
            cloud.boot().unwrap();
        }
        Victim::Monitor | Victim::Init => {
            let who = if matches!(victim, Victim::Monitor) { "monitor" } else { "init" };
            return machine.is_some_and(|id| cloud.kill_inside(id, who).unwrap());
        }
    }
    false
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Makes tests of their names: each has a cloud and a seed of its own, so that none takes long.
macro_rules! tests_of_rounds {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            rounds_lose_nothing_and_leak_nothing(stringify!($name));
        }
    )+};
}

tests_of_rounds! {
    mixed_operations_with_kills_lose_nothing_and_leak_nothing,
    mixed_operations_with_kills_lose_nothing_and_leak_nothing_once_more,
    mixed_operations_with_kills_lose_nothing_and_leak_nothing_a_third_time,
    mixed_operations_with_kills_lose_nothing_and_leak_nothing_a_fourth_time,
    mixed_operations_with_kills_lose_nothing_and_leak_nothing_a_fifth_time,
}

fn rounds_lose_nothing_and_leak_nothing(test: &str) {
    let Some(mut cloud) = Cloud::start(test).unwrap() else {
        return;
    };
    let seed = number("PERCH_TEST_SEED").unwrap_or_else(|| RandomState::new().hash_one(test));
    let is_long = std::env::var_os("PERCH_TEST_LONG").is_some();
    let rounds = number("PERCH_TEST_ROUNDS").unwrap_or(if is_long { ROUNDS_LONG } else { ROUNDS });
    let repeat = format!("PERCH_TEST_SEED={seed} PERCH_TEST_ROUNDS={rounds}");
    let mut dice = Dice(seed);
    let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
    let mut model = Model {
        image,
        machines: BTreeMap::new(),
        volumes: BTreeMap::new(),
        volumes_all: 0,
        names: 0,
        gone: BTreeSet::new(),
    };
    let mut accepted = 0;
    for round in 0..rounds {
        let chosen = model.choose(&mut dice);
        let victim = *dice.pick(&VICTIMS);
        let moment = Duration::from_millis(dice.below(MOMENT_MS_MAX));
        let ids: Vec<String> = model.machines.keys().cloned().collect();
        let machine = (!ids.is_empty()).then(|| dice.pick(&ids).clone());
        let caller = cloud.caller();
        let mut was_inside_killed = false;
        let asked: Vec<Asked> = std::thread::scope(|scope| {
            let (model, caller) = (&model, &caller);
            let threads: Vec<_> = chosen
                .iter()
                .map(|(operation, id)| {
                    scope.spawn(move || model.ask(caller, *operation, id, round))
                })
                .collect();
            // The moment itself is what is tested: whatever has come about by then.
            std::thread::sleep(moment);
            was_inside_killed = kill(&mut cloud, victim, machine.as_ref());
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for one in &asked {
            accepted += u64::from(one.answer.as_ref().is_some_and(|(status, _)| *status < 300));
            model.learn(one);
        }
        let what = || {
            let answers: Vec<_> = asked
                .iter()
                .map(|one| {
                    let status = one.answer.as_ref().map(|(status, _)| *status);
                    (one.operation, one.machine.as_str(), status)
                })
                .collect();
            format!("{repeat}: round {round}, {victim:?} killed after {moment:?}: {answers:?}")
        };
        let agreed = cloud.agrees("web").map_err(|error| format!("{}: {error:#}", what()));
        let machines = agreed.unwrap();
        let mut wrong = model.compare(&machines, was_inside_killed);
        wrong.extend(model.compare_volumes(&cloud));
        assert!(wrong.is_empty(), "{}: {wrong:#?}\n{machines:#?}", what());
    }
    assert!(accepted >= rounds, "{repeat}: only {accepted} operations were accepted");
    cloud.finish().unwrap();
}
