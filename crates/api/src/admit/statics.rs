//! Files of the image that the edge serves (contract 1.13).
//!
//! Never looks into the image: what is not in it is the program's to answer.

use std::collections::BTreeSet;

use perch_types::machine_config::StaticConfig;

use super::refuse;
use crate::reply::Failure;

/// Entries of the list (contract 1.13).
const STATICS_MAX: usize = 10;
/// The longest folder, prefix or file name.
const TEXT_BYTES_MAX: usize = 255;

/// Checks `config.statics`.
pub(super) fn check(statics: &[StaticConfig]) -> Result<(), Failure> {
    if statics.len() > STATICS_MAX {
        return refuse(format!("config.statics: {} are more than {STATICS_MAX}", statics.len()));
    }
    let mut seen = BTreeSet::new();
    for (index, one) in statics.iter().enumerate() {
        let path = format!("config.statics[{index}]");
        path_of_parts(&format!("{path}.guest_path"), &one.guest_path)?;
        path_of_parts(&format!("{path}.url_prefix"), &one.url_prefix)?;
        if !seen.insert(one.url_prefix.trim_end_matches('/')) {
            let twice = &one.url_prefix;
            return refuse(format!("{path}.url_prefix: `{twice}` is in the list twice"));
        }
        let name = &one.index_document;
        let plain = name.len() <= TEXT_BYTES_MAX
            && !name.contains(['/', '\0'])
            && !matches!(name.as_str(), "." | "..");
        if !plain {
            let shown: String = name.chars().take(80).collect();
            return refuse(format!("{path}.index_document: `{shown}` is not the name of a file"));
        }
    }
    Ok(())
}

fn path_of_parts(path: &str, value: &str) -> Result<(), Failure> {
    if value.is_empty() {
        return refuse(format!("{path}: is missing"));
    }
    let inner = value.strip_prefix('/').map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let is_path = inner.is_some_and(|inner| inner.is_empty() || inner.split('/').all(plain))
        && value.len() <= TEXT_BYTES_MAX
        && !value.contains(|c: char| c.is_control() || matches!(c, '?' | '#' | '%'));
    if is_path {
        return Ok(());
    }
    let shown: String = value.chars().take(80).collect();
    let rule = format!("/ and parts without `.` and `..`, at most {TEXT_BYTES_MAX} bytes");
    refuse(format!("{path}: `{shown}` is not {rule}"))
}
