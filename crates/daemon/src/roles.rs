//! The processes of a server: what each is given and how it lives.
//!
//! Never started by hand: the supervisor starts them, see [`crate::supervisor`].

pub(crate) mod builder;
pub(crate) mod front;
pub(crate) mod host;
pub(crate) mod images;
pub(crate) mod keys;

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::setup::{self, BEAT, BEAT_EVERY_MS, Purpose};

/// New files are their owner's alone; new folders can be searched, but not listed, by others.
const UMASK: u32 = 0o066;
/// How long blocking work that is under way may keep a process that stops.
const BLOCKING_END_MAX: Duration = Duration::from_secs(2);

/// A privilege class with a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// Root: machines, network, images.
    Host,
    /// A user of its own: api, edge, dns, registry, directory.
    Front,
    /// Builds images.
    Builder,
    /// A user of its own, without a network: the master key.
    Keys,
}

impl Role {
    /// In the order in which they are started.
    pub(crate) const ALL: [Self; 4] = [Self::Keys, Self::Host, Self::Front, Self::Builder];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Front => "front",
            Self::Builder => "builder",
            Self::Keys => "keys",
        }
    }

    /// The sockets that the process is given.
    pub(crate) const fn sockets(self) -> &'static [Purpose] {
        match self {
            Self::Host => &[Purpose::Host, Purpose::Monitors],
            Self::Front => &[
                Purpose::Api,
                Purpose::ApiTls,
                Purpose::ApiUnix,
                Purpose::Http,
                Purpose::Https,
                Purpose::EdgePeers,
                Purpose::Metrics,
                Purpose::DnsUdp,
                Purpose::DnsTcp,
                Purpose::ZoneUdp,
                Purpose::ZoneTcp,
                Purpose::Directory,
                Purpose::Inside,
                Purpose::DirectoryKeys,
            ],
            Self::Builder => &[Purpose::Builder],
            Self::Keys => &[Purpose::Keys, Purpose::KeysHost],
        }
    }

    /// Runs the process of this role until the supervisor ends it.
    pub(crate) fn run(self) -> Result<()> {
        if self != Self::Builder {
            // What a build writes has the modes that its tools give it.
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
        }
        if self == Self::Keys {
            // Before there is anything to lose, and before there are more threads.
            perch_keys::cage::enter().context("give up rights")?;
        }
        let (setup, sockets) = setup::receive(std::io::stdin())?;
        let channel = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("keep the supervision channel")?;
        if self == Self::Front {
            return front::process(setup, sockets, channel);
        }
        let runtime = runtime(self)?;
        let outcome = runtime.block_on(async {
            match self {
                Self::Host => host::run(setup, sockets, Beats(channel)).await,
                // Has returned above.
                Self::Front => Ok(()),
                Self::Builder => builder::run(setup, sockets, Beats(channel)).await,
                Self::Keys => keys::run(setup, sockets, Beats(channel)).await,
            }
        });
        runtime.shutdown_timeout(BLOCKING_END_MAX);
        outcome
    }
}

fn runtime(role: Role) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name(role.name())
        .build()
        .context("start the runtime")
}

/// Hands a bound socket to the runtime.
pub(crate) fn tcp(listener: std::net::TcpListener) -> Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true).context("prepare a socket")?;
    tokio::net::TcpListener::from_std(listener).context("prepare a socket")
}

/// Why a role ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The supervisor asked for it and waits a little.
    Asked,
    /// Another process is to take the place of this one, which ends what is under way beside it.
    Replaced,
    /// The supervisor is gone: another one may want the ports at once.
    Orphaned,
}

/// This process's end of the supervision channel.
#[derive(Debug)]
pub(crate) struct Beats(OwnedFd);

impl Beats {
    /// Shows signs of life until the process should end: the supervisor is gone or asks for it.
    ///
    /// The first sign says that the process is ready. `alive` is asked before every one: a wedged
    /// loop must not be covered by a runtime that still turns.
    pub(crate) async fn until_end(self, alive: impl Fn() -> bool) -> Result<End> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        // A terminal sends it to the whole group; the supervisor decides.
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        // Of a terminal that closes; from the supervisor it has a meaning.
        let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
        let channel = setup::stream(self.0)?;
        let mut ticks = tokio::time::interval(Duration::from_millis(BEAT_EVERY_MS));
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if alive() {
                        // A full channel means a slow supervisor; the next beat will do.
                        channel.try_write(&[BEAT]).ok();
                    }
                }
                // The supervisor sends nothing more: readable means that it is gone.
                _ = channel.readable() => return Ok(End::Orphaned),
                _ = terminate.recv() => return Ok(End::Asked),
                _ = hangup.recv() => return Ok(End::Replaced),
                _ = interrupt.recv() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn what_does_not_turn_shows_no_sign_of_life() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for turns in [true, false] {
            let (ended, shown) = runtime.block_on(async {
                let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                let mut ours = setup::stream(ours.into()).unwrap();
                let asked = Notify::new();
                let alive = || {
                    asked.notify_one();
                    turns
                };
                let supervisor = async {
                    // At the first the channel may not be known to have room yet.
                    asked.notified().await;
                    asked.notified().await;
                    ours.shutdown().await.unwrap();
                    let mut shown = Vec::new();
                    ours.read_to_end(&mut shown).await.unwrap();
                    shown
                };
                tokio::join!(Beats(theirs.into()).until_end(alive), supervisor)
            });
            assert_eq!(ended.unwrap(), End::Orphaned);
            assert_eq!(!shown.is_empty(), turns, "{shown:?}");
        }
    }
}
