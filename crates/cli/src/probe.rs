//! Asks for an app's first page at the edge, as a visitor does.
//!
//! Never resolves the app's name: `*.localhost` and a name without a DNS entry are looked for at
//! the server that the API runs on.

use std::time::Duration;

use perch_client::Address;
use perch_types::api::Platform;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest head of an answer that is read.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Where and for whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The server's name or address.
    pub(crate) host: String,
    /// The edge's port for plain HTTP.
    pub(crate) port: u16,
    /// The edge's port for HTTPS, if it has one.
    pub(crate) https_port: Option<u16>,
    /// The app's host name.
    pub(crate) hostname: String,
}

/// What the edge answered last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A status that the app gave, or the edge instead of it.
    Status(u16),
    /// None.
    Nothing(String),
}

impl Target {
    /// Makes the target of an app on the server that an API's address names.
    pub(crate) fn new(api: &Address, platform: &Platform, hostname: &str) -> Self {
        let host = match api {
            Address::Unix(_) => "127.0.0.1".to_owned(),
            Address::Http { host, .. } | Address::Https { host, .. } => host.clone(),
        };
        let (port, https_port) = (platform.http_port, platform.https_port);
        Self { host, port, https_port, hostname: hostname.to_owned() }
    }

    /// Returns the address that a visitor types.
    pub(crate) fn url(&self) -> String {
        match (self.https_port, self.port) {
            (Some(443), _) => format!("https://{}", self.hostname),
            (Some(port), _) => format!("https://{}:{port}", self.hostname),
            (None, 80) => format!("http://{}", self.hostname),
            (None, port) => format!("http://{}:{port}", self.hostname),
        }
    }

    /// Asks until the app itself answers (502 to 504 are the edge's) or the time is over; returns
    /// the last answer.
    pub(crate) async fn wait(&self, patience: Duration) -> Answer {
        let begun = Instant::now();
        loop {
            let answer = self.ask().await;
            if matches!(answer, Answer::Status(status) if !(502..=504).contains(&status))
                || begun.elapsed() >= patience
            {
                return answer;
            }
            sleep(PAUSE).await;
        }
    }

    async fn ask(&self) -> Answer {
        match timeout(REQUEST_TIMEOUT, self.request()).await {
            Ok(Ok(Some(status))) => Answer::Status(status),
            Ok(Ok(None)) => Answer::Nothing("what came is no HTTP answer".to_owned()),
            Ok(Err(error)) => Answer::Nothing(error.to_string()),
            Err(_) => Answer::Nothing(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())),
        }
    }

    async fn request(&self) -> std::io::Result<Option<u16>> {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let host = match self.port {
            80 => self.hostname.clone(),
            port => format!("{}:{port}", self.hostname),
        };
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: perch/{}\r\nAccept: */*\r\n\
             Connection: close\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        let mut limited = stream.take(u64::try_from(HEAD_BYTES_MAX).unwrap_or(u64::MAX));
        while !head.contains(&b'\n') {
            if limited.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        Ok(status_of(&head))
    }
}

/// Returns the status of an answer's first line.
fn status_of(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok().filter(|status| (100..1000).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\nA: b\r\n"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 404\r\n"), Some(404));
        for bad in
            [b"".as_slice(), b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"HTTP/1.1 99999 x\n", b"\xff"]
        {
            assert_eq!(status_of(bad), None);
        }
    }

    #[test]
    fn the_port_is_shown_unless_it_is_the_usual_one() {
        let api: Address = "http://127.0.0.1:4280".parse().unwrap();
        for (http_port, https_port, want) in [
            (80, None, "http://web.localhost"),
            (8080, None, "http://web.localhost:8080"),
            (80, Some(443), "https://web.localhost"),
            (8080, Some(8443), "https://web.localhost:8443"),
        ] {
            let platform = Platform {
                version: "0.1.0".to_owned(),
                domain: "localhost".to_owned(),
                http_port,
                https_port,
                https_ca: None,
                certificate: None,
                registry: "127.0.0.1:1".to_owned(),
                region: "local".parse().unwrap(),
            };
            assert_eq!(Target::new(&api, &platform, "web.localhost").url(), want);
        }
    }
}
