//! `perch open`.
//!
//! Never opens a browser where there is no display.

use std::process::{Command, Stdio};

use clap::Args;

use crate::error::{During as _, Result};
use crate::invocation::Invocation;
use crate::probe::Target;
use crate::ui::Ui;

#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Path to open
    #[arg(default_value = "/")]
    path: String,
}

pub(crate) async fn run(invocation: &Invocation, args: OpenArgs) -> Result {
    let name = invocation.app()?;
    let (api, address) = invocation.api_and_address()?;
    let app = api.app(&name).await.during(format!("look at the app `{name}`"))?;
    let platform = api.platform().await.during("look at the platform")?;
    let target = Target::new(&address, &platform, &app.hostname);
    let url = format!("{}/{}", target.url(), args.path.trim_start_matches('/'));
    invocation.ui.data(&url);
    let opener = opener();
    if let Some(program) = opener.filter(|_| Ui::is_interactive() && !invocation.ui.is_json()) {
        // A browser that does not come up is no fault of the command: the address was printed.
        let mut browser = Command::new(program);
        browser.arg(&url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        drop(browser.spawn());
    }
    Ok(())
}

/// Returns the program that opens addresses, where there is a display.
fn opener() -> Option<&'static str> {
    if cfg!(target_os = "macos") {
        return Some("open");
    }
    let display =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    display.then_some("xdg-open")
}
