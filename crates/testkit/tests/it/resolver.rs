//! A resolver for tests: it follows one CNAME record into a server's zone, and passes on all else.
//!
//! Never reads more of a message than its question and the texts that answer it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const HEADER_BYTES: usize = 12;
const CNAME: u8 = 5;
const TXT: u8 = 16;
/// How often it is looked whether anybody needs it still.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long whoever is asked may take.
const ASKED_TIMEOUT: Duration = Duration::from_secs(2);

/// A name and where it leads.
type Lead = Mutex<Option<(String, String)>>;

/// The resolver; it ends when this is dropped.
pub(crate) struct Resolver(Arc<Lead>);

impl Resolver {
    /// Starts it at a port; others are asked at `others`, and the server's zone at `zone`.
    pub(crate) fn start(at: u16, others: u16, zone: u16) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, at)).unwrap();
        socket.set_read_timeout(Some(LOOK_EVERY)).unwrap();
        let lead = Arc::<Lead>::default();
        let known = Arc::downgrade(&lead);
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Some(lead) = known.upgrade() {
                let Ok((length, source)) = socket.recv_from(&mut buffer) else { continue };
                let lead = lead.lock().unwrap().clone();
                let question = &buffer[..length];
                let answer = led(question, lead, zone).or_else(|| ask(question, others));
                if let Some(answer) = answer {
                    socket.send_to(&answer, source).ok();
                }
            }
        });
        Self(lead)
    }

    /// Has a name lead to another.
    pub(crate) fn lead(&self, name: &str, to: &str) {
        *self.0.lock().unwrap() = Some((name.to_owned(), to.to_owned()));
    }
}

fn ask(question: &[u8], port: u16) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    socket.set_read_timeout(Some(ASKED_TIMEOUT)).ok()?;
    socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok()?;
    socket.send(question).ok()?;
    let mut answer = vec![0; 4_096];
    let length = socket.recv(&mut answer).ok()?;
    answer.truncate(length);
    Some(answer)
}

/// Answers a question about the name that leads into the zone.
fn led(question: &[u8], lead: Option<(String, String)>, zone: u16) -> Option<Vec<u8>> {
    let (name, to) = lead?;
    let (asked, end) = asked(question)?;
    let kind = *question.get(end + 1)?;
    if asked != name || ![CNAME, TXT].contains(&kind) {
        return None;
    }
    let to = encoded(&to);
    let length = u16::try_from(to.len()).ok()?.to_be_bytes();
    let mut records =
        [&[0xc0, 0x0c, 0, CNAME, 0, 1, 0, 0, 0, 0][..], length.as_slice(), to.as_slice()].concat();
    let mut count = 1_u16;
    if kind == TXT {
        let next =
            [&[9, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], to.as_slice(), &[0, TXT, 0, 1]].concat();
        let answer = ask(&next, zone)?;
        let found = u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?]);
        // Where the name is that the CNAME record leads to.
        let owner = (0xc000 | u16::try_from(end + 4 + 12).ok()?).to_be_bytes();
        let mut rest = answer.get(next.len()..)?;
        for _ in 0..found {
            // A record is the place of its name, its kind, class and time, its length and the text.
            let length = HEADER_BYTES + usize::from(*rest.get(11)?);
            records.extend([owner.as_slice(), rest.get(2..length)?].concat());
            rest = rest.get(length..)?;
        }
        count += found;
    }
    let head = [question.get(..2)?, &[0x81, 0x80, 0, 1], &count.to_be_bytes(), &[0; 4]].concat();
    Some([head.as_slice(), question.get(HEADER_BYTES..end + 4)?, &records].concat())
}

/// Returns the name that a message asks about, in lower case, and where it ends.
fn asked(message: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut labels) = (HEADER_BYTES, Vec::new());
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = String::from_utf8_lossy(message.get(at..at + length)?);
        labels.push(label.to_ascii_lowercase());
        at += length;
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
