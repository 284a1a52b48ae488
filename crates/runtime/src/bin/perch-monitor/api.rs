//! Connections to the machine's API socket: handed to the host's agent as they come.
//!
//! Never understands a byte that comes from inside, and never holds a connection: while no agent
//! takes it, it is answered that there is none.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use perch_runtime::handover::{Origin, pass_blocking};

use crate::clock;
use crate::shared::Shared;

/// Connections that are taken in a second; more wait in the kernel's queue.
const CONNECTIONS_PER_SECOND_MAX: u32 = 64;
/// How long somebody who is told that there is no API may take to send the request. A program that
/// has used up its share of the processors stands still for a while.
const REQUEST_TIMEOUT_MS: u64 = 10_000;
/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// The most of such a request that is read.
const REQUEST_BYTES: usize = 16 * 1024;
/// What is answered while no agent takes connections.
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\n\
    content-length: 88\r\n\
    connection: close\r\n\
    \r\n\
    {\"error\":\"the platform does not answer; try again in a moment\",\"status\":\"unavailable\"}\r\n";

/// Hands connections on until the monitor ends.
pub(crate) fn hand_over(shared: &Shared, socket: &UnixListener, agent: &Path) {
    let origin = Origin { machine: shared.info.machine.clone(), boot: shared.info.boot };
    let (mut second, mut taken) = (0, 0);
    loop {
        let Ok((connection, _)) = socket.accept() else {
            clock::pause(ACCEPT_PAUSE);
            continue;
        };
        let now_ms = clock::boot_ms();
        if now_ms / 1000 != second {
            (second, taken) = (now_ms / 1000, 0);
        }
        taken += 1;
        if taken >= CONNECTIONS_PER_SECOND_MAX {
            clock::pause(Duration::from_millis(1000 - now_ms % 1000));
        }
        if pass_blocking(agent, &origin, connection.as_fd()).is_err() {
            // Whoever went away meanwhile needs no answer.
            decline(&connection).ok();
        }
    }
}

/// Answers that there is nobody. The request is read, before and after, because a connection that is
/// closed with something unread, or on its way, breaks before its answer arrives.
fn decline(mut connection: &UnixStream) -> io::Result<()> {
    let until_ms = clock::boot_ms().saturating_add(REQUEST_TIMEOUT_MS);
    let patience = || Duration::from_millis(until_ms.saturating_sub(clock::boot_ms()).max(1));
    // Whoever had it in between may have wanted it not to block, which is the connection's, not theirs.
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(patience()))?;
    connection.set_write_timeout(Some(patience()))?;
    let mut request = [0; REQUEST_BYTES];
    let mut left = REQUEST_BYTES.saturating_sub(connection.read(&mut request)?);
    connection.write_all(UNAVAILABLE.as_bytes())?;
    connection.shutdown(Shutdown::Write)?;
    while left > 0 && clock::boot_ms() < until_ms {
        connection.set_read_timeout(Some(patience()))?;
        match connection.read(&mut request)? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_length_that_it_says() {
        let (head, body) = UNAVAILABLE.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }

    #[test]
    fn somebody_without_an_agent_is_answered_whole_however_the_request_comes() {
        let (mut inside, outside) = UnixStream::pair().unwrap();
        inside.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        let declined = std::thread::spawn(move || decline(&outside));
        let mut answer = vec![0; UNAVAILABLE.len()];
        inside.read_exact(&mut answer).unwrap();
        inside.write_all(b"\r\n").unwrap();
        assert_eq!(inside.read(&mut [0]).unwrap(), 0);
        drop(inside);
        declined.join().unwrap().unwrap();
        assert_eq!(answer, UNAVAILABLE.as_bytes());
    }
}
