//! Scans of whole source folders.
//!
//! Never a network; the golden plans are in `snapshots`.

mod dockerfile;
mod folder;
mod plans;
