//! Plans carried out: all goes well, and a failure at every operation.
//!
//! Never waits longer than the limits of [`limits`].

use std::time::Duration;

use perch_client::{Address, Api};
use perch_deploy::{Deployer, Error, Event, Limits, Options, Outcome, parse, plan};
use perch_types::{ApiError, Code, MachineConfig, MachineState, Secret};

use crate::fake::{Fake, Fate, TOKEN};

const WEB: &str = "app = 'web'\n[http_service]\ninternal_port = 8080\n";

fn limits() -> Limits {
    Limits {
        ready: Duration::from_millis(600),
        poll: Duration::from_millis(20),
        settle: Duration::from_millis(100),
        wrong_listener: Duration::from_millis(200),
        log: Duration::from_secs(2),
        undo: Duration::from_millis(200),
        answers: Duration::from_millis(600),
        quiet: Duration::from_millis(100),
    }
}

fn deployer(fake: &Fake) -> Deployer {
    let address: Address = fake.url.parse().unwrap();
    let api = Api::new(&address, &Secret::new(TOKEN)).unwrap();
    Deployer::new(api, "web".parse().unwrap(), limits())
}

async fn deploy(fake: &Fake, file: &str) -> (Result<Outcome, Error>, Vec<Event>) {
    let deployer = deployer(fake);
    let machines = deployer.machines().await.unwrap();
    let plan = plan(&machines, &parse(file).unwrap(), "web:2", &Options::default()).unwrap();
    let mut events = Vec::new();
    let result = deployer.apply(&plan, &mut events).await;
    (result, events)
}

fn old(group: &str) -> MachineConfig {
    let mut config = parse(WEB).unwrap().to_machine_config("app", "web:1").unwrap();
    config.metadata.insert("fly_process_group".to_owned(), group.to_owned());
    config
}

#[tokio::test]
async fn a_new_app_comes_up() {
    let fake = Fake::start().with_app("web");
    fake.world().fates.insert("web:2".to_owned(), Fate::Ready);
    let (result, events) = deploy(&fake, WEB).await;
    assert_eq!(result.unwrap().machines.len(), 1);
    assert_eq!(fake.changes(), ["POST /v1/apps/web/machines"]);
    assert!(
        matches!(
            &events[..],
            [Event::Started { index: 1, total: 1, .. }, Event::Done { result: "ready", .. }]
        ),
        "{events:?}"
    );
    assert_eq!(fake.world().requests[0].config.metadata["fly_release_version"], "1");
}

#[tokio::test]
async fn a_machine_without_checks_is_taken_for_good_after_a_while() {
    let fake = Fake::start().with_app("web");
    let begun = std::time::Instant::now();
    let (result, events) = deploy(&fake, WEB).await;
    result.unwrap();
    assert!(begun.elapsed() >= limits().settle);
    assert!(matches!(events.last(), Some(Event::Done { result: "started", .. })));
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_reported_with_its_last_lines() {
    let fake = Fake::start().with_app("web");
    fake.world().fates.insert("web:2".to_owned(), Fate::Exits(3));
    fake.world().log = (0..50).map(|n| format!("line {n}")).collect();
    let begun = std::time::Instant::now();
    let (result, events) = deploy(&fake, WEB).await;
    let error = result.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2));
    insta::assert_snapshot!(error, @"program of machine `00000000000001` ended: exit code 3");
    assert_eq!(error.code(), Some(Code::ExitedAtOnce));
    assert_eq!(error.log().len(), perch_deploy::LOG_LINES_MAX);
    // Nothing half-made is left.
    assert_eq!(fake.world().machines, []);
    let undone = events.iter().any(|it| matches!(it, Event::Undone { text: "is removed", .. }));
    assert!(undone, "{events:?}");
}

#[tokio::test]
async fn every_way_not_to_come_up_has_its_words() {
    let mut words = Vec::new();
    for fate in [
        Fate::OutOfMemory,
        Fate::Exits(0),
        Fate::NotReady("listens on 127.0.0.1:8080, expected 0.0.0.0:8080".to_owned()),
        Fate::NotReady(String::new()),
        Fate::Failed("no program `serve` in the image".to_owned()),
        Fate::Gone,
    ] {
        let fake = Fake::start().with_app("web");
        fake.world().fates.insert("web:2".to_owned(), fate);
        let (result, _) = deploy(&fake, WEB).await;
        let error = result.unwrap_err();
        words.push(format!("{error}\n  hint: {}", error.hint().unwrap_or_default()));
        assert_eq!(fake.world().machines, []);
    }
    insta::assert_snapshot!(words.join("\n"));
}

