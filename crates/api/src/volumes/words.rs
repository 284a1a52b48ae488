//! Filters of lists: words separated by commas, in parameters that may be repeated.
//!
//! Never refuses a region: one that nothing is in selects nothing.

use perch_types::Code;
use perch_types::volume::VolumeState;

use crate::body::Parameters;
use crate::reply::Failure;

/// Returns the words of a parameter.
pub(super) fn words(parameters: &Parameters, name: &str) -> Vec<String> {
    let values = parameters.all(name).flat_map(|value| value.split(','));
    values.map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Returns the states that a list is to have.
pub(super) fn states(parameters: &Parameters) -> Result<Vec<VolumeState>, Failure> {
    words(parameters, "state").into_iter().map(|word| state(&word)).collect()
}

fn state(word: &str) -> Result<VolumeState, Failure> {
    let found = VolumeState::ALL.into_iter().find(|state| state.as_str() == word);
    found.ok_or_else(|| {
        let allowed: Vec<&str> = VolumeState::ALL.iter().map(|state| state.as_str()).collect();
        let shown: String = word.chars().take(80).collect();
        let text = format!("state: `{shown}` is not one of {}", allowed.join(", "));
        Failure::new(Code::InvalidRequest, text)
    })
}
