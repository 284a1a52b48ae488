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
/// How long somebody who is told that there is no API may take to send the request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
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

/// Answers that there is nobody. The request is read first, because a connection that is closed
/// with something unread breaks before its answer arrives.
fn decline(mut connection: &UnixStream) -> io::Result<()> {
    connection.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    connection.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let _some = connection.read(&mut [0; REQUEST_BYTES])?;
    connection.write_all(UNAVAILABLE.as_bytes())?;
    connection.shutdown(Shutdown::Write)
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
    fn somebody_without_an_agent_is_answered() {
        let (mut inside, outside) = UnixStream::pair().unwrap();
        inside.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        decline(&outside).unwrap();
        drop(outside);
        let mut answer = String::new();
        inside.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, UNAVAILABLE);
    }
}
