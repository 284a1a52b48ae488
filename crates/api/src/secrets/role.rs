//! The role `keys`, as the api asks it.
//!
//! Never shows why it does not answer: that goes to the log.

use perch_client::KeysClient;
use perch_types::Code;
use perch_types::directory::AppDoc;
use perch_types::error::chain;
use perch_types::keys::AppRef;

use crate::config::Shared;
use crate::reply::Failure;

/// Returns how the role names an app.
pub(crate) fn app_ref(app: &AppDoc) -> AppRef {
    AppRef { org: app.org.clone(), app: app.name.clone(), app_id: app.id.clone() }
}

/// Returns the role, if there is one.
pub(crate) fn of(shared: &Shared) -> Result<&KeysClient, Failure> {
    let none = || Failure::new(Code::Unavailable, "this platform has no role `keys`");
    shared.keys.as_ref().ok_or_else(none)
}

/// Returns what a client is told when the role refuses or does not answer.
pub(crate) fn away(error: perch_client::Error) -> Failure {
    if error.code().is_some() {
        return Failure::from(error);
    }
    tracing::warn!(error = chain(&error), "role `keys` does not answer");
    Failure::new(Code::Unavailable, "the role `keys`, which has the keys, does not answer")
        .with_hint("nothing was changed; try again in a moment")
}
