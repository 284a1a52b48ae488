//! Runs one program of the host and waits for it.
//!
//! Never a program of a user, and never anything that may take long.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::error::Error;

/// How long a program of the host may take.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Bytes of its output that go into an error.
const OUTPUT_BYTES_MAX: usize = 2000;

/// Runs a program with `input` on its standard input and returns its output.
///
/// # Errors
/// It cannot be started, takes too long, or ends with another status than 0.
pub(crate) async fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, Error> {
    let spawn = |source| Error::Spawn { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input says why in its output.
        let _read = stdin.write_all(input.as_bytes()).await;
    }
    let ended = tokio::time::timeout(TIME_MAX, child.wait_with_output()).await;
    let output =
        ended.map_err(|_elapsed| spawn(std::io::ErrorKind::TimedOut.into()))?.map_err(spawn)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    let said = said.trim().chars().take(OUTPUT_BYTES_MAX).collect();
    Err(Error::Program { program, status: output.status.to_string(), output: said })
}
