//! A registry in a process of its own, for tests that kill it: `serve FOLDER ADDRESS`. Everybody may do everything.
//!
//! Never ends by itself.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::sync::Arc;

use perch_registry::{Access, Authorize, Basic, Config, Decision, Limits, Registry};
use perch_types::Timestamp;
use perch_types::clock::Clock;
use rustix::time::{ClockId, clock_gettime};

#[derive(Debug)]
struct Everybody;

#[async_trait::async_trait]
impl Authorize for Everybody {
    async fn authorize(&self, _: Option<&Basic>, _: &str, _: Access) -> Decision {
        Decision::Allow
    }
}

#[derive(Debug)]
struct KernelClock;

impl Clock for KernelClock {
    fn now(&self) -> Timestamp {
        let time = clock_gettime(ClockId::Realtime);
        Timestamp::from_unix_ms(time.tv_sec * 1000 + time.tv_nsec / 1_000_000)
    }

    fn boot_ms(&self) -> u64 {
        let time = clock_gettime(ClockId::Boottime);
        u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap_or(0)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("serve FOLDER ADDRESS".into());
    };
    let registry = Registry::open(Config {
        root: root.into(),
        limits: Limits::default(),
        authorize: Arc::new(Everybody),
        clock: Arc::new(KernelClock),
    })
    .await?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    axum::serve(listener, registry.router()).await?;
    Ok(())
}
