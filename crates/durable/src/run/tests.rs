//! The rules of runs as tables.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn state(point_of_no_return: Option<usize>) -> RunState {
    let steps = vec![Step::own("a"), Step::shared("b"), Step::own("c"), Step::shared("d")];
    let run = NewRun {
        owner: "m1".to_owned(),
        kind: "create".to_owned(),
        input: Value::Null,
        steps,
        point_of_no_return,
    };
    run.validated().unwrap().into_state(RunId(1), 5)
}

fn started(step: &str) -> Event {
    Event::StepStarted { step: step.to_owned() }
}

fn done(step: &str) -> Event {
    Event::StepDone { step: step.to_owned(), output: json!(step) }
}

fn failed(step: &str) -> Event {
    Event::StepFailed { step: step.to_owned(), message: "no".to_owned() }
}

fn undo(step: &str) -> [Event; 2] {
    let step = step.to_owned();
    [Event::UndoStarted { step: step.clone() }, Event::UndoDone { step }]
}

fn after(mut state: RunState, events: &[Event]) -> RunState {
    for event in events {
        state.apply(event).unwrap();
    }
    state
}

#[test]
fn a_run_goes_forward_step_by_step() {
    let mut run = state(None);
    for (index, step) in ["a", "b", "c", "d"].into_iter().enumerate() {
        assert_eq!(next(&run), Action::Do(index));
        run = after(run, &[started(step)]);
        assert_eq!(next(&run), Action::Do(index), "a started step runs again");
        run = after(run, &[done(step)]);
        assert_eq!(run.output::<String>(step).as_deref(), Some(step));
    }
    assert_eq!(next(&run), Action::Finished(Outcome::Done));
}

#[test]
fn a_failure_undoes_in_reverse_what_has_started() {
    let run = after(state(None), &[started("a"), done("a"), started("b"), failed("b")]);
    assert_eq!(next(&run), Action::Undo(1));
    let run = after(run, &undo("b"));
    assert_eq!(next(&run), Action::Undo(0));
    let run = after(run, &undo("a"));
    let failure = Failure { step: Some("b".to_owned()), message: "no".to_owned() };
    assert_eq!(next(&run), Action::Finished(Outcome::Undone { failure }));
}

#[test]
fn past_the_point_of_no_return_nothing_leads_back() {
    let before = [started("a"), done("a"), started("b"), done("b")];
    let mut run = after(state(Some(2)), &before);
    assert!(!run.is_past_return());
    run = after(run, &[started("c")]);
    assert!(run.is_past_return());
    for event in [failed("c"), Event::Abandoned { message: "stop".to_owned() }] {
        let unchanged = run.clone();
        assert!(run.apply(&event).is_err(), "{event:?}");
        assert_eq!(run, unchanged);
    }
    assert_eq!(next(&run), Action::Do(2));
}

#[test]
fn the_point_of_no_return_never_starts_before_what_leads_to_it_is_done() {
    let mut run = after(state(Some(1)), &[started("a")]);
    let unchanged = run.clone();
    assert!(run.apply(&started("b")).is_err());
    assert_eq!(run, unchanged);
    after(state(None), &[started("a")]).apply(&started("b")).unwrap();
}

#[test]
fn a_parked_run_waits_for_an_operator() {
    let run = after(state(None), &[started("a"), Event::Parked { why: "odd".to_owned() }]);
    assert_eq!(next(&run), Action::Stuck { why: "odd".to_owned() });
    assert_eq!(next(&after(run, &[Event::Unparked])), Action::Do(0));
}

#[test]
fn an_abandoned_run_is_undone() {
    let abandoned = Event::Abandoned { message: "stop".to_owned() };
    let run = after(state(None), &[started("a"), done("a"), abandoned]);
    assert_eq!(next(&run), Action::Undo(0));
}

#[test]
fn after_a_crash_the_shared_steps_behind_a_commit_count_as_started() {
    let names = |events: &[Event]| after(state(None), events).perhaps_started();
    assert_eq!(names(&[]), ["a", "b"], "the commit of begin covers the first step");
    assert_eq!(names(&[started("a")]), ["b"]);
    let to_c = [started("a"), done("a"), started("b"), done("b"), started("c")];
    assert_eq!(names(&to_c), ["d"]);
    assert_eq!(names(&to_c[..4]), [""; 0], "c has a commit of its own");
    let run = state(Some(0));
    assert_eq!(run.perhaps_started(), ["a", "b"]);
    let run = after(run, &[started("a")]);
    assert!(run.is_past_return(), "begin has decided what has no way back");
}

#[test]
fn plans_that_break_a_rule_are_refused() {
    let plan = |steps: Vec<Step>, point_of_no_return| NewRun {
        owner: "m1".to_owned(),
        kind: "k".to_owned(),
        input: Value::Null,
        steps,
        point_of_no_return,
    };
    let many = (0..=RUN_STEPS_MAX).map(|n| Step::own(n.to_string())).collect();
    for (steps, point) in [
        (vec![], None),
        (many, None),
        (vec![Step::own("")], None),
        (vec![Step::own("a"), Step::own("a")], None),
        (vec![Step::own("a")], Some(1)),
    ] {
        assert!(plan(steps.clone(), point).validated().is_err(), "{steps:?}");
    }
    let run = plan(vec![Step::shared("a"), Step::shared("b")], Some(1)).validated().unwrap();
    assert_eq!(run.steps[1].commit, Commit::Own, "the point of no return is committed");
}

fn any_event() -> impl Strategy<Value = Event> {
    let step =
        prop_oneof![Just("a"), Just("b"), Just("c"), Just("d"), Just("x")].prop_map(str::to_owned);
    prop_oneof![
        step.clone().prop_map(|step| Event::StepStarted { step }),
        step.clone().prop_map(|step| Event::StepDone { step, output: Value::Null }),
        step.clone().prop_map(|step| Event::StepFailed { step, message: String::new() }),
        step.clone().prop_map(|step| Event::UndoStarted { step }),
        step.prop_map(|step| Event::UndoDone { step }),
        Just(Event::Abandoned { message: String::new() }),
        Just(Event::Parked { why: String::new() }),
        Just(Event::Unparked),
    ]
}

proptest! {
    /// Whatever is written, the state is one that the core has an answer for: never a step behind
    /// one that did not start, never an undo past the point of no return.
    #[test]
    fn no_list_of_events_leads_to_a_state_without_sense(
        events in prop::collection::vec(any_event(), 0..40),
        point in prop::option::of(0_usize..4),
    ) {
        let mut run = state(point);
        for event in &events {
            let before = run.clone();
            if run.apply(event).is_err() {
                prop_assert_eq!(&run, &before, "a refused event changes nothing");
            }
            prop_assert!(!(run.is_past_return() && run.failure.is_some()));
            let waiting = run.steps.iter().position(|step| step.status == Status::Waiting);
            let rest = run.steps.iter().skip(waiting.unwrap_or(4));
            prop_assert!(rest.into_iter().all(|step| step.status == Status::Waiting));
            let text = serde_json::to_string(event).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Event>(&text).unwrap(), event);
            if let Action::Undo(index) = next(&run) {
                prop_assert!(point.is_none_or(|point| index < point));
            }
        }
    }
}
