//! Takes connections at raw ports that other edges carry here, and passes them to this host's
//! machines.
//!
//! Never carries one on, and never takes a byte of one before a machine has taken it: until then
//! whoever asked may try elsewhere.

use std::sync::Arc;

use http::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use perch_types::service::Protocol;
use tokio::time::Instant;

use crate::body::ReplyBody;
use crate::cause::Cause;
use crate::listen::Worker;
use crate::raw::{Ends, Entry, Passed, Search};

use super::hop::{Order, Verdict};

impl Worker {
    /// Has a machine of this host take a connection, whose bytes pass from the answer on; else says
    /// why none does, and whether none has seen anything of it.
    pub(super) async fn receive_carried(
        &self,
        order: &Order,
        (ends, client): (Ends, Option<OnUpgrade>),
    ) -> Result<(Response<ReplyBody>, Verdict), (Cause, bool)> {
        let (Some(raw), Some(client)) = (&self.raw, client) else {
            return Err((Cause::HostAway, true));
        };
        let app = order.app.clone();
        let entry = Entry { protocol: Protocol::Tcp, port: order.public_port, app };
        let place = raw.enter(&entry, ends.client.ip()).ok_or((Cause::Crowded, true))?;
        let mut search = Search::ordered(&entry, order.machine.clone(), order.wait);
        let mut link = loop {
            let found = search.turn(self).await.map_err(|cause| (cause, true))?;
            if let Some(link) = found {
                break link;
            }
        };
        drop(search);
        link.begin(ends).await.map_err(|error| {
            tracing::debug!(%error, "machine not told of the client of another host");
            (Cause::Upstream, false)
        })?;
        let machine = link.machine().clone();
        let verdict = Verdict::From(machine.clone());
        let (raw, other) = (Arc::clone(raw), Some(order.from.clone()));
        tokio::task::spawn_local(async move {
            let began = Instant::now();
            let client = match client.await {
                Ok(client) => TokioIo::new(client),
                Err(error) => {
                    tracing::debug!(%error, "connection of another host not taken over");
                    return;
                }
            };
            let ended = link.pass(client, raw.terms()).await;
            drop(place);
            Passed { ended, machine, other }.tell(&entry, began);
        });
        Ok((Response::new(ReplyBody::Page(None)), verdict))
    }
}
