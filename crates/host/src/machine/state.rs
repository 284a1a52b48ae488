//! Which command a machine accepts in which state.
//!
//! Never does anything: a table that the actor asks before it journals a command.

#![deny(clippy::wildcard_enum_match_arm)]

use perch_types::Code;
use perch_types::host;

pub use perch_types::MachineState as State;

/// How many accepted commands may wait behind the one that is being carried out.
pub const QUEUED_MAX: usize = 8;

/// What may be asked of a machine, without its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Run it.
    Start,
    /// End its program.
    Stop,
    /// Freeze its processes.
    Suspend,
    /// End it and run it again.
    Restart,
    /// Take another version.
    Update,
    /// Remove it.
    Destroy {
        /// Even if it runs.
        force: bool,
    },
    /// Send a signal to its program.
    Signal,
    /// Take it out of routing, or put it back.
    SetCordoned,
    /// Change its labels.
    SetLabels,
}

impl From<&host::Command> for Command {
    fn from(command: &host::Command) -> Self {
        match command {
            host::Command::Start => Self::Start,
            host::Command::Stop { .. } => Self::Stop,
            host::Command::Suspend => Self::Suspend,
            host::Command::Restart { .. } => Self::Restart,
            host::Command::Update { .. } => Self::Update,
            host::Command::Destroy { force } => Self::Destroy { force: *force },
            host::Command::Signal { .. } => Self::Signal,
            host::Command::SetCordoned { .. } => Self::SetCordoned,
            host::Command::SetLabels { .. } => Self::SetLabels,
        }
    }
}

/// What happened to a machine without anybody asking for it. Facts come before commands.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// Its program ended.
    Exited(Box<perch_runtime::ExitStatus>),
    /// Its monitor is gone and left no status.
    Lost {
        /// Which boot.
        boot: u64,
    },
    /// It ran into a limit and goes on.
    Reached {
        /// Which boot.
        boot: u64,
        /// Which limit.
        what: super::record::Reached,
    },
    /// A machine that it stands by for has failed.
    StandIn {
        /// The event that says so.
        event: String,
    },
    /// What its ports and checks say changed.
    Readiness {
        /// Which boot.
        boot: u64,
        /// What they say.
        readiness: super::record::Readiness,
    },
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It will be carried out.
    Accept,
    /// It will not.
    Refuse(String, Code),
    /// There is nothing to do: it is so, or will be by what is under way.
    AlreadySo,
}

/// Decides about a command, knowing the state and what is queued before it.
#[must_use]
pub fn admit(state: State, queued: &[Command], command: Command) -> Admission {
    let state = queued.iter().fold(state, |state, queued| under_way(state, *queued));
    match admit_next(state, command) {
        Admission::Accept if queued.len() >= QUEUED_MAX => Admission::Refuse(
            format!("{QUEUED_MAX} commands are waiting already"),
            Code::RateLimited,
        ),
        admission @ (Admission::Accept | Admission::Refuse(..) | Admission::AlreadySo) => admission,
    }
}

/// Returns the state that a machine is in while a command is carried out.
#[must_use]
pub const fn under_way(state: State, command: Command) -> State {
    match command {
        Command::Start => State::Starting,
        Command::Stop => State::Stopping,
        Command::Suspend => State::Suspending,
        Command::Restart => State::Restarting,
        Command::Update => State::Replacing,
        Command::Destroy { .. } => State::Destroying,
        Command::Signal | Command::SetCordoned | Command::SetLabels => state,
    }
}

fn admit_next(state: State, command: Command) -> Admission {
    match command {
        Command::Start => start(state),
        Command::Stop => stop(state),
        Command::Suspend => suspend(state),
        Command::Restart | Command::Update | Command::SetCordoned | Command::SetLabels => {
            unless_gone(state)
        }
        Command::Destroy { force } => destroy(state, force),
        Command::Signal => signal(state),
    }
}

fn start(state: State) -> Admission {
    match state {
        State::Starting | State::Started | State::Restarting => Admission::AlreadySo,
        State::Created
        | State::Stopping
        | State::Stopped
        | State::Suspending
        | State::Suspended
        | State::Replacing
        | State::Failed => Admission::Accept,
        State::Destroying | State::Destroyed => gone(state),
    }
}

fn stop(state: State) -> Admission {
    match state {
        State::Stopping | State::Stopped => Admission::AlreadySo,
        State::Created
        | State::Starting
        | State::Started
        | State::Suspending
        | State::Suspended
        | State::Restarting
        | State::Replacing
        | State::Failed => Admission::Accept,
        State::Destroying | State::Destroyed => gone(state),
    }
}

fn suspend(state: State) -> Admission {
    match state {
        State::Started => Admission::Accept,
        State::Suspending | State::Suspended => Admission::AlreadySo,
        State::Created
        | State::Starting
        | State::Stopping
        | State::Stopped
        | State::Restarting
        | State::Replacing
        | State::Failed => Admission::Refuse(
            format!("machine is {state}: only one that is started can be suspended"),
            Code::WrongState,
        ),
        State::Destroying | State::Destroyed => gone(state),
    }
}

