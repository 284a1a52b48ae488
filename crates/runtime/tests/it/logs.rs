//! L2 and X1: one event is one record; a flood is dropped and counted and stops nothing.

use perch_runtime::log::{self, Stream};

use crate::machine::Machine;

#[tokio::test]
async fn x1_a_flood_is_dropped_and_counted_and_the_log_keeps_its_size() {
    let Some(mut machine) = Machine::new("flood") else {
        return;
    };
    machine.spec.log.bytes_max = 256 * 1024;
    // Little, so that a slow processor drops too.
    machine.spec.log.bytes_per_second_max = 8 * 1024;
    let (status, _) = machine.run("seq 1 200000; echo last; exit 4").await;
    assert_eq!(status.code, 4);
    let dir = machine.spec.dir.log_dir();
    let records = log::read(&dir, 0, log::RECORDS_MAX).unwrap();
    let dropped: u64 = records.iter().map(|one| one.dropped_before).sum();
    assert!(dropped > 100_000, "{dropped}");
    let size: u64 = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size <= 256 * 1024, "{size}");
    assert!(records.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
}

#[tokio::test]
async fn l2_a_line_is_one_record_whatever_it_holds() {
    let Some(machine) = Machine::new("lines") else {
        return;
    };
    machine.run("printf 'a\\033[2J\\rb\\000c\\377\\n'; printf 'no end'").await;
    let records = log::read(&machine.spec.dir.log_dir(), 0, 100).unwrap();
    let lines: Vec<&[u8]> = records
        .iter()
        .filter(|one| one.stream == Stream::Stdout)
        .map(|one| one.line.as_slice())
        .collect();
    assert_eq!(lines, [b"a\x1b[2J\rb\0c\xff".as_slice(), b"no end"]);
}

#[tokio::test]
async fn a_log_is_followed_while_the_machine_writes() {
    let Some(machine) = Machine::new("follow") else {
        return;
    };
    let instance = machine.runtime_create().await;
    let mut follower = log::Follower::new(&machine.spec.dir.log_dir(), 0).unwrap();
    instance
        .start(crate::machine::shell("for i in 1 2 3; do echo $i; sleep 0.05; done"))
        .await
        .unwrap();
    let mut found = Vec::new();
    while found.len() < 3 {
        let records = follower.next(1).await.unwrap();
        for record in records.into_iter().filter(|one| one.stream == Stream::Stdout) {
            found.push(String::from_utf8(record.line).unwrap());
        }
    }
    assert_eq!(found, ["1", "2", "3"]);
    crate::machine::wait(&*instance).await;
}
