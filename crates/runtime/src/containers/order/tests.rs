//! Tables of what follows what.

use super::*;

fn container(depends_on: &[(usize, ContainerCondition)]) -> ContainerStart {
    ContainerStart {
        start: perch_types::guest::GuestStart::default(),
        depends_on: depends_on
            .iter()
            .map(|(container, condition)| Dependency {
                container: *container,
                condition: *condition,
            })
            .collect(),
        restart: RestartPolicy::No,
        retries_max: 2,
        stop_signal: 0,
        stop_grace_ms: 5_000,
    }
}

fn exit(code: i32) -> Ended {
    Ended { code, signal: None }
}

fn states(order: &Order) -> Vec<&'static str> {
    order.statuses().iter().map(|one| one.state.word()).collect()
}

use ContainerCondition::{ExitedSuccessfully, Healthy, Started};

#[test]
fn a_container_starts_when_all_that_it_waits_for_has_come() {
    let mut order = Order::new(&[
        container(&[(1, Healthy), (2, ExitedSuccessfully)]),
        container(&[]),
        container(&[(1, Started)]),
    ]);
    assert_eq!(order.step(Event::Begin, 0), [Action::Start(1)]);
    assert_eq!(states(&order), ["created", "starting", "created"]);
    assert_eq!(order.step(Event::Started(1), 1), [Action::Start(2)]);
    assert_eq!(order.step(Event::Started(2), 2), []);
    assert_eq!(order.step(Event::Health(1, 1, true), 3), []);
    assert_eq!(order.step(Event::Ended(2, exit(0)), 4), [Action::Start(0)]);
    assert_eq!(order.step(Event::Started(0), 5), []);
    assert_eq!(states(&order), ["started", "started", "stopped"]);
}

#[test]
fn what_can_never_start_does_not_keep_the_machine() {
    let mut order = Order::new(&[
        container(&[]),
        container(&[(0, ExitedSuccessfully)]),
        container(&[(1, Started)]),
        container(&[(0, Healthy)]),
    ]);
    assert_eq!(order.step(Event::Begin, 0), [Action::Start(0)]);
    order.step(Event::Started(0), 1);
    let finish = Finish { container: 0, ended: exit(3), not_executable: false };
    assert_eq!(order.step(Event::Ended(0, exit(3)), 2), [Action::Finish(finish)]);
    assert_eq!(states(&order), ["failed", "stopped", "stopped", "stopped"]);
}

#[test]
fn the_machine_lives_as_long_as_one_container_and_ends_as_the_first_that_failed() {
    let mut order = Order::new(&[container(&[]), container(&[]), container(&[])]);
    assert_eq!(order.step(Event::Begin, 0).len(), 3);
    for index in 0..3 {
        order.step(Event::Started(index), 1);
    }
    assert_eq!(order.step(Event::Ended(1, exit(4)), 2), []);
    assert_eq!(order.step(Event::Ended(0, exit(5)), 3), []);
    let finish = Finish { container: 1, ended: exit(4), not_executable: false };
    assert_eq!(order.step(Event::Ended(2, exit(0)), 4), [Action::Finish(finish)]);
    assert_eq!(order.step(Event::Tick, 5), [], "the end is told once");
}

#[test]
fn a_restart_follows_policy_and_history() {
    for (restart, codes, last) in [
        (RestartPolicy::No, vec![1], "failed"),
        (RestartPolicy::OnFailure, vec![0], "stopped"),
        (RestartPolicy::OnFailure, vec![1, 1, 1], "failed"),
        (RestartPolicy::Always, vec![0, 1, 0, 1], "restarting"),
    ] {
        let mut order = Order::new(&[ContainerStart { restart, ..container(&[]) }, container(&[])]);
        order.step(Event::Begin, 0);
        order.step(Event::Started(1), 0);
        let mut now_ms = 0;
        for (number, code) in codes.iter().enumerate() {
            if number > 0 {
                assert_eq!(states(&order)[0], "restarting", "{restart:?} {codes:?}");
                assert_eq!(order.step(Event::Tick, now_ms), [], "not before its pause is over");
                now_ms = order.due_ms().unwrap();
                assert_eq!(order.step(Event::Tick, now_ms), [Action::Start(0)]);
            }
            order.step(Event::Started(0), now_ms);
            order.step(Event::Ended(0, exit(*code)), now_ms);
        }
        assert_eq!(states(&order)[0], last, "{restart:?} {codes:?}");
    }
}

