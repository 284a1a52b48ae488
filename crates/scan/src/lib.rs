//! From a list of files to a launch plan: what the app is, how it is built, and why.
//!
//! Never writes a file, runs a program or asks a network; only [`Folder`] reads a disk.
//!
//! One file per family, tried in the order of [`DETECTORS`]; the first that knows the files wins.
//! A new family is a new file and one line in that list.

#![forbid(unsafe_code)]

mod dockerfile;
mod files;
mod flask;
mod folder;
mod php;
mod plan;
mod text;
mod unrecognised;

pub use dockerfile::{Dockerfile, Exposed};
pub use files::{Entry, FILE_BYTES_MAX, Files, Kind, MemoryFiles};
pub use folder::{ENTRIES_MAX, Folder, FolderError};
pub use plan::{Decision, Family, LaunchPlan, Source};
pub use unrecognised::Unrecognised;

/// A family's detector: a plan when the files are of its family.
type Detector = fn(&dyn Files) -> Option<LaunchPlan>;

/// The families, in the order in which they are tried.
const DETECTORS: &[Detector] = &[dockerfile::detect, flask::detect, php::detect];

/// Returns how to build and run what is in the files.
///
/// # Errors
/// When no family knows the files; the error says what they look like and what to do.
pub fn scan(files: &dyn Files) -> Result<LaunchPlan, Unrecognised> {
    DETECTORS.iter().find_map(|detect| detect(files)).ok_or_else(|| Unrecognised::of(files))
}
