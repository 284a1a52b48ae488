//! Scans of whole source folders.
//!
//! Never a network; the golden plans are in `snapshots`.

#[cfg(test)]
mod dockerfile;
#[cfg(test)]
mod folder;
#[cfg(test)]
mod plans;
