//! Whether the other side of a connection is still there.
//!
//! Never asked while bytes move: the kernel asks, and only into a silence.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// After how long a silence the kernel asks, how often again, and how many times without an answer.
const IDLE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(15);
const PROBES_MAX: u32 = 4;

/// Has the kernel ask the other side of a silent connection whether it is still there. Nothing else
/// finds out that somebody who waits for a quiet stream has lost the network. What a listener
/// accepts has it of the listener.
///
/// # Errors
/// When the kernel refuses it, such as for a socket that is not TCP.
pub fn keep_alive(socket: &impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, IDLE)?;
    sockopt::set_tcp_keepintvl(socket, PAUSE)?;
    sockopt::set_tcp_keepcnt(socket, PROBES_MAX)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_a_listener_accepts_is_asked_whether_it_is_still_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        keep_alive(&listener).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), IDLE);
        assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), PAUSE);
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), PROBES_MAX);
    }
}