#[test]
fn pauses_between_restarts_grow() {
    let restart = RestartPolicy::Always;
    let mut order = Order::new(&[ContainerStart { restart, ..container(&[]) }]);
    let (mut now_ms, mut pauses) = (0, Vec::new());
    order.step(Event::Begin, 0);
    for _ in 0..12 {
        order.step(Event::Started(0), now_ms);
        order.step(Event::Ended(0, exit(1)), now_ms);
        let due_ms = order.due_ms().unwrap();
        pauses.push(due_ms - now_ms);
        now_ms = due_ms;
        order.step(Event::Tick, now_ms);
    }
    assert_eq!(pauses[..4], [100, 200, 400, 800]);
    assert_eq!(pauses.last(), Some(&PAUSE_MS_MAX));
}

#[test]
fn a_stop_goes_from_those_on_whom_nobody_depends_to_the_rest() {
    let mut web = container(&[(1, Started)]);
    web.stop_signal = 2;
    let mut order = Order::new(&[web, container(&[(2, Started)]), container(&[]), container(&[])]);
    order.step(Event::Begin, 0);
    for index in [2, 3, 1, 0] {
        order.step(Event::Started(index), 0);
    }
    let stop = Event::Stop(15, 60_000);
    assert_eq!(order.step(stop, 10), [Action::Signal(0, 2), Action::Signal(3, 15)]);
    assert_eq!(order.step(Event::Ended(0, exit(0)), 20), [Action::Signal(1, 15)]);
    assert_eq!(order.step(Event::Ended(3, exit(143)), 30), []);
    assert_eq!(order.step(Event::Ended(1, exit(0)), 40), [Action::Signal(2, 15)]);
    // It does not end within its own time.
    assert_eq!(order.step(Event::Tick, 5_039), []);
    assert_eq!(order.step(Event::Tick, 5_040), [Action::Signal(2, 9)]);
    let killed = Ended { code: 137, signal: Some(9) };
    let finish = Finish { container: 2, ended: killed, not_executable: false };
    assert_eq!(order.step(Event::Ended(2, killed), 5_050), [Action::Finish(finish)]);
}

#[test]
fn the_machines_own_time_is_the_last_word() {
    let mut order = Order::new(&[container(&[(1, Started)]), container(&[])]);
    order.step(Event::Begin, 0);
    order.step(Event::Started(1), 0);
    order.step(Event::Started(0), 0);
    assert_eq!(order.step(Event::Stop(15, 1_000), 0), [Action::Signal(0, 15)]);
    assert_eq!(order.due_ms(), Some(1_000));
    assert_eq!(order.step(Event::Tick, 1_000), [Action::Signal(0, 9), Action::Signal(1, 9)]);
}

#[test]
fn a_stop_begins_nothing_and_forgets_what_waits() {
    let again = ContainerStart { restart: RestartPolicy::Always, ..container(&[]) };
    let mut order = Order::new(&[again, container(&[(2, Healthy)]), container(&[])]);
    order.step(Event::Begin, 0);
    order.step(Event::Started(0), 0);
    order.step(Event::Started(2), 0);
    order.step(Event::Ended(0, exit(1)), 0);
    assert_eq!(states(&order), ["restarting", "created", "started"]);
    assert_eq!(order.step(Event::Stop(15, 9_000), 1), [Action::Signal(2, 15)]);
    assert_eq!(states(&order), ["stopped", "stopped", "stopping"]);
    let finish = Finish { container: 2, ended: exit(0), not_executable: false };
    assert_eq!(order.step(Event::Ended(2, exit(0)), 2), [Action::Finish(finish)]);
}

