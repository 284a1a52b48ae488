use std::io::Write as _;

use super::*;

fn line(text: &str) -> Record {
    Record {
        seq: 0,
        unix_ms: 7,
        stream: Stream::Stdout,
        continues: false,
        dropped_before: 0,
        container: None,
        process: None,
        line: text.as_bytes().to_vec(),
    }
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|one| String::from_utf8_lossy(&one.line).into_owned()).collect()
}

#[test]
fn records_are_read_back_from_any_number_and_over_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(writer.add(line("one")).unwrap(), 1);
    assert_eq!(writer.add(line("two\x1b[2J")).unwrap(), 2);
    writer.flush().unwrap();
    drop(writer);
    let mut writer = Writer::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(writer.system(8, "three").unwrap(), 3);
    writer.flush().unwrap();
    assert_eq!(texts(&read(dir.path(), 0, 10).unwrap()), ["one", "two\x1b[2J", "three"]);
    assert_eq!(texts(&read(dir.path(), 2, 1).unwrap()), ["two\x1b[2J"]);
    assert_eq!(texts(&tail(dir.path(), 2).unwrap()), ["two\x1b[2J", "three"]);
    assert_eq!(read(dir.path(), 3, 1).unwrap()[0].stream, Stream::System);
    assert!(read(&dir.path().join("none"), 0, 1).unwrap().is_empty());
}

#[test]
fn a_log_never_takes_more_than_its_limit_and_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), 64 * 1024).unwrap();
    for number in 0..2000 {
        writer.add(line(&format!("{number} {}", "x".repeat(100)))).unwrap();
        writer.flush().unwrap();
        let size: u64 = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size <= 64 * 1024, "{size}");
    }
    let records = read(dir.path(), 0, RECORDS_MAX).unwrap();
    assert_eq!(records.last().unwrap().seq, 2000);
    assert!(records.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
    assert!(records.len() > 200 && records.len() < 600, "{}", records.len());
}

#[test]
fn a_record_that_a_crash_cut_off_is_cut_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), 1 << 20).unwrap();
    writer.add(line("whole")).unwrap();
    writer.flush().unwrap();
    drop(writer);
    let path = segment_path(dir.path(), 1);
    File::options().append(true).open(&path).unwrap().write_all(&[0, 0, 0, 9, 0, 0]).unwrap();
    assert_eq!(texts(&read(dir.path(), 0, 10).unwrap()), ["whole"]);
    let mut writer = Writer::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(writer.add(line("next")).unwrap(), 2);
    writer.flush().unwrap();
    assert_eq!(texts(&read(dir.path(), 0, 10).unwrap()), ["whole", "next"]);
}

#[test]
fn a_line_longer_than_the_limit_is_cut_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), 1 << 20).unwrap();
    writer.add(line(&"x".repeat(LINE_BYTES_MAX + 1))).unwrap();
    writer.flush().unwrap();
    assert_eq!(read(dir.path(), 0, 1).unwrap()[0].line.len(), LINE_BYTES_MAX);
}

#[tokio::test]
async fn a_follower_gets_what_is_added_later_across_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), 64 * 1024).unwrap();
    let mut follower = Follower::new(dir.path(), 1).unwrap();
    let path = dir.path().to_owned();
    let write = tokio::task::spawn_blocking(move || {
        for number in 0..400_u32 {
            writer.add(line(&format!("{number} {}", "x".repeat(100)))).unwrap();
            writer.flush().unwrap();
        }
    });
    let mut last = 0;
    while last < 400 {
        for record in follower.next(50).await.unwrap() {
            assert!(record.seq > last);
            last = record.seq;
        }
    }
    write.await.unwrap();
    assert!(segments(&path).unwrap().len() == 2);
}

proptest::proptest! {
    #[test]
    fn reading_any_bytes_never_panics(bytes: Vec<u8>) {
        let mut bytes = bytes.as_slice();
        while let Ok(Some(_)) = Record::decode(&mut bytes) {}
    }
}

#[test]
fn a_record_keeps_the_name_of_its_container_and_the_number_of_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), 1 << 20).unwrap();
    let given = [
        (None, None),
        (Some("web"), None),
        (Some(""), None),
        (None, Some(0)),
        (Some("web"), Some(7)),
    ];
    for (name, process) in given {
        let container = name.map(str::to_owned);
        writer.add(Record { container, process, ..line("hello") }).unwrap();
    }
    writer.flush().unwrap();
    let found = read(dir.path(), 0, 10).unwrap();
    let kept: Vec<_> = found.iter().map(|one| (one.container.as_deref(), one.process)).collect();
    assert_eq!(kept, given);
    assert_eq!(texts(&found), ["hello"; 5]);
    assert_eq!(next_seq(dir.path()).unwrap(), 6);
}
