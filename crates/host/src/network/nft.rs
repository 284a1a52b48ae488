//! Changes of the nftables ruleset: a whole table through the `nft` program, one element of a
//! set straight over netlink.
//!
//! Never builds a rule: the text comes from [`super::rules`].

use std::io::Write as _;
use std::net::Ipv6Addr;
use std::process::{Command, Stdio};

use super::Error;
use super::netlink::{Channel, Refused, Request, attribute};
use super::rules::SAME_NETWORK;

/// The netlink protocol of netfilter.
pub(super) const NETFILTER: isize = 12;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM_NFTABLES: u16 = 10;
const NEW_SET_ELEMENT: u16 = (SUBSYSTEM_NFTABLES << 8) | 12;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;
const FAMILY_INET: u8 = 1;
/// Bytes of nft's complaint that are kept.
const COMPLAINT_BYTES_MAX: usize = 400;

/// Loads a ruleset in one transaction. Takes 5 to 15 ms: for start and end only.
pub(super) fn load(ruleset: &str) -> Result<(), Error> {
    let start = |source| Error::StartNft { source };
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let written = nft.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(ruleset.as_bytes()));
    let output = nft.wait_with_output().map_err(start)?;
    if output.status.success() {
        written.map_err(start)
    } else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(Error::LoadRules { complaint: complaint.chars().take(COMPLAINT_BYTES_MAX).collect() })
    }
}

/// Lets the machines of one network talk to each other. Twice is as once.
pub(super) fn add_network(
    channel: &mut Channel,
    table: &str,
    prefix: Ipv6Addr,
) -> Result<(), Refused> {
    let mut key = Vec::with_capacity(32);
    key.extend(prefix.octets());
    key.extend(prefix.octets());
    let value = nested(1, &nested_plain(1, &key));
    let element = nested(1, &value);
    let mut body = header(FAMILY_INET, 0);
    attribute(&mut body, 1, &zero_terminated(table));
    attribute(&mut body, 2, &zero_terminated(SAME_NETWORK));
    attribute(&mut body, 3 | NESTED, &element);
    let bracket =
        |kind| Request { kind, flags: 0, acknowledged: false, body: header(0, SUBSYSTEM_NFTABLES) };
    channel.transact(&[
        bracket(BATCH_BEGIN),
        Request { kind: NEW_SET_ELEMENT, flags: CREATE, acknowledged: true, body },
        bracket(BATCH_END),
    ])
}

fn header(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    nested_plain(kind | NESTED, value)
}

fn nested_plain(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 4);
    attribute(&mut bytes, kind, value);
    bytes
}

fn zero_terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
