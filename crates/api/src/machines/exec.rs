//! Runs a program inside a machine and returns its output (contract 1.3).
//!
//! Never through a shell: one string is split into words as a shell would, and that is all.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::Code;
use perch_types::api::{ExecRequest, ExecResponse};
use serde::Deserialize;

use super::of_host;
use crate::body::Json;
use crate::config::Shared;
use crate::reply::Failure;
use crate::routes::Target;

/// Seconds that a program may take at most.
pub(crate) const EXEC_TIMEOUT_MAX_S: u64 = 300;
/// Words of a command.
const WORDS_MAX: usize = 256;

/// What a client sends: the request, whose list may be null.
#[derive(Debug, Deserialize)]
pub(crate) struct Body {
    /// One string, split as a shell splits words.
    cmd: Option<String>,
    /// The words themselves; they win over `cmd`.
    command: Option<Vec<String>>,
    /// What the program reads.
    stdin: Option<String>,
    /// Seconds it may take, at most 300; default 60.
    timeout: Option<u64>,
    /// The container, of a machine that has several; the first that runs when unset.
    container: Option<String>,
}

pub(crate) async fn exec(
    State(_shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Json(body): Json<Body>,
) -> Result<JsonReply<ExecResponse>, Failure> {
    let Body { cmd, command, stdin, timeout, container } = body;
    let command = command.unwrap_or_default();
    let asked = ExecRequest { cmd, command, stdin, timeout, container };
    let exec = admit(asked)?;
    let host = target.host()?;
    let answer = host.client.exec(&target.id, &exec).await;
    answer.map(JsonReply).map_err(|error| of_host(error, &target.id))
}

fn admit(mut exec: ExecRequest) -> Result<ExecRequest, Failure> {
    let bad = |text: String| Err(Failure::new(Code::InvalidRequest, text));
    if exec.command.is_empty() {
        let Some(line) = exec.cmd.take() else {
            return bad("command: is missing".to_owned());
        };
        match shlex::split(&line) {
            Some(words) => exec.command = words,
            None => return bad("cmd: has a quote without its end".to_owned()),
        }
    }
    exec.cmd = None;
    if exec.command.first().is_none_or(String::is_empty) {
        return bad("command: is empty".to_owned());
    }
    if exec.command.len() > WORDS_MAX {
        return bad(format!("command: more than {WORDS_MAX} words"));
    }
    if exec.command.iter().any(|word| word.contains('\0')) {
        return bad("command: has a zero byte".to_owned());
    }
    if let Some(timeout) = exec.timeout.filter(|timeout| *timeout > EXEC_TIMEOUT_MAX_S) {
        return bad(format!("timeout: {timeout} is not 1 to {EXEC_TIMEOUT_MAX_S} seconds"));
    }
    exec.container = exec.container.filter(|name| !name.is_empty());
    // Zero is how clients write "the default".
    exec.timeout = exec.timeout.filter(|timeout| *timeout > 0);
    Ok(exec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_as_a_shell_splits_words() {
        let of = |line: &str| ExecRequest { cmd: Some(line.to_owned()), ..ExecRequest::default() };
        let words = admit(of(r#"sh -c "echo 'a b' && ls" x\ y"#)).unwrap();
        assert_eq!(words.command, ["sh", "-c", "echo 'a b' && ls", "x y"]);
        assert_eq!(words.cmd, None);
        for bad in ["", "  ", "echo 'a", "''"] {
            assert_eq!(admit(of(bad)).unwrap_err().error().code, Code::InvalidRequest, "{bad}");
        }
        let both = ExecRequest { command: vec!["ls".to_owned()], ..of("rm") };
        assert_eq!(admit(both).unwrap().command, ["ls"]);
        let slow = ExecRequest { timeout: Some(301), ..of("ls") };
        admit(slow).unwrap_err();
    }
}