#[tokio::test]
async fn a_program_that_ends_well_and_shall_not_restart_is_good() {
    let fake = Fake::start().with_app("web");
    fake.world().fates.insert("web:2".to_owned(), Fate::Exits(0));
    let (result, _) = deploy(&fake, "app = 'web'\n[[restart]]\npolicy = 'never'\n").await;
    result.unwrap();
}

#[tokio::test]
async fn what_served_before_is_put_back() {
    let fake = Fake::start().with_app("web");
    let id = fake.world().add_machine(MachineState::Started, old("app"));
    fake.world().fates.insert("web:2".to_owned(), Fate::Exits(1));
    let (result, events) = deploy(&fake, WEB).await;
    assert!(matches!(result.unwrap_err(), Error::Exited { .. }));
    let told = Event::Undone { machine: id.clone(), text: "runs the version before again" };
    assert!(events.contains(&told), "{events:?}");
    let world = fake.world();
    let machine = world.machine(&id).unwrap();
    assert_eq!(machine.config, old("app"));
    assert_eq!(machine.state, MachineState::Started);
    assert_eq!(world.requests.len(), 2);
}

#[tokio::test]
async fn what_cannot_be_put_back_is_said_with_what_to_run() {
    // The version before does not come up any more either.
    let fake = Fake::start().with_app("web");
    fake.world().add_machine(MachineState::Started, old("app"));
    fake.world().fates.insert("web:2".to_owned(), Fate::Exits(1));
    fake.world().fates.insert("web:1".to_owned(), Fate::Exits(5));
    let (result, events) = deploy(&fake, WEB).await;
    let error = result.unwrap_err();
    let mut words = vec![format!("{error}\n  hint: {}", error.hint().unwrap_or_default())];
    assert!(!events.iter().any(|it| matches!(it, Event::Undone { .. })), "{events:?}");
    assert_eq!(error.code(), Some(Code::ExitedAtOnce));

    // A new machine that the server does not remove, however patiently it is asked.
    let fake = Fake::start().with_app("web");
    fake.world().fates.insert("web:2".to_owned(), Fate::Exits(1));
    let away = ApiError::new(Code::Unavailable, "the host is away");
    fake.world().refuse.push(("DELETE /v1/apps/web/machines".to_owned(), away));
    let (result, _) = deploy(&fake, WEB).await;
    let error = result.unwrap_err();
    words.push(format!("{error}\n  hint: {}", error.hint().unwrap_or_default()));
    let asked = fake.changes().iter().filter(|call| call.starts_with("DELETE")).count();
    assert!(asked > 1, "{asked}");
    insta::assert_snapshot!(words.join("\n"));
}

#[tokio::test]
async fn a_failure_at_any_operation_leaves_the_rest_alone() {
    // Operations: update 1, update 2, update 3 (stopped), destroy 4.
    for (index, path) in ["01", "02", "03", "04"].into_iter().enumerate() {
        let fake = Fake::start().with_app("web");
        for (state, group) in [
            (MachineState::Started, "app"),
            (MachineState::Started, "app"),
            (MachineState::Stopped, "app"),
            (MachineState::Started, "gone"),
        ] {
            fake.world().add_machine(state, old(group));
        }
        let method = if index == 3 { "DELETE" } else { "POST" };
        let refused = format!("{method} /v1/apps/web/machines/000000000000{path}");
        let error = ApiError::new(Code::Internal, "it broke");
        fake.world().refuse.push((refused, error));
        let (result, events) = deploy(&fake, WEB).await;
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Call { .. }), "{error}");
        assert_eq!(error.code(), Some(Code::Internal));
        let done = events.iter().filter(|it| matches!(it, Event::Done { .. })).count();
        assert_eq!(done, index);
        // Each machine that was not reached runs what it ran.
        let world = fake.world();
        for machine in world.machines.iter().skip(index) {
            assert_eq!(machine.config.image, "web:1", "operation {index}");
        }
        assert_eq!(world.machines.len(), 4);
    }
}

#[tokio::test]
async fn a_second_deploy_in_between_is_noticed() {
    let fake = Fake::start().with_app("web");
    let id = fake.world().add_machine(MachineState::Started, old("app"));
    let deployer = deployer(&fake);
    let machines = deployer.machines().await.unwrap();
    let plan = plan(&machines, &parse(WEB).unwrap(), "web:2", &Options::default()).unwrap();
    let (other, _) = deploy(&fake, WEB).await;
    other.unwrap();
    let error = deployer.apply(&plan, &mut Vec::new()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::PreconditionFailed));
    assert_eq!(fake.world().machine(&id).unwrap().config.image, "web:2");
}

