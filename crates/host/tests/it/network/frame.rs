//! Packets written byte by byte, for what no socket would send.
//!
//! Never received here: `exchange` hands back raw frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::lab::{ip, run};

const EXCHANGE: &str = r"
import select, socket, sys, time
marker = bytes.fromhex(sys.argv[1])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(('eth0', 0))
for frame in sys.argv[2:]:
    s.send(bytes.fromhex(frame))
end = time.monotonic() + 5
while marker:
    left = end - time.monotonic()
    if left <= 0:
        sys.exit('no marker came')
    if select.select([s], [], [], left)[0]:
        frame, origin = s.recvfrom(4096)
        if origin[2] == 4:
            continue
        print(frame.hex())
        if marker in frame:
            break
";

/// Sends frames out of a machine's interface, then returns what comes in by it up to and with
/// the frame that holds `marker`; an empty marker waits for nothing.
pub(crate) fn exchange(namespace: &str, marker: &[u8], frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut arguments =
        vec!["netns".into(), "exec".into(), namespace.to_owned(), "python3".into(), "-c".into()];
    arguments.push(EXCHANGE.to_owned());
    arguments.push(hex(marker));
    arguments.extend(frames.iter().map(|frame| hex(frame)));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run("ip", &arguments).lines().map(unhex).collect()
}

/// Returns the hardware address of a machine's interface.
pub(crate) fn hardware_address(namespace: &str) -> Vec<u8> {
    let shown = ip(&["-n", namespace, "-br", "link", "show", "eth0"]);
    let text = shown.split_whitespace().nth(2).unwrap();
    unhex(&text.replace(':', ""))
}

/// Returns an Ethernet frame.
pub(crate) fn ethernet(to: &[u8], from: &[u8], kind: u16, payload: &[u8]) -> Vec<u8> {
    [to, from, &kind.to_be_bytes(), payload].concat()
}

/// Returns a UDP datagram in an IP packet in a frame.
pub(crate) fn udp(mac: &[u8], from: (IpAddr, u16), to: (IpAddr, u16), body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + body.len()).unwrap();
    let mut datagram = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(body);
    let packet = match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            return ethernet(mac, mac, 0x0800, &v4(from, to, 17, &datagram));
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let sum = checksum(&pseudo_v6(from, to, 17, &datagram));
            datagram[6..8].copy_from_slice(&sum.to_be_bytes());
            v6(from, to, 17, &datagram)
        }
        _ => panic!("one family"),
    };
    ethernet(mac, mac, 0x86dd, &packet)
}

/// Returns an IPv4 packet.
pub(crate) fn v4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

/// Returns an IPv6 packet; the hop limit is what neighbour discovery demands.
pub(crate) fn v6(from: Ipv6Addr, to: Ipv6Addr, next: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 255];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(body);
    packet
}

/// Returns an ICMPv6 packet in a frame to a multicast or the given hardware address.
pub(crate) fn icmpv6(mac: [&[u8]; 2], from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    let mut message = body.to_vec();
    let sum = checksum(&pseudo_v6(from, to, 58, &message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ethernet(mac[0], mac[1], 0x86dd, &v6(from, to, 58, &message))
}

/// Returns an ARP message in a frame to everybody: `operation` 1 asks, 2 answers.
pub(crate) fn arp(mac: &[u8], operation: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(mac);
    body.extend(sender.octets());
    body.extend([0; 6]);
    body.extend(target.octets());
    ethernet(&[0xff; 6], mac, 0x0806, &body)
}

fn pseudo_v6(from: Ipv6Addr, to: Ipv6Addr, next: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, next], body].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
