//! Whether a socket waits for more to send.
//!
//! Never asked for again where it is known: what a listener accepts has it of the listener.

use std::io;
use std::os::fd::AsFd;

use rustix::net::sockopt;

/// Has a socket send what is written at once, and not wait for what was sent before to be taken
/// (`TCP_NODELAY`).
///
/// # Errors
/// When the kernel refuses it, such as for a socket that is not TCP.
pub fn send_at_once(socket: &impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_tcp_nodelay(socket.as_fd(), true)?)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_a_listener_accepts_sends_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let accepted = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            drop(client);
            stream.nodelay().unwrap()
        };
        assert!(!accepted());
        send_at_once(&listener).unwrap();
        assert!(accepted());
    }
}
