//! What a build cannot do (security N3, F8, T4, R11).

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perch_builder::{APP_HEADER, TOKEN_HEADER, router};
use perch_types::Code;
use perch_types::build::{BUILD_HEADER, STORE_HEADER};
use tower::ServiceExt as _;

use crate::bench::{Bench, SHELL, TOKEN, context, limits, missing, request};

#[tokio::test(flavor = "multi_thread")]
async fn n3_run_reaches_no_listener_of_the_host() {
    if missing("n3_run_reaches_no_listener_of_the_host") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let addresses =
        std::process::Command::new("ip").args(["-4", "-o", "addr", "show"]).output().unwrap();
    let addresses = String::from_utf8(addresses.stdout).unwrap();
    // Every address of the host, the cable's own end included, is tried from inside.
    let mut commands = format!(
        "RUN for a in 127.0.0.1 $(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p') {{}}; do nc -w 2 $a {port} </dev/null && echo \"reached $a\" || echo \"walled $a\"; done\n"
    );
    let own: Vec<&str> = addresses
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3))
        .filter_map(|prefix| prefix.split('/').next())
        .filter(|address| *address != "127.0.0.1")
        .collect();
    commands = commands.replace("{}", &own.join(" "));
    let answer = bench.build(&request("x"), context(&format!("{SHELL}{commands}"), &[])).await;
    let log = answer.log();
    assert!(log.contains("walled 127.0.0.1") && log.contains("walled 100."), "{log}");
    assert!(!log.contains("reached "), "{log}");
    assert!(listener.accept().is_err(), "somebody came through");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k7_run_is_nobody_on_the_host() {
    if missing("k7_run_is_nobody_on_the_host") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let sleeper = std::process::Command::new("sleep")
        .arg("60")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    let mut sleeper = sleeper.unwrap();
    let probe = format!(
        "RUN cat /proc/self/uid_map; \
         mount -t tmpfs x /mnt && echo mounted; \
         mknod /disk b 7 0 && echo node; \
         kill -9 {pid} && echo killed; \
         echo 1 > /proc/sys/net/ipv4/ip_forward && echo sysctl; \
         echo b > /proc/sysrq-trigger && echo sysrq; \
         cat /proc/1/environ && echo environ; \
         ls /proc/1/root/store && echo store; \
         wc -c < /proc/kcore; \
         grep -e CapEff -e Seccomp: /proc/self/status; env; exit 0\n",
        pid = sleeper.id()
    );
    let answer = bench.build(&request("x"), context(&format!("{SHELL}{probe}"), &[])).await;
    let log = answer.log();
    answer.image();
    let words = ["mounted", "node", "killed", "sysctl", "sysrq", "environ", "store"];
    for line in log.lines() {
        assert!(!words.contains(&line), "{line}\n{log}");
    }
    let map: Vec<_> = log.lines().next_back().into_iter().collect();
    assert!(!map.is_empty());
    assert!(log.contains("2147483648"), "the map of ids: {log}");
    assert!(log.contains("Seccomp:\t2"), "{log}");
    assert!(!log.contains(TOKEN), "{log}");
    assert!(log.contains("SSL_CERT_FILE=/dev/perch-ca.crt"), "{log}");
    assert!(sleeper.try_wait().unwrap().is_none(), "a process of the host was killed");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t4_run_can_read_from_the_registry_but_not_write_to_it() {
    if missing("t4_run_can_read_from_the_registry") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let commands = "RUN wget -q -O - http://127.0.0.1:5000/v2/ && echo readable; \
        wget -q -O - --post-data x http://127.0.0.1:5000/v2/web/blobs/uploads/ && echo writable; \
        wget -q -O - http://127.0.0.1:5000/debug/vars && echo elsewhere; exit 0\n";
    let answer = bench.build(&request("x"), context(&format!("{SHELL}{commands}"), &[])).await;
    let log = answer.log();
    assert!(log.contains("readable"), "{log}");
    assert!(!log.lines().any(|line| line == "writable" || line == "elsewhere"), "{log}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f8_a_context_stays_in_its_folder() {
    if missing("f8_a_context_stays_in_its_folder") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let outside = tempfile::NamedTempFile::new().unwrap();
    let target = outside.path().to_str().unwrap().to_owned();
    for (name, link) in [("link", target.as_str()), ("link", "../../../../../../../../etc")] {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, name, link).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        let through = if link == target { "link" } else { "link/hostile" };
        archive.append_data(&mut header, through, &b"evil"[..]).unwrap();
        let _whatever = bench.build(&request("x"), archive.into_inner().unwrap()).await;
        assert_eq!(std::fs::read(outside.path()).unwrap(), b"");
        assert!(!std::path::Path::new("/etc/hostile").exists());
    }
    // A Dockerfile that is a link out of the context is not the host's file.
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    archive.append_link(&mut header, "Dockerfile", "/etc/passwd").unwrap();
    let answer = bench.build(&request("x"), archive.into_inner().unwrap()).await;
    assert!(answer.error().error.contains("cannot be opened"), "{}", answer.error());

    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Block);
    header.set_path("disk").unwrap();
    header.set_size(0);
    header.set_device_major(7).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_cksum();
    archive.append(&header, std::io::empty()).unwrap();
    let answer = bench.build(&request("x"), archive.into_inner().unwrap()).await;
    assert_eq!(answer.error().code, Code::InvalidRequest, "{}", answer.error());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_takes_its_build_with_it() {
    if missing("a_client_that_goes_away") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let mark = format!("{}", 1000 + std::process::id());
    let dockerfile = format!("{SHELL}RUN sleep {mark}\n");
    let asked = http::Request::post("/builder/v1/build")
        .header(BUILD_HEADER, serde_json::to_string(&request("x")).unwrap())
        .header(APP_HEADER, "web")
        .header(STORE_HEADER, "web")
        .header(TOKEN_HEADER, TOKEN)
        .body(axum::body::Body::from(context(&dockerfile, &[])))
        .unwrap();
    let response = router(Arc::clone(&bench.builder)).oneshot(asked).await.unwrap();
    wait_for(|| sleeps(&mark), "the step to run").await;
    drop(response);
    wait_for(|| !sleeps(&mark), "the step to be killed").await;
    // The slot and the store are free again.
    bench.build(&request("x"), context(SHELL, &[])).await.image();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_an_app_sees_no_layer_of_another_and_pushes_nowhere_else() {
    if missing("r11_an_app_sees_no_layer_of_another") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let dockerfile = format!("{SHELL}RUN echo made by this build\n");
    bench.build(&request("x"), context(&dockerfile, &[])).await.image();
    let other = bench.build_app("other", &request("x"), context(&dockerfile, &[])).await.unwrap();
    assert!(other.log().contains("made by this build"), "{}", other.log());
    assert_eq!(other.error().code, Code::Forbidden, "{}", other.error());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_starts_again_lays_down_what_was_left() {
    if missing("a_builder_that_starts_again") {
        return;
    }
    let mut bench = Bench::open(limits()).await;
    let mark = format!("{}", 200_000 + std::process::id());
    let dockerfile = format!("{SHELL}RUN sleep {mark}\n");
    let first = Arc::clone(&bench.builder);
    let asked = http::Request::post("/builder/v1/build")
        .header(BUILD_HEADER, serde_json::to_string(&request("x")).unwrap())
        .header(APP_HEADER, "web")
        .header(STORE_HEADER, "web")
        .header(TOKEN_HEADER, TOKEN)
        .body(axum::body::Body::from(context(&dockerfile, &[])))
        .unwrap();
    let response = router(first).oneshot(asked).await.unwrap();
    wait_for(|| sleeps(&mark), "the step to run").await;
    bench.reopen().await;
    assert!(!sleeps(&mark), "the cage of the builder before lives on");
    drop(response);
    bench.build(&request("x"), context(SHELL, &[])).await.image();
    bench.close().await;
}

fn sleeps(mark: &str) -> bool {
    let wanted = format!("sleep\0{mark}\0");
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|text| text == wanted)
    })
}

async fn wait_for(condition: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_a_build_argument_loads_nothing_into_the_cages_programs() {
    if missing("r11_a_build_argument_loads_nothing_into_the_cages_programs") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let mut wanted = request("x");
    wanted.args.insert("LD_PRELOAD".to_owned(), "/context/none.so".to_owned());
    let answer = bench.build(&wanted, context(&format!("{SHELL}RUN true\n"), &[])).await;
    answer.image();
    // What the loader says of a library that it was told to load and that is not there.
    assert!(!answer.log().contains("none.so"), "{}", answer.log());
    bench.close().await;
}
