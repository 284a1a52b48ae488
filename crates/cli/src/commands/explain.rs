//! `perch explain CODE`.
//!
//! Never needs a platform.

use clap::Args;
use perch_types::Code;

use crate::error::{CommandError, Result};
use crate::explain::page;
use crate::invocation::Invocation;

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Code of an error, such as `image_unknown`; without one, all are listed
    code: Option<String>,
}

pub(crate) fn run(invocation: &Invocation, args: &ExplainArgs) -> Result {
    let Some(name) = &args.code else {
        for code in Code::ALL {
            let first = page(*code).split(['.', ';', ':']).next().unwrap_or_default();
            invocation.ui.data(format!("{:<21} {first}", code.as_str()));
        }
        return Ok(());
    };
    let code = Code::ALL.iter().find(|code| code.as_str() == name).ok_or_else(|| {
        CommandError::usage(format!("`{name}` is no error code"), "`perch explain` lists them")
    })?;
    invocation.ui.data(format!("{code} (HTTP {})\n\n{}", code.status(), page(*code)));
    Ok(())
}
