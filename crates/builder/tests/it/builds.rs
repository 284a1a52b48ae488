//! Builds that succeed and builds that fail, as a client sees them.

use std::time::{Duration, Instant};

use perch_builder::Limits;
use perch_types::Code;
use perch_types::build::BuildEvent;

use crate::bench::{Bench, SHELL, context, limits, missing, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_context_becomes_a_pushed_image_and_the_second_time_comes_from_the_cache() {
    if missing("a_context_becomes_a_pushed_image") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let dockerfile = format!(
        "{SHELL}ARG COLOUR=red\nRUN echo \"colour $COLOUR\"; echo made > /made\nCMD [\"/bin/sh\"]\n"
    );
    let mut wanted = request("one");
    wanted.args.insert("COLOUR".to_owned(), "blue".to_owned());
    let answer = bench.build(&wanted, context(&dockerfile, &[])).await;
    let (reference, digest, size) = answer.image();
    assert_eq!(reference, "registry.internal/web:one");
    assert!(size > 100_000, "{size}");
    assert!(answer.log().contains("colour blue"), "{}", answer.log());
    let steps: Vec<_> = answer
        .events
        .iter()
        .filter_map(|event| match event {
            BuildEvent::Progress { text } if text.starts_with("step ") => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(steps.len(), 8, "{steps:?}");
    assert_eq!(steps[6], "step 7/8: RUN echo \"colour $COLOUR\"; echo made > /made");
    let (config, names) = bench.fetch("web", "one");
    assert_eq!(config["config"]["Cmd"][0], "/bin/sh");
    assert!(names.iter().any(|name| name == "made"));
    // None of what the builder offers to RUN is in the image.
    assert!(!config["config"].to_string().contains("perch"), "{config}");
    assert!(!names.iter().any(|name| name.contains("perch") || name.contains("ca-certificates")));

    let begin = Instant::now();
    let again = bench.build(&wanted, context(&dockerfile, &[])).await;
    assert!(!again.log().contains("colour blue"), "{}", again.log());
    assert_eq!(again.image().1, digest);
    assert!(begin.elapsed() < Duration::from_secs(20));
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_step_is_named_with_line_code_and_last_lines() {
    if missing("a_failing_step_is_named") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let dockerfile = format!(
        "{SHELL}\n# why\nRUN echo before && \\\n  echo 'no such thing' >&2; \\\n  exit 7\n"
    );
    let answer = bench.build(&request("x"), context(&dockerfile, &[])).await;
    let error = answer.error();
    assert_eq!(error.code, Code::BuildFailed);
    assert!(error.error.contains("(Dockerfile line 8) exited with code 7"), "{error}");
    assert!(error.error.contains("\n  before\n  no such thing"), "{error}");

    let answer =
        bench.build(&request("x"), context("FROM registry.internal/nobody:1\n", &[])).await;
    assert_eq!(answer.error().code, Code::ImageUnknown, "{}", answer.error());
    let answer = bench.build(&request("x"), context("FROM scratch\nCOPY nothing /\n", &[])).await;
    assert_eq!(answer.error().code, Code::BuildFailed);
    assert!(answer.error().error.contains("(Dockerfile line 2) failed"), "{}", answer.error());
    let answer = bench.build(&request("x"), context("FRM scratch\n", &[])).await;
    assert_eq!(answer.error().code, Code::BuildFailed);
    let mut other = request("x");
    other.dockerfile = Some("none/Dockerfile".to_owned());
    let answer = bench.build(&other, context("FROM scratch\n", &[])).await;
    assert!(answer.error().error.contains("`none/Dockerfile`"), "{}", answer.error());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_time_have_an_end_and_it_is_said() {
    if missing("memory_and_time_have_an_end") {
        return;
    }
    let bench = Bench::open(Limits { memory_bytes: 128 << 20, time_s_max: 12, ..limits() }).await;
    let greedy = format!("{SHELL}RUN tail /dev/zero\n");
    let answer = bench.build(&request("x"), context(&greedy, &[])).await;
    assert!(
        answer.error().error.contains("ran out of memory: the build may use 128 MiB"),
        "{}",
        answer.error()
    );
    let endless = format!("{SHELL}RUN sleep 600\n");
    let answer = bench.build(&request("x"), context(&endless, &[])).await;
    assert!(answer.error().error.contains("took longer than 12 s"), "{}", answer.error());
    assert!(answer.error().error.contains("line 6"), "{}", answer.error());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_the_wrong_shape_is_refused_at_once() {
    if missing("a_request_of_the_wrong_shape") {
        return;
    }
    let bench = Bench::open(limits()).await;
    for tag in ["", "a b", "../x", "-x", "a:b"] {
        let refused = bench.try_build(&request(tag), context("FROM scratch\n", &[])).await;
        assert_eq!(refused.unwrap_err().code, Code::InvalidRequest, "{tag}");
    }
    let refused = bench.try_build(&request("x"), Vec::new()).await;
    assert_eq!(refused.unwrap_err().code, Code::InvalidRequest);
    let answer = bench.build(&request("x"), b"this is no archive".to_vec()).await;
    assert_eq!(answer.error().code, Code::InvalidRequest, "{}", answer.error());
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_base_image_is_fetched_again() {
    if missing("a_changed_base_image_is_fetched_again") {
        return;
    }
    let bench = Bench::open(limits()).await;
    let app = "FROM registry.internal/web:base\nRUN cat /version\n";
    for version in ["first", "second"] {
        let base = format!("{SHELL}RUN echo {version} > /version\n");
        bench.build(&request("base"), context(&base, &[])).await.image();
        let answer = bench.build(&request("app"), context(app, &[])).await;
        answer.image();
        assert!(answer.log().lines().any(|line| line == version), "{}", answer.log());
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_the_next_build_has_room_again() {
    if missing("a_full_disk_is_said") {
        return;
    }
    let bench = Bench::open(Limits { disk_bytes: 192 << 20, ..limits() }).await;
    let greedy = format!("{SHELL}RUN dd if=/dev/zero of=/big bs=1M count=400\n");
    let answer = bench.build(&request("x"), context(&greedy, &[])).await;
    assert_eq!(answer.error().code, Code::NoSpace, "{}", answer.error());
    assert!(answer.error().hint.is_some());
    bench.build(&request("x"), context(SHELL, &[])).await.image();
    let usage = bench.builder.usage().unwrap();
    let bytes = usage.iter().find(|store| store.name == "web").map(|store| store.bytes);
    assert!(bytes.is_some_and(|bytes| bytes > 0 && bytes < 64 << 20), "{usage:?}");
    assert_eq!(bench.builder.prune().unwrap(), ["web"]);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_beyond_the_limit_wait_and_say_so() {
    if missing("builds_beyond_the_limit_wait") {
        return;
    }
    let bench = Bench::open(Limits { builds_max: 1, builds_waiting_max: 1, ..limits() }).await;
    let slow = format!("{SHELL}RUN sleep 3\n");
    let (x, y, z) = (request("x"), request("y"), request("z"));
    let first = bench.build(&x, context(&slow, &[]));
    let second = bench.build(&y, context(SHELL, &[]));
    let third = bench.build(&z, context(SHELL, &[]));
    let (first, second, third) = tokio::join!(first, second, third);
    let mut waited = 0;
    let mut refused = 0;
    for answer in [&first, &second, &third] {
        match answer.events.last() {
            Some(BuildEvent::Failed { error }) if error.code == Code::RateLimited => refused += 1,
            _ => drop(answer.image()),
        }
        let waiting = BuildEvent::Progress { text: "waiting for 1 build".to_owned() };
        waited += usize::from(answer.events.contains(&waiting));
    }
    assert_eq!((waited, refused), (1, 1), "{first:#?}\n{second:#?}\n{third:#?}");
    bench.close().await;
}
