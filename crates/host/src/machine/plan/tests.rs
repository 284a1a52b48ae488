use std::fmt::Write as _;
use std::path::Path;

use super::*;
use crate::machine::record::Boot;
use crate::machine::record::tests::record;
use crate::machine::state::{Admission, Command, State, admit};

/// Set to write docs/states.md instead of comparing it.
const BLESS: &str = "PERCH_BLESS";

fn running() -> Record {
    Record { boot: Some(Boot::new(1)), ..record() }
}

fn suspended() -> Record {
    Record { boot: Some(Boot { frozen: true, ..Boot::new(1) }), ..record() }
}

/// Everything that is ever done: what it is called, a record before it, what it is for.
pub(crate) fn plans() -> Vec<(&'static str, Record, Intent)> {
    vec![
        ("launch", record(), Intent::Launch),
        ("prepare (skip_launch)", record(), Intent::Prepare),
        ("start", record(), Intent::Start),
        ("stop", running(), Intent::Stop),
        ("suspend", running(), Intent::Suspend),
        ("resume (start of a suspended one)", suspended(), Intent::Resume),
        ("settle (it ended by itself)", running(), Intent::Settle),
        ("update, it runs", running(), Intent::Update { skip_launch: false }),
        ("update, it does not run", record(), Intent::Update { skip_launch: false }),
        ("update, it does not run, skip_launch", record(), Intent::Update { skip_launch: true }),
        ("update, it is suspended", suspended(), Intent::Update { skip_launch: false }),
        ("update, it is suspended, skip_launch", suspended(), Intent::Update { skip_launch: true }),
        ("destroy", running(), Intent::Destroy),
    ]
}

fn steps_table() -> String {
    let mut text = String::from("| run | steps |\n|---|---|\n");
    for (name, record, intent) in plans() {
        let steps = plan(&record, intent);
        let point = point_of_no_return(intent, &steps);
        let names: Vec<String> = steps
            .iter()
            .enumerate()
            .map(|(index, step)| {
                let bar = if point == Some(index) { "‖ " } else { "" };
                let own = journaled(intent, *step).commit == durable::Commit::Own;
                format!("{bar}{}{}", step.name(), if own { "*" } else { "" })
            })
            .collect();
        writeln!(text, "| {name} | {} |", names.join(" → ")).unwrap();
    }
    text
}

/// What a step leaves behind, in words.
const fn meaning(step: Step) -> &'static str {
    match step {
        Step::Image => "The image is on the host and its tree is mounted.",
        Step::Rootfs => "The writable layer of the next boot is there, empty unless it is kept.",
        Step::Volume => "The volumes of the version are the machine's.",
        Step::Drain => {
            "The edge sends no more requests, and those under way had their time (`limits.drain`)."
        }
        Step::Stop => "The program had its signal and its grace, then everything was killed.",
        Step::Freeze => "Every process stands still, its memory and its sockets stay.",
        Step::Thaw => {
            "They go on. If nothing is there that could, the machine is started anew; if they \
             cannot go on now, it stays suspended."
        }
        Step::Boot => "The cage is made: namespaces, limits, root tree, init; no program yet.",
        Step::Network => "The cage has its addresses.",
        Step::Execute => "The program was executed.",
        Step::Detach => "The interface is gone.",
        Step::Clean => "What the boot left is gone: cgroup, socket, the layer if it is not kept.",
        Step::Discard => "Layers that no version needs any more are gone.",
        Step::Erase => "The machine's files are gone.",
    }
}

fn meanings() -> String {
    let mut text = String::from("| step | after it |\n|---|---|\n");
    for step in Step::ALL {
        writeln!(text, "| {} | {} |", step.name(), meaning(step)).unwrap();
    }
    text
}

fn commands_table() -> String {
    let commands = [
        ("start", Command::Start),
        ("stop", Command::Stop),
        ("suspend", Command::Suspend),
        ("restart", Command::Restart),
        ("update", Command::Update),
        ("destroy", Command::Destroy { force: false }),
        ("destroy, forced", Command::Destroy { force: true }),
        ("signal", Command::Signal),
        ("cordon", Command::SetCordoned),
        ("labels", Command::SetLabels),
    ];
    let mut text = String::from("| state |");
    for (name, _) in commands {
        write!(text, " {name} |").unwrap();
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(commands.len()));
    text.push('\n');
    for state in State::ALL {
        write!(text, "| {state} |").unwrap();
        for (_, command) in commands {
            let word = match admit(state, &[], command) {
                Admission::Accept => "yes",
                Admission::Refuse(..) => "no",
                Admission::AlreadySo => "is so",
            };
            write!(text, " {word} |").unwrap();
        }
        text.push('\n');
    }
    text
}

#[test]
fn every_plan() {
    insta::assert_snapshot!(steps_table(), @r"
    | run | steps |
    |---|---|
    | launch | image → rootfs → volume → boot → network → execute |
    | prepare (skip_launch) | image → volume |
    | start | image → rootfs → volume → boot → network → execute |
    | stop | ‖ drain → stop → detach → clean |
    | suspend | drain → freeze |
    | resume (start of a suspended one) | thaw |
    | settle (it ended by itself) | ‖ detach → clean |
    | update, it runs | image → rootfs → volume → drain → stop* → boot → network → execute → ‖ discard |
    | update, it does not run | image → rootfs → volume → boot → network → execute → ‖ discard |
    | update, it does not run, skip_launch | image → volume → ‖ discard |
    | update, it is suspended | image → rootfs → volume → drain → stop* → boot → network → execute → ‖ discard |
    | update, it is suspended, skip_launch | image → volume → ‖ stop* → detach → clean → discard |
    | destroy | ‖ stop → detach → clean → erase |
    ");
}

#[test]
fn a_creation_commits_at_most_three_times() {
    for (name, record, intent) in plans() {
        let own = plan(&record, intent)
            .into_iter()
            .skip(1)
            .filter(|step| journaled(intent, *step).commit == durable::Commit::Own)
            .count();
        assert!(own + 2 <= 3, "{name}");
    }
}

#[test]
fn the_documented_tables_are_these() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/states.md");
    let text = format!(
        "<!-- Written by a test of crates/host: `{BLESS}=1 cargo nextest run -p perch-host documented`. -->\n\
         # States of a machine\n\n\
         ## What a machine accepts\n\n\
         `is so`: accepted, and nothing is to be done.\n\n{}\n\
         ## What is done\n\n\
         A step before ‖ is undone when a later one does not succeed; from ‖ on a run only goes\n\
         forward. A step with * has a commit of its own before it begins.\n\n{}\n\
         Each step may run twice: after a crash a run goes on with the step that was not committed.\n\n{}",
        commands_table(),
        steps_table(),
        meanings()
    );
    if std::env::var_os(BLESS).is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "docs/states.md is not fresh: run with {BLESS}=1");
}
