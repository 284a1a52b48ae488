//! Lines of the edge in machines' logs.
//!
//! Never a text from outside: the edge names a code, and what that means is known here.

use perch_types::edge_code::edge_code;
use perch_types::host::EdgeNote;
use perch_types::{ApiError, Code, MachineId};

use super::Host;

impl Host {
    /// Writes into a machine's log why the edge answered in its place. A line that comes while the
    /// machine changes may be lost.
    ///
    /// # Errors
    /// When there is no such machine or code.
    pub(crate) fn edge_note(&self, id: &MachineId, note: &EdgeNote) -> Result<(), ApiError> {
        let machine = self.shared.machine(id)?;
        machine.write_down(line(note)?);
        Ok(())
    }
}

fn line(note: &EdgeNote) -> Result<String, ApiError> {
    let known = edge_code(&note.code).ok_or_else(|| {
        ApiError::new(Code::InvalidRequest, "code: the edge has no such code")
            .with_hint("`perch explain` lists them")
    })?;
    let (code, meaning) = (known.code, known.meaning);
    Ok(match note.left_out {
        0 => format!("[{code}] {meaning}"),
        left_out => format!("[{code}] {meaning} (before it {left_out} such lines were left out)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_its_code_and_says_nothing_but_what_is_known() {
        let note = |code: &str, left_out| EdgeNote { code: code.to_owned(), left_out };
        let one = line(&note("PC01", 0)).unwrap();
        assert!(one.starts_with("[PC01] A machine runs") && !one.contains("left out"), "{one}");
        let more = line(&note("PC01", 12)).unwrap();
        assert!(more.ends_with("(before it 12 such lines were left out)"), "{more}");
        for unknown in ["", "pc01", "PC01]\n[root] hello"] {
            assert_eq!(line(&note(unknown, 0)).unwrap_err().code, Code::InvalidRequest);
        }
    }
}
