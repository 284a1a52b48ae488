//! A small registry that says what a test tells it to, byte by byte.
//!
//! Never correct by itself: what it answers is the test's handler's to say. One connection carries
//! one request, so that whatever is wrong with an answer stays with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// The longest head of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    /// How many requests of the same method and path came before.
    pub(crate) before: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Returns the number in `Range: bytes=N-`.
    pub(crate) fn start(&self) -> Option<usize> {
        self.header("range").strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// The length that is said; nothing leaves the header out.
    pub(crate) says: Option<usize>,
    /// Stop and wait for a permit after so many bytes.
    pub(crate) hold: Option<(usize, Arc<Semaphore>)>,
    /// After the body, send zeros until the other side goes away.
    pub(crate) endless: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let says = Some(body.len());
        Self { status, headers: Vec::new(), body, says, hold: None, endless: false }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Keeps the length that is said and sends only so many bytes.
    pub(crate) fn cut(mut self, at: usize) -> Self {
        self.body.truncate(at);
        self
    }

    pub(crate) fn held(mut self, at: usize, gate: &Arc<Semaphore>) -> Self {
        self.hold = Some((at, Arc::clone(gate)));
        self
    }
}

type Handler = Box<dyn Fn(&Seen) -> Reply + Send + Sync>;

struct Inner {
    seen: Mutex<Vec<Seen>>,
    handler: Handler,
}

/// The registry; its port is closed when it is dropped.
pub(crate) struct Registry {
    pub(crate) address: String,
    inner: Arc<Inner>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Registry {
    pub(crate) async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_knowing(|_| handler).await
    }

    /// Starts one whose handler knows the address.
    pub(crate) async fn start_knowing<F>(make: impl FnOnce(&str) -> F) -> Self
    where
        F: Fn(&Seen) -> Reply + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let address = listener.local_addr().expect("address").to_string();
        let handler = Box::new(make(&address));
        let inner = Arc::new(Inner { seen: Mutex::default(), handler });
        let served = Arc::clone(&inner);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // An error is the client's going away, which is its right.
                let served = Arc::clone(&served);
                tokio::spawn(async move { serve(stream, &served).await });
            }
        });
        Self { address, inner, server }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how many requests of a method came whose path has this in it.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let seen = self.seen();
        seen.iter().filter(|seen| seen.method == method && seen.path.contains(part)).count()
    }

    /// Waits for the first request of which the path has this in it.
    pub(crate) async fn wait_for(&self, method: &str, part: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while self.count(method, part) == 0 {
            assert!(tokio::time::Instant::now() < deadline, "{method} {part} comes");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn serve(mut stream: TcpStream, inner: &Inner) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        head.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.lines();
    let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut seen = Seen { method, path, headers, before: 0 };
    {
        let mut all = inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.before =
            all.iter().filter(|old| old.path == seen.path && old.method == seen.method).count();
        all.push(seen.clone());
    }
    let reply = (inner.handler)(&seen);
    send(&mut stream, &seen, reply).await?;
    stream.shutdown().await?;
    // Until the other side has read all: a close with unread bytes would cut the answer off.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn send(stream: &mut TcpStream, seen: &Seen, reply: Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Said\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    if let Some(length) = reply.says {
        head.extend([format!("content-length: {length}\r\n")]);
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    if seen.method == "HEAD" {
        return Ok(());
    }
    let at = reply.hold.as_ref().map_or(reply.body.len(), |(at, _)| *at).min(reply.body.len());
    let (first, second) = reply.body.split_at(at);
    stream.write_all(first).await?;
    stream.flush().await?;
    if let Some((_, gate)) = &reply.hold {
        let permit = gate.acquire().await.map_err(std::io::Error::other)?;
        permit.forget();
    }
    stream.write_all(second).await?;
    if !reply.endless {
        return Ok(());
    }
    loop {
        stream.write_all(&[0; 4096]).await?;
    }
}
