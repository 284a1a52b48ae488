//! How a Postgres client asks for TLS before it begins (PostgreSQL's protocol, version 3).
//!
//! Never lets one in that does not ask: its password would pass in the open.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A request is its length and a code, which no version of the protocol has.
const REQUEST_BYTES: u32 = 8;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// How a TLS handshake begins: clients since version 17 may do without asking.
pub(super) const TLS_HANDSHAKE: u8 = 0x16;
/// The name of the protocol (ALPN).
pub(crate) const ALPN: &[u8] = b"postgresql";
/// How often a client may ask for something.
const ASKS_MAX: usize = 2;
/// What a client is told that asks for no TLS: an error in the protocol's form.
const REFUSAL: &[u8] = b"E\0\0\0\x5dSFATAL\0VFATAL\0C28000\0Mthis server takes connections under TLS only: use sslmode=require\0\0";

/// Answers a client until it may begin TLS; `false` when it wants none and was told so.
pub(super) async fn asked_for_tls<S>(stream: &mut S) -> io::Result<bool>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for _ in 0..ASKS_MAX {
        // Exactly the request is read: what a client, or somebody between, sends before the answer
        // is taken for a part of the handshake and so breaks it.
        let length = stream.read_u32().await?;
        let code = stream.read_u32().await?;
        match (length, code) {
            (REQUEST_BYTES, SSL_REQUEST) => {
                stream.write_all(b"S").await?;
                stream.flush().await?;
                return Ok(true);
            }
            (REQUEST_BYTES, GSS_REQUEST) => {
                stream.write_all(b"N").await?;
                stream.flush().await?;
            }
            _ => break,
        }
    }
    stream.write_all(REFUSAL).await?;
    stream.shutdown().await?;
    Ok(false)
}

/// Who may begin has asked for TLS, was told so, and nothing behind that was read: for the fuzz
/// target.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    use std::task::{Context, Poll, Waker};

    let request = |code: u32| [REQUEST_BYTES.to_be_bytes(), code.to_be_bytes()].concat();
    let (ssl, gss) = (request(SSL_REQUEST), request(GSS_REQUEST));
    // Whole requests get further than bytes that mean nothing.
    let mut sent = Vec::new();
    for byte in bytes {
        match byte % 4 {
            0 => sent.extend_from_slice(&ssl),
            1 => sent.extend_from_slice(&gss),
            _ => sent.push(*byte),
        }
    }
    let mut stream = tokio::io::join(sent.as_slice(), Vec::new());
    let asked = {
        let asking = std::pin::pin!(asked_for_tls(&mut stream));
        match asking.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(asked) => Some(asked),
            Poll::Pending => None,
        }
    };
    let (rest, said) = stream.into_inner();
    let read = sent.get(..sent.len() - rest.len()).unwrap_or_default();
    match asked {
        Some(Ok(true)) => {
            assert!(said == b"S" || said == b"NS", "{said:?}");
            assert!(read.ends_with(&ssl) && read.len() == said.len() * ssl.len(), "{read:?}");
        }
        Some(Ok(false)) => assert!(said.ends_with(REFUSAL), "{said:?}"),
        Some(Err(_)) => assert!(rest.is_empty(), "{rest:?}"),
        None => assert!(sent.is_empty(), "it waits although all has come"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SSL: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    const GSS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
    /// The start of a session in the open: version 3.0.
    const START: [u8; 8] = [0, 0, 0, 9, 0, 3, 0, 0];

    #[tokio::test]
    async fn only_who_asks_for_tls_may_begin() {
        for (sent, want, answer) in [
            (&[SSL][..], true, b"S".to_vec()),
            (&[GSS, SSL], true, b"NS".to_vec()),
            (&[START], false, REFUSAL.to_vec()),
            (&[GSS, START], false, [&b"N"[..], REFUSAL].concat()),
            (&[GSS, GSS, SSL], false, [&b"NN"[..], REFUSAL].concat()),
        ] {
            let (mut client, mut server) = tokio::io::duplex(256);
            client.write_all(&sent.concat()).await.unwrap();
            assert_eq!(asked_for_tls(&mut server).await.unwrap(), want, "{sent:?}");
            drop(server);
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, answer, "{sent:?}");
        }
        let (mut client, mut server) = tokio::io::duplex(256);
        client.write_all(&SSL[..7]).await.unwrap();
        drop(client);
        asked_for_tls(&mut server).await.unwrap_err();
    }

    #[test]
    fn the_refusal_says_its_length() {
        let length = u32::from_be_bytes(REFUSAL[1..5].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), REFUSAL.len() - 1);
    }
}
