//! Fuzz targets: functions that take any bytes and panic when what must hold does not.
//!
//! Never in a server: they are built for tests, and for the runner in the folder `fuzz`. Whoever
//! writes a parser of bytes from outside adds one.

#[path = "../../../fuzz/src/inputs.rs"]
mod inputs;

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::Message;
use perch_types::certificates::RecordType;

use crate::answer::Answer;
use crate::message::{self, DATAGRAM_BYTES_MAX};
use crate::zone::{GROWTH_MAX, TextSource, Way, Zone};
use crate::{lookups, upstream};

use self::inputs::unhex;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("dns_answers", answers),
    ("dns_questions", questions),
    ("dns_resolvers", resolvers),
    ("dns_zone", zone),
];

/// Messages that are as they should be, as the digits of their bytes, and a configuration.
pub const SEEDS: &[&str] = &[
    "\n",
    "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch example\n",
    // An address behind another name, one of IPv6, text, no such name, and a question.
    "0001818000010002000000000473686f70076578616d706c650000010001c00c000500010000003c000d0377\
     6562076578616d706c650003776562076578616d706c6500000100010000003c0004c0000201\n",
    "0001818000010001000000010473686f70076578616d706c6500001c0001c00c001c00010000003c00102001\
     0db800000000000000000000000100002904d0000000000000\n",
    "0001818000010001000000000f5f61636d652d6368616c6c656e67650473686f70076578616d706c65000010\
     0001c00c001000010000003c000703616263026465\n",
    "0001818300010000000100000473686f70076578616d706c650000060001076578616d706c65000006000100\
     00003c002e026e73076578616d706c650004726f6f74076578616d706c650000000001000000020000000300\
     00000400000005\n",
    "0001010000010000000000010377656208696e7465726e616c00001c000100002904d0000000000000\n",
    // Questions for text below the zone, and for who serves it.
    "00010000000100000000000101610441634d65076578616d706c650000100001000029ffff000000000000\n",
    "0001000000010000000000000461636d65076578616d706c650000060001\n",
];

/// The zone of [`zone`].
const ZONE: &str = "acme.example";
/// Bytes of a message before its question, in which a part of a name may lie.
const HEADER_BYTES: usize = 12;

const KINDS: [RecordType; 5] =
    [RecordType::A, RecordType::Aaaa, RecordType::Cname, RecordType::Txt, RecordType::Soa];

/// Records are so many as are read at most, and each is of the kind that was asked for.
fn answers(bytes: &[u8]) {
    let Ok(message) = Message::from_vec(&unhex(bytes)) else {
        return;
    };
    for kind in KINDS {
        let records = lookups::records_of(&message, kind).unwrap_or_default();
        assert!(records.len() <= lookups::RECORDS_MAX, "{kind:?}");
        for record in &records {
            let is_one = match kind {
                RecordType::A => record.parse::<Ipv4Addr>().is_ok(),
                RecordType::Aaaa => record.parse::<Ipv6Addr>().is_ok(),
                RecordType::Cname | RecordType::Soa => record.is_ascii(),
                RecordType::Txt => true,
            };
            assert!(is_one, "{kind:?}: {record:?}");
        }
    }
}

/// What is answered fits a datagram, is for who asked, and can be read.
fn questions(bytes: &[u8]) {
    let Ok(asked) = Message::from_vec(&unhex(bytes)) else {
        return;
    };
    let response = match message::question(&asked) {
        None => return,
        Some(Ok(query)) => {
            // Whatever the name is, it has labels or none.
            let _labels = message::labels(query.name());
            message::respond_with(&asked, query, Answer::Text("a".repeat(600)))
        }
        Some(Err(code)) => message::respond(&asked, code),
    };
    if let Some(bytes) = message::datagram(&asked, &response) {
        assert!(bytes.len() <= usize::from(DATAGRAM_BYTES_MAX), "{} bytes", bytes.len());
        let read = Message::from_vec(&bytes).ok();
        assert_eq!(read.map(|it| it.metadata.id), Some(asked.metadata.id));
    }
}

/// What is answered by datagram is not much longer than its question, carries its id, and says no
/// more than that somebody is to come by connection where that is all it is to say.
fn zone(bytes: &[u8]) {
    let question = unhex(bytes);
    let Ok(zone) = Zone::new(ZONE, &["ns.example".to_owned()]) else {
        return;
    };
    let texts = TextSource::new(|label| Some(vec![label.to_owned(); 9]));
    let answered = |way| {
        let bytes = zone.answer(&question, way, &texts)?;
        Some((bytes.len(), Message::from_vec(&bytes).expect("an answer that can be read")))
    };
    let Some((length, answer)) = answered(Way::Datagram) else {
        assert!(answered(Way::Connection).is_none() && answered(Way::Crowded).is_none());
        return;
    };
    assert!(length <= question.len() * GROWTH_MAX, "{length} bytes");
    assert_eq!(answer.metadata.id.to_be_bytes(), question[..2]);
    assert!(!answer.metadata.recursion_available && answer.queries.len() == 1);
    let (length, told) = answered(Way::Crowded).expect("whoever is answered is told to come");
    assert!(length <= question.len() + HEADER_BYTES && told.metadata.truncation, "{length} bytes");
    assert!(told.answers.is_empty() && told.authorities.is_empty());
}

/// Resolvers are few, and none is the one that would ask itself.
fn resolvers(bytes: &[u8]) {
    let own = [Ipv4Addr::LOCALHOST.into()];
    let found = upstream::upstreams(&String::from_utf8_lossy(bytes), &own);
    assert!(found.len() <= upstream::UPSTREAMS_MAX);
    assert!(found.iter().all(|it| it.port() == 53 && !own.contains(&it.ip())), "{found:?}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(bytes: &[u8]) {
        for (_, target) in TARGETS {
            target(bytes);
        }
    }

    #[test]
    fn seeds_hold() {
        for seed in SEEDS {
            run(seed.as_bytes());
        }
        // Else the targets would look at nothing.
        let of = |seed: &str| Message::from_vec(&unhex(seed.as_bytes())).unwrap();
        let address = lookups::records_of(&of(SEEDS[2]), RecordType::A).unwrap();
        assert_eq!(address, ["192.0.2.1"]);
        let zone = lookups::records_of(&of(SEEDS[5]), RecordType::Soa).unwrap();
        assert_eq!(zone, ["ns.example."]);
        assert!(message::question(&of(SEEDS[6])).is_some_and(|asked| asked.is_ok()));
        let below = of(SEEDS[7]).queries[0].name().to_ascii();
        assert!(below.to_ascii_lowercase().ends_with(&format!(".{ZONE}.")), "{below}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_bytes_hold(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            run(&bytes);
        }

        #[test]
        fn changed_seeds_hold(bytes in inputs::changed(SEEDS)) {
            run(&bytes);
        }
    }
}