#[tokio::test]
async fn a_version_that_answers_worse_than_the_one_before_is_put_back() {
    for (before, after, is_refused) in [
        ((1000, 0), (30, 9), true),
        ((1000, 0), (6, 6), true),
        ((1000, 300), (30, 9), false),
        ((1000, 0), (30, 3), false),
        // Nobody knows how the one before did.
        ((10, 0), (30, 30), false),
        // Nobody asks the new one.
        ((1000, 0), (0, 0), false),
    ] {
        let fake = Fake::start().with_app("web");
        let id = fake.world().add_machine(MachineState::Started, old("app"));
        fake.world().add_machine(MachineState::Started, old("app"));
        fake.world().answers.insert("web:1".to_owned(), before);
        fake.world().answers.insert("web:2".to_owned(), after);
        let (result, events) = deploy(&fake, WEB).await;
        let image = fake.world().machine(&id).unwrap().config.image.clone();
        if !is_refused {
            assert_eq!(result.unwrap().machines.len(), 2, "{before:?} {after:?}");
            assert_eq!(image, "web:2");
            continue;
        }
        let error = result.unwrap_err();
        assert_eq!(error.code(), Some(Code::AnswersWorse), "{error}");
        let (count, errors) = after;
        assert!(error.to_string().contains(&format!("{errors} of {count} requests")), "{error}");
        assert_eq!(image, "web:1", "{before:?} {after:?}");
        assert!(
            matches!(events.last(), Some(Event::Halted { done: 0, untouched: 1 })),
            "{events:?}"
        );
    }
}

#[tokio::test]
async fn immediate_looks_at_nothing() {
    let fake = Fake::start().with_app("web");
    fake.world().fates.insert("web:2".to_owned(), Fate::Exits(1));
    let (result, _) = deploy(&fake, &format!("{WEB}[deploy]\nstrategy = 'immediate'\n")).await;
    result.unwrap();
}

const TWO_AT_ONCE: &str =
    "app = 'web'\n[http_service]\ninternal_port = 8080\n[deploy]\nmax_unavailable = 2\n";

#[tokio::test]
async fn a_batch_is_carried_out_at_once_after_the_first_machine() {
    let fake = Fake::start().with_app("web");
    for _ in 0..3 {
        fake.world().add_machine(MachineState::Started, old("app"));
    }
    fake.world().fates.insert("web:2".to_owned(), Fate::Ready);
    let (result, events) = deploy(&fake, TWO_AT_ONCE).await;
    assert_eq!(result.unwrap().machines.len(), 3);
    let order: Vec<String> = events
        .iter()
        .filter_map(|event| match event {
            Event::Started { index, .. } => Some(format!("begin {index}")),
            Event::Done { .. } => Some("end".to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["begin 1", "end", "begin 2", "begin 3", "end", "end"]);
}

#[tokio::test]
async fn a_failure_within_a_batch_tells_of_the_others_and_ends_the_deploy() {
    let fake = Fake::start().with_app("web");
    for _ in 0..5 {
        fake.world().add_machine(MachineState::Started, old("app"));
    }
    fake.world().fates.insert("web:2".to_owned(), Fate::Ready);
    for machine in ["02", "03"] {
        let call = format!("POST /v1/apps/web/machines/000000000000{machine}");
        let error = ApiError::new(Code::Internal, format!("{machine} broke"));
        fake.world().refuse.push((call, error));
    }
    let (result, events) = deploy(&fake, TWO_AT_ONCE).await;
    let error = std::error::Error::source(&result.unwrap_err()).unwrap().to_string();
    assert_eq!(error, "02 broke");
    let [.., Event::Failed { index: 3, because, .. }, Event::Halted { done: 1, untouched: 2 }] =
        events.as_slice()
    else {
        panic!("{events:?}");
    };
    assert!(because.contains("03 broke"), "{because}");
    for machine in fake.world().machines.iter().skip(3) {
        assert_eq!(machine.config.image, "web:1");
    }
}

#[tokio::test]
async fn a_wrong_listener_is_reported_soon_and_a_slow_start_is_waited_for() {
    for (said, soon) in [
        ("listens on 127.0.0.1:8080, expected 0.0.0.0:8080", true),
        ("nothing listens on 0.0.0.0:8080", false),
    ] {
        let fake = Fake::start().with_app("web");
        fake.world().fates.insert("web:2".to_owned(), Fate::NotReady(said.to_owned()));
        let begun = std::time::Instant::now();
        let (result, _) = deploy(&fake, WEB).await;
        let took = begun.elapsed();
        assert!(matches!(result, Err(Error::NotReady { .. })), "{result:?}");
        assert!(took >= limits().wrong_listener);
        assert_eq!(took < limits().ready, soon, "{said}: {took:?}");
    }
}
