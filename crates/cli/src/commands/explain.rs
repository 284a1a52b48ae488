//! `perch explain CODE`.
//!
//! Never needs a platform.

use clap::Args;
use perch_types::Code;
use perch_types::edge_code::{EDGE_CODES, edge_code};

use crate::error::{CommandError, Result};
use crate::explain::page;
use crate::invocation::Invocation;

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Code of an error (`image_unknown`) or of the edge (`PC01`); without one, all are listed
    code: Option<String>,
}

pub(crate) fn run(invocation: &Invocation, args: &ExplainArgs) -> Result {
    let Some(name) = &args.code else {
        for code in Code::ALL {
            let first = page(*code).split(['.', ';', ':']).next().unwrap_or_default();
            invocation.ui.data(format!("{:<21} {first}", code.as_str()));
        }
        for one in &EDGE_CODES {
            let first = one.meaning.split(['.', ';', ':']).next().unwrap_or_default();
            invocation.ui.data(format!("{:<21} {first}", one.code));
        }
        return Ok(());
    };
    if let Some(one) = edge_code(&name.to_ascii_uppercase()) {
        let (code, status, meaning, advice) = (one.code, one.status, one.meaning, one.advice);
        invocation.ui.data(format!("{code} (HTTP {status})\n\n{meaning}\n\nDo: {advice}"));
        return Ok(());
    }
    let code = Code::ALL.iter().find(|code| code.as_str() == name).ok_or_else(|| {
        CommandError::usage(format!("`{name}` is no error code"), "`perch explain` lists them")
    })?;
    invocation.ui.data(format!("{code} (HTTP {})\n\n{}", code.status(), page(*code)));
    Ok(())
}
