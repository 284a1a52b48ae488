use hickory_proto::op::{Edns, MessageType, OpCode};

use super::*;

const SERVERS: [&str; 2] = ["ns1.example.net", "ns2.example.net"];

fn zone() -> Zone {
    Zone::new("acme.example.com", &SERVERS.map(str::to_owned)).unwrap()
}

/// Two texts below `label`, none below `empty`, and no other name.
fn texts() -> TextSource {
    TextSource::new(|label| match label {
        "label" => Some(vec!["one".to_owned(), "two".to_owned()]),
        "many" => Some(vec!["t".repeat(43); 20]),
        "empty" => Some(Vec::new()),
        _ => None,
    })
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4_711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask(question: &Message, way: Way) -> Option<Message> {
    let bytes = zone().answer(&question.to_vec().unwrap(), way, &texts())?;
    Some(Message::from_vec(&bytes).unwrap())
}

fn told(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

#[test]
fn the_zone_has_texts_its_servers_and_nothing_else() {
    use RecordType as Kind;
    let yes = ResponseCode::NoError;
    for (name, kind, code, want) in [
        ("label.acme.example.com.", Kind::TXT, yes, &["one", "two"][..]),
        // Names are compared without case.
        ("LABEL.acME.Example.com.", Kind::TXT, yes, &["one", "two"]),
        ("label.acme.example.com.", Kind::A, yes, &[]),
        ("label.acme.example.com.", Kind::AAAA, yes, &[]),
        ("label.acme.example.com.", Kind::CAA, yes, &[]),
        ("label.acme.example.com.", Kind::SOA, yes, &[]),
        ("empty.acme.example.com.", Kind::TXT, yes, &[]),
        ("acme.example.com.", Kind::NS, yes, &["ns1.example.net.", "ns2.example.net."]),
        ("acme.example.com.", Kind::TXT, yes, &[]),
        ("acme.example.com.", Kind::A, yes, &[]),
        ("other.acme.example.com.", Kind::TXT, ResponseCode::NXDomain, &[]),
        ("a.label.acme.example.com.", Kind::TXT, ResponseCode::NXDomain, &[]),
    ] {
        let answer = ask(&question(name, kind), Way::Datagram).unwrap();
        assert_eq!(
            (answer.metadata.response_code, told(&answer)),
            (code, to_owned(want)),
            "{name}"
        );
        assert!(answer.metadata.authoritative && !answer.metadata.recursion_available, "{name}");
        assert!(!answer.metadata.truncation, "{name} {kind}");
        // As it was asked, letter by letter: resolvers look at that.
        assert_eq!(answer.queries[0].name().to_ascii(), name);
        let nothing = answer.authorities.iter().filter(|it| it.record_type() == Kind::SOA);
        assert_eq!(nothing.count(), usize::from(want.is_empty()), "{name} {kind}");
        let short = answer.answers.iter().chain(&answer.authorities);
        let mut short = short.filter(|record| record.record_type() != Kind::NS);
        assert!(short.all(|record| record.ttl == TTL_SECONDS), "{name} {kind}");
    }
    let apex = ask(&question("acme.example.com.", Kind::SOA), Way::Datagram).unwrap();
    let RData::SOA(authority) = &apex.answers[0].data else { panic!("{apex:?}") };
    assert_eq!(authority.mname.to_ascii(), "ns1.example.net.");
    assert_eq!(authority.minimum, TTL_SECONDS, "what is missing now is there soon");
}

fn to_owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn n8_what_is_outside_the_zone_and_the_whole_of_it_are_refused() {
    for (name, kind) in [
        ("example.com.", RecordType::NS),
        ("example.com.", RecordType::SOA),
        ("other.example.", RecordType::A),
        ("xacme.example.com.", RecordType::TXT),
        (".", RecordType::NS),
        ("acme.example.com.", RecordType::AXFR),
        ("acme.example.com.", RecordType::IXFR),
        ("acme.example.com.", RecordType::ANY),
        ("label.acme.example.com.", RecordType::ANY),
    ] {
        for way in [Way::Datagram, Way::Connection] {
            let answer = ask(&question(name, kind), way).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{name} {kind}");
            assert!(answer.answers.is_empty() && answer.authorities.is_empty(), "{name} {kind}");
            assert!(!answer.metadata.authoritative && !answer.metadata.recursion_available);
        }
    }
    let mut update = question("acme.example.com.", RecordType::SOA);
    update.metadata.op_code = OpCode::Notify;
    let answer = ask(&update, Way::Datagram).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
}

#[test]
fn n8_what_is_no_question_has_no_answer() {
    let good = question("label.acme.example.com.", RecordType::TXT);
    let bytes = good.to_vec().unwrap();
    let answered = |bytes: &[u8]| zone().answer(bytes, Way::Datagram, &texts()).is_some();
    assert!(answered(&bytes));
    // Cut off anywhere.
    for length in 0..bytes.len() {
        assert!(!answered(&bytes[..length]), "{length} bytes");
    }
    // Many questions, or many records beside one, as claimed.
    for at in [4, 6, 8, 10] {
        let mut claims = bytes.clone();
        claims[at] = 255;
        assert!(!answered(&claims), "{at}");
    }
    let mut response = good;
    response.metadata.message_type = MessageType::Response;
    assert!(ask(&response, Way::Datagram).is_none(), "answers would be sent to and fro");
    let mut long = bytes;
    long.resize(QUESTION_BYTES_MAX + 1, 0);
    assert!(!answered(&long));
}

#[test]
fn n8_a_datagram_is_answered_with_little_more_than_it_has() {
    let many = question("many.acme.example.com.", RecordType::TXT);
    let cut = ask(&many, Way::Datagram).unwrap();
    assert!(cut.metadata.truncation && cut.metadata.authoritative && cut.answers.is_empty());
    assert!(!cut.metadata.recursion_available);
    let whole = ask(&many, Way::Connection).unwrap();
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, TEXTS_MAX));
    for (name, kind) in [
        ("many.acme.example.com.", RecordType::TXT),
        ("label.acme.example.com.", RecordType::TXT),
        ("acme.example.com.", RecordType::NS),
        ("acme.example.com.", RecordType::SOA),
        ("no.acme.example.com.", RecordType::A),
    ] {
        let asked = question(name, kind).to_vec().unwrap();
        let length = |way| zone().answer(&asked, way, &texts()).unwrap().len();
        assert!(length(Way::Datagram) <= asked.len() * GROWTH_MAX, "{name} {kind}");
        assert!(length(Way::Crowded) <= asked.len(), "{name} {kind}");
    }
    let crowded = ask(&question("label.acme.example.com.", RecordType::TXT), Way::Crowded).unwrap();
    assert!(crowded.metadata.truncation && crowded.answers.is_empty());
}

#[test]
fn extensions_are_answered_with_our_own_size_and_a_newer_version_is_refused() {
    let mut asked = question("label.acme.example.com.", RecordType::TXT);
    assert!(ask(&asked, Way::Datagram).unwrap().edns.is_none());
    let mut edns = Edns::new();
    edns.set_max_payload(u16::MAX);
    asked.set_edns(edns.clone());
    let answer = ask(&asked, Way::Datagram).unwrap();
    let size = answer.edns.map(|edns| edns.max_payload());
    assert_eq!((size, answer.answers.len()), (Some(message::DATAGRAM_BYTES_MAX), 2));
    edns.set_version(1);
    asked.set_edns(edns);
    let answer = ask(&asked, Way::Datagram).unwrap();
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert!(answer.answers.is_empty() && answer.edns.is_some_and(|edns| edns.version() == 0));
}

#[test]
fn names_that_are_none_make_no_zone() {
    let long = format!("{}.example", "a".repeat(64));
    for (name, server) in [(long.as_str(), "ns.example"), ("acme.example", long.as_str())] {
        let error = Zone::new(name, &[server.to_owned()]).unwrap_err();
        assert!(error.to_string().contains(&long), "{error}");
    }
}
