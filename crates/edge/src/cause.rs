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
    /// The request's head took longer than the app allows.
    HeadSlow,
    /// The request's body came too slowly, or stopped.
    BodySlow,
    /// The request's body is larger than the edge takes.
    BodyTooLarge,
    /// No app has this host name.
    UnknownHost,
    /// The app has no machine that serves the port.
    NoMachine,
    /// Its machines do not run and may not be started by a request.
    NotStartable,
    /// A machine was started for the request and did not start.
    WakeFailed,
    /// A machine was started for the request and its program ended at once.
    Exited,
    /// A machine runs and does not listen where its service says.
    NotListening,
    /// The app has as many connections of clients as one app may.
    Crowded,
    /// A file of the app's image could not be read.
    StaticUnread,
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
    /// The app has not the machine that the request has to go to.
    InstanceUnknown,
    /// The app has no machine in the regions that the request has to go to.
    RegionEmpty,
    /// A request with too large a body is to be replayed.
    ReplayTooLarge,
    /// A request is replayed again and again.
    ReplayLoop,
    /// What the app says of a replay cannot be understood.
    ReplayBad,
    /// A request is to be replayed in an app that is not there for the one that says so.
    ReplayDenied,
    /// An app took a switch of protocols and says that another has to.
    ReplaySwitched,
    /// No machine took a replay in the time that the app set.
    ReplayLate,
    /// The edge of the machine's server cannot be reached, or was lost before the answer.
    HostAway,
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
    pub const ALL: [Self; 28] = [
        Self::BadRequest,
        Self::HeadTooLarge,
        Self::Misdirected,
        Self::HeadSlow,
        Self::BodySlow,
        Self::BodyTooLarge,
        Self::UnknownHost,
        Self::NoMachine,
        Self::NotStartable,
        Self::WakeFailed,
        Self::Exited,
        Self::NotListening,
        Self::Crowded,
        Self::StaticUnread,
        Self::Full,
        Self::QueueFull,
        Self::Upstream,
        Self::Slow,
        Self::BadAnswer,
        Self::InstanceUnknown,
        Self::RegionEmpty,
        Self::ReplayTooLarge,
        Self::ReplayLoop,
        Self::ReplayBad,
        Self::ReplayDenied,
        Self::ReplaySwitched,
        Self::ReplayLate,
        Self::HostAway,
    ];

    /// Returns the status.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::HeadSlow | Self::BodySlow => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnknownHost | Self::InstanceUnknown | Self::RegionEmpty => StatusCode::NOT_FOUND,
            Self::NotListening
            | Self::Exited
            | Self::Upstream
            | Self::BadAnswer
            | Self::ReplayTooLarge
            | Self::ReplayBad
            | Self::ReplayDenied
            | Self::ReplaySwitched
            | Self::HostAway => StatusCode::BAD_GATEWAY,
            Self::Slow | Self::ReplayLate => StatusCode::GATEWAY_TIMEOUT,
            Self::ReplayLoop => StatusCode::LOOP_DETECTED,
            Self::NoMachine
            | Self::NotStartable
            | Self::WakeFailed
            | Self::Crowded
            | Self::StaticUnread
            | Self::Full
            | Self::QueueFull => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns the code that the page and the log carry.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "PE03",
            Self::HeadTooLarge => "PE04",
            Self::Misdirected => "PT01",
            Self::HeadSlow => "PE02",
            Self::BodySlow => "PU05",
            Self::BodyTooLarge => "PU06",
            Self::UnknownHost => "PE01",
            Self::NoMachine => "PR01",
            Self::NotStartable => "PM08",
            Self::WakeFailed => "PM07",
            Self::Exited => "PM01",
            Self::NotListening => "PC01",
            Self::Crowded => "PR07",
            Self::StaticUnread => "PR05",
            Self::Full => "PR03",
            Self::QueueFull => "PR04",
            Self::Upstream => "PC02",
            Self::Slow => "PU02",
            Self::BadAnswer => "PU03",
            Self::InstanceUnknown => "PR02",
            Self::RegionEmpty => "PR06",
            Self::ReplayTooLarge => "PA01",
            Self::ReplayLoop => "PA02",
            Self::ReplayBad => "PA03",
            Self::ReplayDenied => "PA04",
            Self::ReplaySwitched => "PA05",
            Self::ReplayLate => "PA06",
            Self::HostAway => "PC03",
        }
    }

    /// Returns what the page says.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::BadRequest => "This request could not be understood.",
            Self::HeadTooLarge => "The head of this request is too large.",
            Self::Misdirected => "This connection is for another address.",
            Self::HeadSlow => "The head of this request came too slowly.",
            Self::BodySlow => "The body of this request came too slowly.",
            Self::BodyTooLarge => "The body of this request is too large.",
            Self::UnknownHost => "There is nothing at this address.",
            Self::NoMachine => "This app has no machine that serves requests.",
            Self::NotStartable => "This app is stopped.",
            Self::WakeFailed => "This app could not be started.",
            Self::Exited => "This app stopped right after it was started.",
            Self::NotListening => "This app does not listen for requests.",
            Self::StaticUnread => "A file of this app could not be read. Try again in a moment.",
            Self::Crowded | Self::Full | Self::QueueFull => {
                "This app is busy. Try again in a moment."
            }
            Self::Upstream => "This app closed the connection before it answered.",
            Self::Slow => "This app did not answer in time.",
            Self::BadAnswer => "This app's answer could not be understood.",
            Self::InstanceUnknown => "This app has no such machine.",
            Self::RegionEmpty => "This app has no machine in that region.",
            Self::ReplayTooLarge => {
                "This app sent a request on whose body is too large to be sent again."
            }
            Self::ReplayLoop => "This app sent a request on too often.",
            Self::ReplayBad => "This app sent a request on, and it is not clear where to.",
            Self::ReplayDenied => "This app sent a request on to where it may not go.",
            Self::ReplaySwitched => "This app sent a connection on that it had taken itself.",
            Self::ReplayLate => "This app sent a request on, and nobody took it in time.",
            Self::HostAway => "The server that this app runs on cannot be reached.",
        }
    }

    /// Returns what its owner can look at; empty where nothing helps.
    #[must_use]
    pub const fn owner_hint(self) -> &'static str {
        match self {
            Self::NoMachine => "perch deploy",
            Self::NotStartable => "perch machine start",
            Self::WakeFailed
            | Self::Exited
            | Self::Upstream
            | Self::Slow
            | Self::BadAnswer
            | Self::ReplayTooLarge
            | Self::ReplayLoop
            | Self::ReplayBad
            | Self::ReplayDenied
            | Self::ReplaySwitched
            | Self::ReplayLate => "perch logs",
            Self::NotListening => {
                "perch status: does it listen on 0.0.0.0 and the service's internal_port?"
            }
            Self::InstanceUnknown | Self::RegionEmpty | Self::HostAway => "perch machine list",
            Self::BadRequest
            | Self::HeadTooLarge
            | Self::Misdirected
            | Self::HeadSlow
            | Self::BodySlow
            | Self::BodyTooLarge
            | Self::UnknownHost
            | Self::Crowded
            | Self::StaticUnread
            | Self::Full
            | Self::QueueFull => "",
        }
    }

    /// Returns whose fault it is.
    #[must_use]
    pub const fn fault(self) -> Fault {
        match self {
            Self::BadRequest
            | Self::HeadTooLarge
            | Self::Misdirected
            | Self::HeadSlow
            | Self::BodySlow
            | Self::BodyTooLarge
            | Self::UnknownHost
            | Self::InstanceUnknown
            | Self::RegionEmpty => Fault::Client,
            Self::NoMachine
            | Self::NotStartable
            | Self::Exited
            | Self::NotListening
            | Self::Crowded
            | Self::Full
            | Self::QueueFull
            | Self::Upstream
            | Self::Slow
            | Self::BadAnswer
            | Self::ReplayTooLarge
            | Self::ReplayLoop
            | Self::ReplayBad
            | Self::ReplayDenied
            | Self::ReplaySwitched
            | Self::ReplayLate => Fault::Machine,
            Self::WakeFailed | Self::StaticUnread | Self::HostAway => Fault::Platform,
        }
    }

    /// Returns after how many seconds another try makes sense.
    #[must_use]
    pub const fn retry_after_s(self) -> Option<u32> {
        match self {
            Self::Crowded | Self::StaticUnread | Self::Full | Self::QueueFull => Some(1),
            Self::WakeFailed | Self::HostAway => Some(5),
            Self::BadRequest
            | Self::HeadTooLarge
            | Self::Misdirected
            | Self::HeadSlow
            | Self::BodySlow
            | Self::BodyTooLarge
            | Self::UnknownHost
            | Self::NoMachine
            | Self::NotStartable
            | Self::Exited
            | Self::NotListening
            | Self::Upstream
            | Self::Slow
            | Self::BadAnswer
            | Self::InstanceUnknown
            | Self::RegionEmpty
            | Self::ReplayTooLarge
            | Self::ReplayLoop
            | Self::ReplayBad
            | Self::ReplayDenied
            | Self::ReplaySwitched
            | Self::ReplayLate => None,
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

    #[test]
    fn every_cause_is_explained_and_nothing_else() {
        for cause in Cause::ALL {
            let told = perch_types::edge_code::edge_code(cause.code()).unwrap();
            assert_eq!(told.status, cause.status().as_u16(), "{cause:?}");
        }
        assert_eq!(perch_types::edge_code::EDGE_CODES.len(), Cause::ALL.len());
    }
}