fn unless_gone(state: State) -> Admission {
    match state {
        State::Created
        | State::Starting
        | State::Started
        | State::Stopping
        | State::Stopped
        | State::Suspending
        | State::Suspended
        | State::Restarting
        | State::Replacing
        | State::Failed => Admission::Accept,
        State::Destroying | State::Destroyed => gone(state),
    }
}

fn destroy(state: State, force: bool) -> Admission {
    match state {
        State::Starting | State::Started | State::Restarting | State::Replacing if !force => {
            Admission::Refuse(
                format!("machine is {state}: stop it first, or force its destruction"),
                // Without force the request says "only if it does not run" (contract 1.3).
                Code::PreconditionFailed,
            )
        }
        State::Created
        | State::Starting
        | State::Started
        | State::Stopping
        | State::Stopped
        | State::Suspending
        | State::Suspended
        | State::Restarting
        | State::Replacing
        | State::Failed => Admission::Accept,
        State::Destroying | State::Destroyed => Admission::AlreadySo,
    }
}

fn signal(state: State) -> Admission {
    match state {
        State::Started | State::Stopping => Admission::Accept,
        State::Created
        | State::Starting
        | State::Stopped
        | State::Suspending
        | State::Suspended
        | State::Restarting
        | State::Replacing
        | State::Failed => Admission::Refuse(
            format!("machine is {state}: only a program that runs takes a signal"),
            Code::WrongState,
        ),
        State::Destroying | State::Destroyed => gone(state),
    }
}

fn gone(state: State) -> Admission {
    Admission::Refuse(format!("machine is {state}"), Code::WrongState)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const COMMANDS: [Command; 10] = [
        Command::Start,
        Command::Stop,
        Command::Suspend,
        Command::Restart,
        Command::Update,
        Command::Destroy { force: false },
        Command::Destroy { force: true },
        Command::Signal,
        Command::SetCordoned,
        Command::SetLabels,
    ];

    #[test]
    fn the_whole_table() {
        let mut table = format!("{:<11}", "");
        for name in [
            "start", "stop", "suspend", "restart", "update", "destroy", "force", "signal",
            "cordon", "labels",
        ] {
            write!(table, "{name:<8}").unwrap();
        }
        for state in State::ALL {
            write!(table, "\n{:<11}", state.as_str()).unwrap();
            for command in COMMANDS {
                let word = match admit(state, &[], command) {
                    Admission::Accept => "yes",
                    Admission::Refuse(_, Code::WrongState) => "no",
                    Admission::Refuse(_, Code::PreconditionFailed) => "force",
                    Admission::Refuse(_, code) => panic!("{code}"),
                    Admission::AlreadySo => "already",
                };
                write!(table, "{word:<8}").unwrap();
            }
        }
        let table: Vec<&str> = table.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(table.join("\n"), @r"
                   start   stop    suspend restart update  destroy force   signal  cordon  labels
        created    yes     yes     no      yes     yes     yes     yes     no      yes     yes
        starting   already yes     no      yes     yes     force   yes     no      yes     yes
        started    already yes     yes     yes     yes     force   yes     yes     yes     yes
        stopping   yes     already no      yes     yes     yes     yes     yes     yes     yes
        stopped    yes     already no      yes     yes     yes     yes     no      yes     yes
        suspending yes     yes     already yes     yes     yes     yes     no      yes     yes
        suspended  yes     yes     already yes     yes     yes     yes     no      yes     yes
        restarting already yes     no      yes     yes     force   yes     no      yes     yes
        replacing  yes     yes     no      yes     yes     force   yes     no      yes     yes
        destroying no      no      no      no      no      already already no      no      no
        destroyed  no      no      no      no      no      already already no      no      no
        failed     yes     yes     no      yes     yes     yes     yes     no      yes     yes
        ");
    }

    #[test]
    fn what_is_queued_counts_as_the_state() {
        let stop = [Command::Stop];
        assert_eq!(admit(State::Started, &stop, Command::Start), Admission::Accept);
        assert_eq!(admit(State::Started, &stop, Command::Stop), Admission::AlreadySo);
        assert_eq!(
            admit(State::Started, &stop, Command::Destroy { force: false }),
            Admission::Accept
        );
        let destroy = [Command::Stop, Command::Destroy { force: false }];
        assert!(matches!(
            admit(State::Started, &destroy, Command::Start),
            Admission::Refuse(_, Code::WrongState)
        ));
    }

    #[test]
    fn the_queue_ends_somewhere() {
        let queued = [Command::SetCordoned; QUEUED_MAX];
        assert!(matches!(
            admit(State::Started, &queued, Command::Stop),
            Admission::Refuse(_, Code::RateLimited)
        ));
    }
}
