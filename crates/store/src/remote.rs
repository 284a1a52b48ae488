//! A client of a store that another process serves over a Unix socket.
//!
//! Never retries and keeps no connection between calls: a server that was restarted is found
//! again by the next call.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use perch_types::error::chain;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

use crate::{
    Compare, Entry, Error, Event, LeaseId, Listing, Op, Purpose, Revision, Store, Txn,
    VALUE_BYTES_MAX, Watch,
    directory::{check_ttl, check_txn},
    key,
    rpc::wire::{
        self, Fault, GrantRequest, KeyRequest, LeaseRequest, Line, PrefixRequest, TxnRequest,
        WatchRequest,
    },
};

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a watch may be silent: three beats.
const WATCH_SILENCE: Duration = Duration::from_secs(15);
/// How large an answer may be.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
/// How long a line of a watch may be: a value in base64, a key and what is around them.
const LINE_BYTES_MAX: usize = 2 * VALUE_BYTES_MAX;

/// A store served by another process.
#[derive(Debug, Clone)]
pub struct RemoteStore {
    socket: PathBuf,
}

impl RemoteStore {
    /// Names the socket. Nothing is connected before the first call.
    #[must_use]
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self { socket: socket.as_ref().to_path_buf() }
    }

    async fn call<R: DeserializeOwned>(
        &self,
        operation: &'static str,
        path: &'static str,
        request: &(impl Serialize + Sync),
    ) -> Result<R, Error> {
        let body = encode(operation, request)?;
        let answered = timeout(CALL_TIMEOUT, async {
            let (response, connection) = self.send(operation, path, body).await?;
            let answer = read(operation, response).await;
            drop(connection);
            answer
        });
        match answered.await {
            Ok(answer) => parse(operation, &answer?),
            Err(_) => Err(unavailable(operation, "it did not answer in time")),
        }
    }

    /// Sends a request; an answer other than 200 is an error.
    async fn send(
        &self,
        operation: &'static str,
        path: &'static str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Connection), Error> {
        let broken = |error: &dyn std::error::Error| unavailable(operation, chain(error));
        let socket = UnixStream::connect(&self.socket).await.map_err(|error| broken(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|error| broken(&error))?;
        // Its errors reach us through the sender and the body.
        let connection = Connection(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the directory ended");
            }
        }));
        let request = Request::post(path)
            .header(header::HOST, "directory")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        if response.status().is_success() {
            return Ok((response, connection));
        }
        let status = response.status();
        let body = read(operation, response).await?;
        match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) => Err(fault.into_error(operation)),
            Err(_) => Err(unavailable(operation, format!("it answered {status}"))),
        }
    }
}

/// The task of a connection, which ends with its user.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn unavailable(operation: &'static str, reason: impl Into<String>) -> Error {
    Error::Unavailable { operation, reason: reason.into() }
}

fn encode(operation: &'static str, request: &impl Serialize) -> Result<Bytes, Error> {
    serde_json::to_vec(request)
        .map(Bytes::from)
        .map_err(|error| unavailable(operation, error.to_string()))
}

fn parse<R: DeserializeOwned>(operation: &'static str, answer: &[u8]) -> Result<R, Error> {
    serde_json::from_slice(answer)
        .map_err(|error| unavailable(operation, format!("its answer does not parse: {error}")))
}

async fn read(operation: &'static str, response: Response<Incoming>) -> Result<Bytes, Error> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(unavailable(operation, "its answer is too large"))
        }
        Err(error) => Err(unavailable(operation, chain(error.as_ref()))),
    }
}

#[async_trait]
impl Store for RemoteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        key::check(key)?;
        self.call("get", wire::GET, &KeyRequest { key: key.to_owned() }).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        key::check_prefix(prefix)?;
        self.call("list", wire::LIST, &PrefixRequest { prefix: prefix.to_owned() }).await
    }

    async fn txn_for(
        &self,
        purpose: Purpose,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<Txn, Error> {
        check_txn(&compares, &ops)?;
        self.call("txn", wire::TXN, &TxnRequest { purpose, compares, ops }).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        key::check_prefix(prefix)?;
        let request = WatchRequest { prefix: prefix.to_owned(), from };
        let body = encode("watch", &request)?;
        let sent = timeout(CALL_TIMEOUT, self.send("watch", wire::WATCH, body));
        let (response, connection) = match sent.await {
            Ok(sent) => sent?,
            Err(_) => return Err(unavailable("watch", "it did not answer in time")),
        };
        let lines = Lines {
            body: response.into_body(),
            buffer: BytesMut::new(),
            searched: 0,
            is_over: false,
            _connection: connection,
        };
        Ok(stream::unfold(lines, |mut lines| async move {
            if lines.is_over {
                return None;
            }
            let result = lines.event().await;
            lines.is_over = result.is_err();
            Some((result, lines))
        })
        .boxed())
    }

    async fn grant(&self, ttl_s: u32) -> Result<LeaseId, Error> {
        check_ttl(ttl_s)?;
        self.call("grant lease", wire::GRANT, &GrantRequest { ttl_s }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.call("keep lease alive", wire::KEEP_ALIVE, &LeaseRequest { lease }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.call("revoke lease", wire::REVOKE, &LeaseRequest { lease }).await
    }
}

/// A watch as it comes in.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// How much of the buffer has no line's end.
    searched: usize,
    is_over: bool,
    _connection: Connection,
}

impl Lines {
    async fn event(&mut self) -> Result<Event, Error> {
        loop {
            match parse("watch", &self.line().await?)? {
                Line::Event(event) => return Ok(event),
                Line::Beat => {}
                Line::Fault(fault) => return Err(fault.into_error("watch")),
            }
        }
    }

    async fn line(&mut self) -> Result<BytesMut, Error> {
        loop {
            let rest = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + end);
                self.buffer.advance(1);
                self.searched = 0;
                return Ok(line);
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_BYTES_MAX {
                return Err(unavailable("watch", "a line is too long"));
            }
            let frame = timeout(WATCH_SILENCE, self.body.frame()).await;
            let frame = frame.map_err(|_| unavailable("watch", "it went silent"))?;
            let frame = frame.ok_or_else(|| unavailable("watch", "it broke off"))?;
            let frame = frame.map_err(|error| unavailable("watch", chain(&error)))?;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}
