//! Runs a program inside a machine and returns its output (contract 1.3).
//!
//! Never through a shell: one string is split into words as a shell would, and that is all.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json as JsonReply};
use perch_types::api::{ExecRequest, ExecResponse};
use perch_types::{Code, MachineId};
use serde::Deserialize;

use super::of_host;
use crate::body::Json;
use crate::config::{Host, Shared};
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
    /// Whether to run it in the machine itself and in no container; excludes `container`. Refused
    /// of a machine that has containers: each is a sandbox of its own, and beside them is none.
    machine: Option<bool>,
}

pub(crate) async fn exec(
    State(_shared): State<Arc<Shared>>,
    Extension(Target(target)): Extension<Target>,
    Json(body): Json<Body>,
) -> Result<JsonReply<ExecResponse>, Failure> {
    let Body { cmd, command, stdin, timeout, container, machine } = body;
    let command = command.unwrap_or_default();
    let asked = ExecRequest { cmd, command, stdin, timeout, container };
    let exec = admit(asked)?;
    let host = target.host()?;
    if machine == Some(true) {
        in_itself(host, &target.id, exec.container.as_deref()).await?;
    }
    let answer = host.client.exec(&target.id, &exec).await;
    answer.map(JsonReply).map_err(|error| of_host(error, &target.id))
}

/// Refuses to run a program in a machine itself where that would be something else: a container.
async fn in_itself(host: &Host, id: &MachineId, container: Option<&str>) -> Result<(), Failure> {
    if container.is_some() {
        let text = "machine: excludes `container`; allowed beside it is false";
        return Err(Failure::new(Code::InvalidValue, text));
    }
    // What runs, which a version that was written last may not yet be.
    let machine = host.client.machine(id).await.map_err(|error| of_host(error, id))?;
    let containers = &machine.config.containers;
    if containers.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = containers.iter().map(|one| one.name.as_str()).collect();
    let text = "machine: is not supported of a machine that has containers";
    Err(Failure::new(Code::UnsupportedKey, text)
        .with_hint(format!("name one of them with `container`: {}", names.join(", "))))
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
