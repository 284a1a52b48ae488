//! Programs behind the edge, on loopback.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::until;

/// An answer without a fault.
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Returns an answer with the fields of a replay.
pub(crate) fn replay(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{fields}\r\n\r\n")
}

/// A program on loopback that counts what reaches it.
pub(crate) struct Origin {
    pub(crate) port: u16,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) last: Arc<Mutex<String>>,
}

impl Origin {
    /// Answers each request with what `answer` makes of its head; an empty answer, or one that
    /// ends with `!`, ends the connection.
    pub(crate) fn new(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    pub(crate) fn on(
        listener: TcpListener,
        answer: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        let origin = Self {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            requests: Arc::default(),
            last: Arc::default(),
        };
        let (connections, requests) =
            (Arc::clone(&origin.connections), Arc::clone(&origin.requests));
        let (last, answer) = (Arc::clone(&origin.last), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (requests, last, answer) =
                    (Arc::clone(&requests), Arc::clone(&last), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &requests, &last, answer.as_ref()));
            }
        });
        origin
    }

    pub(crate) fn fine() -> Self {
        Self::new(|_| OK.to_owned())
    }

    /// One that answers `/slow` when the gate opens.
    pub(crate) fn gated(gate: &Arc<AtomicBool>) -> Self {
        let gate = Arc::clone(gate);
        Self::new(move |head| {
            if head.contains("/slow") {
                until("the gate opens", || gate.load(Ordering::SeqCst));
            }
            OK.to_owned()
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn serve(
    mut stream: TcpStream,
    requests: &AtomicUsize,
    last: &Mutex<String>,
    answer: &dyn Fn(&str) -> String,
) {
    while let Some(head) = read_head(&mut stream) {
        requests.fetch_add(1, Ordering::SeqCst);
        last.lock().unwrap().clone_from(&head);
        let text = answer(&head);
        let sent = stream.write_all(text.trim_end_matches('!').as_bytes());
        if sent.is_err() || text.is_empty() || text.ends_with('!') {
            return;
        }
        if text.starts_with("HTTP/1.1 101") {
            let mut bytes = [0; 256];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                let echo = bytes[..count].to_ascii_uppercase();
                if stream.write_all(&echo).is_err() {
                    return;
                }
            }
            return;
        }
    }
}

/// Reads up to an empty line; bodies are not of interest here.
pub(crate) fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}
