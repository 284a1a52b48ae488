//! E5: what else a client of HTTP/2 can have the edge do for nothing: resets that the edge has to
//! make itself, measurements, and pieces of a body with nothing in them.

use http::StatusCode;
use perch_types::MachineState;

use crate::h2::{WEB, connect, frame, get, is_ended_by, send};
use crate::world::{Origin, World, machine};

/// More than any of them may be; a connection that goes on takes all of it.
const MANY: usize = 5_000;
/// Streams that are reset in one go: more than may be, few enough to be open at once.
const STREAMS: u32 = 1_000;
/// How many of the requests may get to the app before the connection ends: as many as are open at
/// once.
const PASSED_MAX: usize = 128;

/// A POST whose body is to come; perhaps it says of what length.
fn begun(stream: u32, length: Option<u8>) -> Vec<u8> {
    let mut fields = [b"\x83\x87\x84\x41\x13".as_slice(), b"web.perch.localhost"].concat();
    // `content-length` by its number in the table of names, its value said in full.
    fields.extend(length.into_iter().flat_map(|digit| [0x0f, 0x0d, 1, digit]));
    frame(0x1, 0x4, stream, &fields)
}

fn ids() -> impl Iterator<Item = u32> {
    (0..STREAMS).map(|index| 2 * index + 1)
}

#[test]
fn e5_resets_that_a_client_has_the_edge_make_end_the_connection() {
    let origin = Origin::fine();
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    world.runtime.block_on(async {
        for (what, bytes) in [
            // Credit beyond what a stream can have (RFC 9113, section 6.9.1).
            (
                "WINDOW_UPDATE",
                ids()
                    .flat_map(|id| {
                        [begun(id, None), frame(0x8, 0, id, &[0x7f, 0xff, 0xff, 0xff])].concat()
                    })
                    .collect::<Vec<u8>>(),
            ),
            // More body than was said (section 8.1.1).
            (
                "DATA",
                ids()
                    .flat_map(|id| [begun(id, Some(b'1')), frame(0x0, 0, id, b"ab")].concat())
                    .collect(),
            ),
            // A length that is none.
            ("content-length", ids().flat_map(|id| begun(id, Some(b'x'))).collect()),
        ] {
            let before = origin.count();
            assert!(is_ended_by(&world, bytes).await, "{what}");
            let passed = origin.count() - before;
            assert!(passed <= PASSED_MAX, "{what}: {passed} requests came through");
        }
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        assert_eq!(send(&mut sender, get(WEB, &[])).await.0, StatusCode::OK);
    });
}

#[test]
fn e5_pieces_of_a_body_with_nothing_in_them_end_the_connection() {
    let origin = Origin::fine();
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    world.runtime.block_on(async {
        let empty = frame(0x0, 0, 1, &[]).repeat(MANY);
        assert!(is_ended_by(&world, [begun(1, None), empty].concat()).await, "empty DATA");
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        assert_eq!(send(&mut sender, get(WEB, &[])).await.0, StatusCode::OK);
    });
}

#[test]
fn e5_a_flood_of_pings_ends_the_connection() {
    let origin = Origin::fine();
    let world = World::new(vec![machine(1, "web", MachineState::Started, origin.port)]);
    world.runtime.block_on(async {
        // Many more than of others: clients measure with them while they read.
        let pings = frame(0x6, 0, 0, b"12345678").repeat(100 * MANY);
        assert!(is_ended_by(&world, pings).await, "PING");
        let (mut sender, _end) = connect(&world, "web.perch.localhost").await;
        assert_eq!(send(&mut sender, get(WEB, &[])).await.0, StatusCode::OK);
    });
}
