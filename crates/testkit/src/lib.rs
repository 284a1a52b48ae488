//! A whole cloud in one test: a real `perchd` with its processes, machines and network.
//!
//! Never needed at run time, and never reaches beyond the machine: every cloud lives in a network
//! namespace of its own, which the calling thread enters and which ends with its processes.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests poll processes from outside, and say aloud what they skip"
)]

pub mod cloud;
pub mod disk;
pub mod http;
pub mod image;
pub mod pebble;
pub mod reality;
pub mod terminal;

use std::time::{Duration, Instant};

pub use cloud::{Caller, Cloud, Moment, Options};
pub use disk::SmallDisk;
pub use http::Answer;
pub use reality::{Place, Reality, Said};
pub use terminal::Terminal;

/// Says that a test does not run here, and why.
pub fn skipped(test: &str, missing: &str) {
    let line = format!("skipped: {test}: {missing}");
    eprintln!("{line}");
    // The summary of a whole run collects these.
    if let Some(path) = std::env::var_os("PERCH_SKIPPED_FILE") {
        use std::io::Write as _;
        let file = std::fs::File::options().append(true).create(true).open(path);
        if let Ok(mut file) = file {
            writeln!(file, "{line}").ok();
        }
    }
}

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks at a condition until it holds, and returns what it gave.
///
/// # Errors
/// When `limit` is over; the text says what was waited for.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let since = Instant::now();
    loop {
        if let Some(value) = look() {
            return Ok(value);
        }
        anyhow::ensure!(since.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}
