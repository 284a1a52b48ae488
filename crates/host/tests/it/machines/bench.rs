//! How long things take, on real machines. Says so only when asked to.
//!
//! Never a test of speed: servers differ.

use std::io::Write as _;
use std::time::Instant;

use perch_types::host::Command;

use super::server::{Server, machine, tell, wait};

/// Set to measure: how many rounds.
const ROUNDS: &str = "PERCH_BENCH_ROUNDS";

fn say(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    let (p50, p90, p99) = (at(50), at(90), at(99));
    let text = format!("{what}: min {:.1} p50 {p50:.1} p90 {p90:.1} p99 {p99:.1} ms\n", at(0));
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

#[test]
fn measured() {
    let Some(rounds) = std::env::var(ROUNDS).ok().and_then(|rounds| rounds.parse().ok()) else {
        return;
    };
    Server::run("measured", |server| async move {
        let host = server.start().await;
        let (mut first, mut started, mut again, mut destroyed) = (vec![], vec![], vec![], vec![]);
        for number in 0..rounds {
            let request = machine(number, "echo hello; exec sleep 1000");
            let id = request.id.clone();
            let began = Instant::now();
            host.create(request).await.unwrap();
            wait(&host, &id, "started").await;
            started.push(began.elapsed().as_secs_f64() * 1e3);
            server.wait_for_output(&id, "hello").await;
            first.push(began.elapsed().as_secs_f64() * 1e3);
            let kill = Command::Stop {
                signal: Some(perch_types::machine_config::Signal::SigKill),
                timeout: None,
            };
            tell(&host, &id, kill).await;
            wait(&host, &id, "stopped").await;
            let began = Instant::now();
            tell(&host, &id, Command::Start).await;
            wait(&host, &id, "started").await;
            again.push(began.elapsed().as_secs_f64() * 1e3);
            let began = Instant::now();
            tell(&host, &id, Command::Destroy { force: true }).await;
            wait(&host, &id, "destroyed").await;
            destroyed.push(began.elapsed().as_secs_f64() * 1e3);
        }
        say("create to started", started);
        say("create to first output", first);
        say("start of stopped to started", again);
        say("destroy", destroyed);
        for (step, times) in host.step_times() {
            say(step, times);
        }
        host.remove_everything().await.unwrap();
    });
}
