//! Which machines a list keeps (contract 1.3 and 1.7).
//!
//! Never asks anybody.

use perch_types::labels::Labels;
use perch_types::{Code, MachineState, Region};

use crate::body::Parameters;
use crate::reply::Failure;

/// What was asked of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    /// Destroyed ones too.
    pub(crate) include_deleted: bool,
    /// Without what is long.
    pub(crate) summary: bool,
    regions: Vec<String>,
    states: Vec<MachineState>,
    metadata: Vec<(String, String)>,
}

/// What is known of a machine that a list may keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) state: MachineState,
    pub(crate) region: &'a Region,
    pub(crate) labels: &'a Labels,
}

impl Filter {
    /// Reads a query.
    pub(crate) fn of(parameters: &Parameters) -> Result<Self, Failure> {
        let words = |name: &str| -> Vec<String> {
            let values = parameters.all(name).flat_map(|value| value.split(','));
            values.map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let states = words("state").into_iter().map(|word| {
            word.parse::<MachineState>().map_err(|error| {
                let known = MachineState::ALL.map(MachineState::as_str).join(", ");
                let text = format!("state: {error}; allowed are {known}");
                Failure::new(Code::InvalidRequest, text)
            })
        });
        let states = states.collect::<Result<Vec<_>, _>>()?;
        let metadata = parameters.prefixed("metadata.");
        Ok(Self {
            include_deleted: parameters.flag("include_deleted")?
                || states.contains(&MachineState::Destroyed),
            summary: parameters.flag("summary")?,
            regions: words("region"),
            states,
            metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        })
    }

    /// Returns whether the list keeps a machine.
    pub(crate) fn keeps(&self, seen: Seen<'_>) -> bool {
        let region = seen.region.as_str();
        (self.include_deleted || seen.state != MachineState::Destroyed)
            && (self.regions.is_empty() || self.regions.iter().any(|asked| asked == region))
            && (self.states.is_empty() || self.states.contains(&seen.state))
            && self.metadata.iter().all(|(key, value)| seen.labels.get(key) == Some(value))
    }
}
