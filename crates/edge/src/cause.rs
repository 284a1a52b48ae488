//! Why a request was not answered by its app: whose fault, which status, which code.
//!
//! Never says anything of other apps, or of what lies behind the edge.

#![deny(clippy::wildcard_enum_match_arm)]

use http::StatusCode;

/// Why the edge answers itself. The codes are the contract's (section 4.4) where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The request cannot be understood without doubt.
    BadRequest,
    /// The request's head is larger than anybody needs.
    HeadTooLarge,
    /// The connection was made for a name of somebody else.
    Misdirected,
    /// No app has this host name.
    UnknownHost,
    /// The app has no machine that serves HTTP.
    NoMachine,
    /// Its machines do not run and may not be started by a request.
    NotStartable,
    /// A machine was started for the request and did not start.
    WakeFailed,
    /// A machine was started for the request and its program ended at once.
    Exited,
    /// A machine runs and does not listen where its service says.
    NotListening,
    /// Every machine is at its hard limit.
    Full,
    /// Too many requests wait for the app to start.
    QueueFull,
    /// The machine refused or lost the connection before it answered.
    Upstream,
    /// The machine did not answer in time.
    Slow,
    /// The machine's answer cannot be understood without doubt.
    BadAnswer,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The client's.
    Client,
    /// The app's.
    Machine,
    /// Ours.
    Platform,
}

impl Cause {
    /// Every cause there is.
    pub const ALL: [Self; 14] = [
        Self::BadRequest,
        Self::HeadTooLarge,
        Self::Misdirected,
        Self::UnknownHost,
        Self::NoMachine,
        Self::NotStartable,
        Self::WakeFailed,
        Self::Exited,
        Self::NotListening,
        Self::Full,
        Self::QueueFull,
        Self::Upstream,
        Self::Slow,
        Self::BadAnswer,
    ];

    /// Returns the status.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::UnknownHost => StatusCode::NOT_FOUND,
            Self::NotListening | Self::Exited | Self::Upstream | Self::BadAnswer => {
                StatusCode::BAD_GATEWAY
            }
            Self::Slow => StatusCode::GATEWAY_TIMEOUT,
            Self::NoMachine
            | Self::NotStartable
            | Self::WakeFailed
            | Self::Full
            | Self::QueueFull => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns the code that the page and the log carry.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "PU01",
            Self::HeadTooLarge => "PU04",
            Self::Misdirected => "PT01",
            Self::UnknownHost => "PR02",
            Self::NoMachine => "PR01",
            Self::NotStartable => "PM08",
            Self::WakeFailed => "PM07",
            Self::Exited => "PM01",
            Self::NotListening => "PC01",
            Self::Full => "PR03",
            Self::QueueFull => "PR04",
            Self::Upstream => "PC02",
            Self::Slow => "PU02",
            Self::BadAnswer => "PU03",
        }
    }

    /// Returns what the page says.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::BadRequest => "This request could not be understood.",
            Self::HeadTooLarge => "The head of this request is too large.",
            Self::Misdirected => "This connection is for another address.",
            Self::UnknownHost => "There is nothing at this address.",
            Self::NoMachine => "This app has no machine that serves requests.",
            Self::NotStartable => "This app is stopped.",
            Self::WakeFailed => "This app could not be started.",
            Self::Exited => "This app stopped right after it was started.",
            Self::NotListening => "This app does not listen for requests.",
            Self::Full | Self::QueueFull => "This app is busy. Try again in a moment.",
            Self::Upstream => "This app closed the connection before it answered.",
            Self::Slow => "This app did not answer in time.",
            Self::BadAnswer => "This app's answer could not be understood.",
        }
    }

    /// Returns what its owner can look at; empty where nothing helps.
    #[must_use]
    pub const fn owner_hint(self) -> &'static str {
        match self {
            Self::NoMachine => "perch deploy",
            Self::NotStartable => "perch machine start",
            Self::WakeFailed | Self::Exited | Self::Upstream | Self::Slow | Self::BadAnswer => {
                "perch logs"
            }
            Self::NotListening => {
                "perch status: does it listen on 0.0.0.0 and the service's internal_port?"
            }
            Self::BadRequest
            | Self::HeadTooLarge
            | Self::Misdirected
            | Self::UnknownHost
            | Self::Full
            | Self::QueueFull => "",
        }
    }

    /// Returns whose fault it is.
    #[must_use]
    pub const fn fault(self) -> Fault {
        match self {
            Self::BadRequest | Self::HeadTooLarge | Self::Misdirected | Self::UnknownHost => {
                Fault::Client
            }
            Self::NoMachine
            | Self::NotStartable
            | Self::Exited
            | Self::NotListening
            | Self::Full
            | Self::QueueFull
            | Self::Upstream
            | Self::Slow
            | Self::BadAnswer => Fault::Machine,
            Self::WakeFailed => Fault::Platform,
        }
    }

    /// Returns after how many seconds another try makes sense.
    #[must_use]
    pub const fn retry_after_s(self) -> Option<u32> {
        match self {
            Self::Full | Self::QueueFull => Some(1),
            Self::WakeFailed => Some(5),
            Self::BadRequest
            | Self::HeadTooLarge
            | Self::Misdirected
            | Self::UnknownHost
            | Self::NoMachine
            | Self::NotStartable
            | Self::Exited
            | Self::NotListening
            | Self::Upstream
            | Self::Slow
            | Self::BadAnswer => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_causes_share_a_code() {
        let mut codes: Vec<_> = Cause::ALL.iter().map(|cause| cause.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Cause::ALL.len());
    }

    #[test]
    fn the_clients_faults_are_4xx_and_the_others_5xx() {
        for cause in Cause::ALL {
            assert_eq!(
                cause.fault() == Fault::Client,
                cause.status().is_client_error(),
                "{cause:?}"
            );
        }
    }
}