#[test]
fn one_that_is_not_well_is_stopped_and_started_again_by_its_policy() {
    for (restart, code, last) in
        [(RestartPolicy::OnFailure, 0, "restarting"), (RestartPolicy::No, 0, "failed")]
    {
        let one = ContainerStart { restart, stop_signal: 10, ..container(&[]) };
        let mut order = Order::new(&[one, container(&[])]);
        order.step(Event::Begin, 0);
        order.step(Event::Started(0), 0);
        order.step(Event::Started(1), 0);
        order.step(Event::Health(0, 1, true), 1);
        assert_eq!(order.step(Event::Unwell(0, 2), 2), [], "another start of it");
        assert_eq!(order.step(Event::Unwell(0, 1), 2), [Action::Signal(0, 10)]);
        assert_eq!(order.step(Event::Unwell(0, 1), 3), [], "it is being stopped already");
        order.step(Event::Ended(0, exit(code)), 4);
        assert_eq!(states(&order)[0], last);
    }
}

#[test]
fn one_that_cannot_be_executed_has_failed_and_is_not_tried_again() {
    let one = ContainerStart { restart: RestartPolicy::Always, ..container(&[]) };
    let mut order = Order::new(&[one, container(&[(0, Started)])]);
    order.step(Event::Begin, 0);
    let finish = Finish { container: 0, ended: exit(127), not_executable: true };
    assert_eq!(order.step(Event::NotExecutable(0, 127), 1), [Action::Finish(finish)]);
    assert_eq!(states(&order), ["failed", "stopped"]);
}

proptest::proptest! {
    #[test]
    fn whatever_happens_the_machine_ends_at_most_once_and_a_stop_ends_it(
        events in proptest::collection::vec((0_u8..6, 0_usize..3), 0..60),
    ) {
        let mut order = Order::new(&[
            ContainerStart { restart: RestartPolicy::OnFailure, ..container(&[]) },
            container(&[(0, Healthy)]),
            ContainerStart { restart: RestartPolicy::Always, ..container(&[(1, Started)]) },
        ]);
        let (mut now_ms, mut finishes) = (0, 0);
        let mut running = std::collections::BTreeSet::new();
        let mut take = |actions: Vec<Action>, running: &mut std::collections::BTreeSet<usize>| {
            for action in actions {
                match action {
                    Action::Start(index) => assert!(running.insert(index), "started twice"),
                    Action::Signal(index, _) => assert!(running.contains(&index)),
                    Action::Finish(_) => finishes += 1,
                }
            }
        };
        take(order.step(Event::Begin, 0), &mut running);
        for (kind, index) in events {
            now_ms += 50;
            let event = match kind {
                0 => Event::Started(index),
                1 => Event::Ended(index, exit(i32::try_from(index).unwrap())),
                2 => Event::Health(index, 1, true),
                3 => Event::Unwell(index, 1),
                _ => Event::Tick,
            };
            let possible = match event {
                Event::Ended(..) => running.remove(&index),
                Event::Started(_) => running.contains(&index),
                _ => true,
            };
            if !possible {
                continue;
            }
            take(order.step(event, now_ms), &mut running);
        }
        take(order.step(Event::Stop(15, 1_000), now_ms), &mut running);
        for _ in 0..8 {
            now_ms += 1_000;
            take(order.step(Event::Tick, now_ms), &mut running);
            while let Some(index) = running.pop_first() {
                take(order.step(Event::Ended(index, exit(0)), now_ms), &mut running);
            }
        }
        proptest::prop_assert_eq!(finishes, 1);
    }
}
