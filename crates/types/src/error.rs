//! Error codes and the body in which they reach a client.
//!
//! Never a sentence of its own: the text comes from whoever found the fault; the code alone
//! decides the HTTP status.

use serde::{Deserialize, Serialize};

use crate::volume::VolumeState;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal;)*) => {
        /// What went wrong, stable across releases (`perch explain CODE`).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the code as text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Returns the HTTP status that goes with it.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

codes! {
    /// The body or a parameter is not of the right shape; the text names the field.
    InvalidRequest = "invalid_request", 400;
    /// A field's value is refused; the text names the field and the allowed values.
    InvalidValue = "invalid_value", 422;
    /// A key of the configuration that this server cannot honour.
    UnsupportedKey = "unsupported_key", 422;
    /// No token, or one that is not known.
    Unauthenticated = "unauthenticated", 401;
    /// The token does not allow it.
    Forbidden = "forbidden", 403;
    /// There is no such thing, or the caller may not know of it.
    NotFound = "not_found", 404;
    /// There is no such app.
    AppNotFound = "app_not_found", 404;
    /// There is no such machine.
    MachineNotFound = "machine_not_found", 404;
    /// There is no such volume.
    VolumeNotFound = "volume_not_found", 404;
    /// There is no such snapshot.
    SnapshotNotFound = "snapshot_not_found", 404;
    /// A machine has the volume, so that another may not.
    VolumeAttached = "volume_attached", 409;
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405;
    /// A wait ended before the state was reached.
    DeadlineExceeded = "deadline_exceeded", 408;
    /// Another app has the public port.
    PortTaken = "port_taken", 409;
    /// The machine's state does not allow it.
    WrongState = "wrong_state", 409;
    /// The name is somebody's.
    NameTaken = "name_taken", 422;
    /// Somebody else holds the lease.
    LeaseHeld = "lease_held", 409;
    /// The machine has no lease.
    LeaseNotFound = "lease_not_found", 404;
    /// The lease whose nonce was sent has ended.
    LeaseLost = "lease_lost", 409;
    /// Somebody else changed it in between.
    Conflict = "conflict", 409;
    /// A precondition named in the request does not hold.
    PreconditionFailed = "precondition_failed", 412;
    /// The body is larger than the limit.
    BodyTooLarge = "body_too_large", 413;
    /// More requests than the limit.
    RateLimited = "rate_limited", 429;
    /// No registry that was asked has the image.
    ImageUnknown = "image_unknown", 422;
    /// The image could not be had: its registry did not answer or refused.
    ImageUnavailable = "image_unavailable", 422;
    /// The image broke a rule: digest, size, entries.
    ImageInvalid = "image_invalid", 422;
    /// The build did not succeed; the text has its last lines.
    BuildFailed = "build_failed", 422;
    /// The program ended right after its start.
    ExitedAtOnce = "exited_at_once", 422;
    /// The new version answered more requests with errors than the one before it.
    AnswersWorse = "answers_worse", 422;
    /// No host has room.
    InsufficientCapacity = "insufficient_capacity", 422;
    /// The disk is full.
    NoSpace = "no_space", 507;
    /// A part of the platform does not answer; try again.
    Unavailable = "unavailable", 503;
    /// A fault of the platform; its log has the request's id.
    Internal = "internal", 500;
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The longest error text that is sent or accepted, in bytes.
pub const ERROR_TEXT_BYTES_MAX: usize = 8 * 1024;

/// The body of every answer above 399 (contract 1.1), and the error of every call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{error}")]
pub struct ApiError {
    /// What went wrong, in words.
    pub error: String,
    /// The stable code.
    pub code: Code,
    /// The status word of the contract: `unknown`, `insufficient_capacity`, `name_taken`, and
    /// `error` for leases.
    #[serde(default)]
    pub status: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The request's id, in the server's log too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

impl ApiError {
    /// Makes an error of a code and its text.
    #[must_use]
    pub fn new(code: Code, error: impl Into<String>) -> Self {
        let status = match code {
            Code::InsufficientCapacity => "insufficient_capacity",
            Code::NameTaken => "name_taken",
            Code::LeaseHeld | Code::LeaseNotFound | Code::LeaseLost => "error",
            _ => "unknown",
        };
        Self { error: error.into(), code, status: status.to_owned(), hint: None, request: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Makes the error of an unknown app in the words that clients look for (contract 1.1).
    #[must_use]
    pub fn app_not_found(app: &str) -> Self {
        Self::new(Code::AppNotFound, format!("Could not find App \"{app}\""))
    }

    /// Makes the error of an unknown machine in the words that clients look for.
    #[must_use]
    pub fn machine_not_found(machine: &str) -> Self {
        Self::new(Code::MachineNotFound, format!("machine not found: {machine}"))
    }

    /// Makes the error of an unknown volume.
    #[must_use]
    pub fn volume_not_found(volume: &str) -> Self {
        Self::new(Code::VolumeNotFound, format!("volume not found: {volume}"))
    }

    /// Makes the error of a volume that another machine has.
    #[must_use]
    pub fn volume_attached(volume: &str, machine: &str) -> Self {
        Self::new(Code::VolumeAttached, format!("volume {volume} is attached to machine {machine}"))
            .with_hint(
                "one volume belongs to one machine: destroy that machine, or fork the volume",
            )
    }

    /// Makes the error of a volume whose state does not allow what was asked for.
    #[must_use]
    pub fn volume_state(volume: &str, state: VolumeState) -> Self {
        if state == VolumeState::Recovering {
            let text = format!("volume {volume} is {state}: its host does not have its image");
            return Self::new(Code::WrongState, text).with_hint(format!(
                "the server's operator puts `volumes/{volume}.img` back into the pool, which is \
                 noticed within a minute; a machine can be updated without the mount or \
                 destroyed, and the volume too"
            ));
        }
        Self::new(Code::WrongState, format!("volume {volume} is {state}"))
    }
}

/// Returns an error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_all_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("open the door")]
        struct Door(#[source] std::fmt::Error);
        #[derive(Debug, thiserror::Error)]
        #[error("enter")]
        struct Enter(#[source] Door);
        let bare = std::fmt::Error;
        assert_eq!(chain(&bare), bare.to_string());
        assert_eq!(chain(&Enter(Door(bare))), format!("enter: open the door: {bare}"));
    }

    #[test]
    fn every_code_is_written_as_serde_writes_it_and_is_an_error() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
            assert!((400..600).contains(&code.status()), "{code}");
        }
    }
}
