//! What a scan proposes.
//!
//! Never a value without a reason: each default is also a [`Decision`].

use std::collections::BTreeMap;
use std::fmt;

use perch_types::machine_config::Signal;
use serde::Serialize;

/// What an app was recognised as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// It brings its own Dockerfile.
    Dockerfile,
    /// A web app on Python's Flask.
    Flask,
    /// PHP pages without a framework.
    Php,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dockerfile => "Dockerfile",
            Self::Flask => "Flask",
            Self::Php => "PHP",
        })
    }
}

/// Where the Dockerfile comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// It is there already; its path.
    Existing(String),
    /// It is to be written as `Dockerfile`; its text.
    Generated(String),
}

/// One default and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// What was decided: `port`, `memory`, `command`.
    pub what: &'static str,
    /// What was chosen.
    pub value: String,
    /// Why.
    pub why: String,
}

/// How to build and run an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaunchPlan {
    /// What it was recognised as.
    pub family: Family,
    /// How it is built.
    pub dockerfile: Source,
    /// The text of a `.dockerignore`, when there is none.
    pub dockerignore: Option<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// The port that the program listens on.
    pub internal_port: u16,
    /// What runs, when it is known.
    pub command: Option<String>,
    /// The signal that asks the program to end, when not the default.
    pub kill_signal: Option<Signal>,
    /// Memory of a machine in MiB.
    pub memory_mb: u32,
    /// Every default with its reason, in the order in which to show them.
    pub decisions: Vec<Decision>,
    /// What the developer should know.
    pub warnings: Vec<String>,
}

impl LaunchPlan {
    /// Makes a plan of a family with nothing decided but the Dockerfile.
    pub(crate) fn new(family: Family, dockerfile: Source) -> Self {
        Self {
            family,
            dockerfile,
            dockerignore: None,
            env: BTreeMap::new(),
            internal_port: 8080,
            command: None,
            kill_signal: None,
            memory_mb: 256,
            decisions: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Notes a default and its reason.
    pub(crate) fn decide(
        &mut self,
        what: &'static str,
        value: impl fmt::Display,
        why: impl Into<String>,
    ) {
        self.decisions.push(Decision { what, value: value.to_string(), why: why.into() });
    }
}
