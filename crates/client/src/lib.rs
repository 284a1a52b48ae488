//! Typed calls to the public API, to a host and to the role `keys`.
//!
//! Never retries on its own and never prints: what to do about an [`Error`] is the caller's.
//! Builds wherever tokio does; nothing here is for Linux alone.

#![forbid(unsafe_code)]

mod address;
mod api;
mod connection;
mod connector;
mod error;
mod host;
mod keys;
mod lines;
mod session;
mod tls;

pub use address::{Address, Fingerprint, InvalidAddress};
pub use api::{Api, ListFilter, Page, ProcessOrder, WaitFor};
pub use connection::{
    ANSWER_BYTES_MAX, BODY_TIMEOUT, BUILD_HEADERS_TIMEOUT, Connection, HEADERS_TIMEOUT,
    RequestBody, RequestParts, body_of,
};
pub use connector::CONNECT_TIMEOUT;
pub use error::{BoxError, Error, HostError};
pub use host::{HostClient, WATCH_IDLE_TIMEOUT};
pub use keys::KeysClient;
pub use lines::{LINE_BYTES_MAX, LineDecoder, LineTooLong, Lines, SNAPSHOT_LINE_BYTES_MAX};
pub use session::{FrameReader, FrameWriter, Session};
pub use tls::PINNED_SERVER_NAME;
