//! One order, carried on as far as it goes now.
//!
//! Never goes on after a write that did not happen: another worker has the order, or it is gone.

use std::sync::PoisonError;
use std::time::Duration;

use perch_seal::Purpose;
use perch_store::{
    Compare, Expected, LeaseId, Op, Revision, Txn, Versioned, compare, delete_doc, delete_op,
    get_doc, put_op,
};
use perch_types::certificate_docs::{
    AcmeAccount, CertificateDoc, CertificateOrder, ChallengeAnswer, ChallengeMethod, OrderWorker,
    PLATFORM_APP, ServedCertificate, order_key,
};
use perch_types::certificates::{CHAIN_BYTES_MAX, CertificateSource, RecordType, WILDCARD};
use perch_types::directory::Document as _;
use perch_types::error::chain;
use perch_types::{AppName, OrgSlug, Secret, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::{Context, Ended, WorkerConfig};
use crate::dns;
use crate::error::{Error, store as fault};
use crate::inspect;
use crate::issuer::Progress;
use crate::order::{self, Act, Before, Event, Fault, Held, Limits, Missing, Ways, advance};

/// How long this server's edge may take to know an answer that was written down.
const ANSWERED_TIMEOUT: Duration = Duration::from_secs(5);
/// Records that are shown of those that are there instead of the right one.
const SHOWN_MAX: usize = 4;
/// Steps that one task takes without a pause: an order has seven.
const STEPS_MAX: usize = 32;

type Key = (OrgSlug, AppName, String);

/// What follows from a step: the event, and what is written with the order.
struct Outcome {
    event: Event,
    compares: Vec<Compare>,
    ops: Vec<Op>,
}

impl From<Event> for Outcome {
    fn from(event: Event) -> Self {
        Self { event, compares: Vec::new(), ops: Vec::new() }
    }
}

/// Carries an order on until it has to wait.
pub(super) async fn carry_out(
    context: &Context,
    key: &str,
    lease: LeaseId,
) -> Result<Ended, Error> {
    let Some(key) = order_key(key) else { return Ok(Ended::Waits) };
    let run = Run { context, config: &context.config, key: &key };
    if !run.is_due().await? {
        return Ok(Ended::Waits);
    }
    let Some(claim) = run.claim(lease).await? else {
        tracing::debug!(hostname = key.2, "another worker has the order");
        return Ok(Ended::Elsewhere);
    };
    let done = run.steps(claim).await;
    let store = context.config.store.as_ref();
    let released = delete_doc::<OrderWorker>(store, &key, Expected::Revision(claim)).await;
    if let Err(error) = released {
        tracing::debug!(error = chain(&error), "lease of an order not released");
    }
    done.map(|()| Ended::Waits)
}

struct Run<'a> {
    context: &'a Context,
    config: &'a WorkerConfig,
    key: &'a Key,
}

impl Run<'_> {
    /// Returns whether something is to be done at all: what made it look due may be old.
    async fn is_due(&self) -> Result<bool, Error> {
        let found = get_doc::<CertificateOrder>(self.config.store.as_ref(), self.key).await;
        let (found, now) = (found.map_err(fault("read an order"))?, self.config.clock.now());
        Ok(found.is_some_and(|order| order::act(&order.document, now, false).is_some()))
    }

    /// Takes the order for this server; nothing when another one has it. What this server had
    /// before a restart is its own.
    async fn claim(&self, lease: LeaseId) -> Result<Option<Revision>, Error> {
        let store = self.config.store.as_ref();
        let found = get_doc::<OrderWorker>(store, self.key).await.map_err(fault("read a lease"))?;
        let expected = match found {
            None => Expected::Absent,
            Some(found) if found.document.host == self.config.host => {
                Expected::Revision(found.revision)
            }
            Some(_) => return Ok(None),
        };
        let worker = OrderWorker { host: self.config.host.clone() };
        let put = put_op(self.key, &worker).map_err(fault("write a lease"))?;
        let put = match put {
            Op::Put { key, value, .. } => Op::Put { key, value, lease: Some(lease) },
            other @ Op::Delete { .. } => other,
        };
        let compares = compare::<OrderWorker>(self.key, expected).into_iter().collect();
        match store.txn(compares, vec![put]).await.map_err(fault("write a lease"))? {
            Txn::Done { revision } => Ok(Some(revision)),
            Txn::Refused { .. } => Ok(None),
        }
    }

    async fn steps(&self, claim: Revision) -> Result<(), Error> {
        let store = self.config.store.as_ref();
        let mut reserved = false;
        for _ in 0..STEPS_MAX {
            let found = get_doc::<CertificateOrder>(store, self.key).await;
            let Some(order) = found.map_err(fault("read an order"))? else { return Ok(()) };
            if !self.is_wanted(&order.document).await? {
                return self.end(&order, claim).await;
            }
            let now = self.config.clock.now();
            let Some(act) = order::act(&order.document, now, reserved) else { return Ok(()) };
            let limit = self.config.limits.step_max;
            let outcome = match tokio::time::timeout(limit, self.act(act, &order)).await {
                Ok(outcome) => outcome?,
                Err(_) => too_slow(act).into(),
            };
            reserved = outcome.event == Event::Reserved;
            let written = self.write(order, outcome, claim, writes_for(act)).await;
            if reserved && written.is_err() {
                // Another order was faster at the account: nothing is placed with this place.
                let mut placed = self.context.placed.lock().unwrap_or_else(PoisonError::into_inner);
                placed.pop();
            }
            written?;
        }
        Ok(())
    }

    /// Returns whether there still is somebody who wants the certificate.
    async fn is_wanted(&self, order: &CertificateOrder) -> Result<bool, Error> {
        let found = get_doc::<CertificateDoc>(self.config.store.as_ref(), self.key).await;
        let found = found.map_err(fault("read a certificate"))?;
        Ok(found.is_some_and(|found| found.document.app_id == order.app_id))
    }

    /// Ends an order whose certificate nobody wants: it would be issued for nothing, again and
    /// again.
    async fn end(&self, order: &Versioned<CertificateOrder>, claim: Revision) -> Result<(), Error> {
        let (org, app, hostname) = self.key;
        tracing::warn!(%org, %app, hostname, "order of a certificate that nobody wants ended");
        let expected = [
            compare::<CertificateOrder>(self.key, Expected::Revision(order.revision)),
            compare::<OrderWorker>(self.key, Expected::Revision(claim)),
        ];
        let ops = vec![delete_op::<CertificateOrder>(self.key)];
        let ended = self.config.store.txn(expected.into_iter().flatten().collect(), ops).await;
        ended.and_then(Txn::or_conflict).map(drop).map_err(fault("end an order"))
    }

    async fn write(
        &self,
        order: Versioned<CertificateOrder>,
        outcome: Outcome,
        claim: Revision,
        purpose: perch_store::Purpose,
    ) -> Result<(), Error> {
        let now = self.config.clock.now();
        let (org, app, hostname) = self.key;
        let is_news = matches!(outcome.event, Event::Fault(_) | Event::Issued(_) | Event::Held(_));
        let next = advance(order.document, outcome.event, now, random()?);
        if is_news {
            let error = next.errors.first().map(|error| error.message.as_str());
            tracing::info!(
                %org, %app, hostname, error, failures = next.failures, due = %next.due,
                "order of a certificate went on"
            );
        }
        let expected = Expected::Revision(order.revision);
        let mut compares: Vec<_> =
            compare::<CertificateOrder>(self.key, expected).into_iter().collect();
        compares.extend(compare::<OrderWorker>(self.key, Expected::Revision(claim)));
        compares.extend(outcome.compares);
        let mut ops = vec![put_op(self.key, &next).map_err(fault("write an order"))?];
        ops.extend(outcome.ops);
        let written = self.config.store.txn_for(purpose, compares, ops).await;
        written.and_then(Txn::or_conflict).map(drop).map_err(fault("write an order"))
    }

    async fn act(&self, act: Act, order: &Versioned<CertificateOrder>) -> Result<Outcome, Error> {
        let done = match act {
            Act::Reserve => return self.reserve(&order.document).await,
            Act::Finalize => return self.finalize(&order.document).await,
            Act::Place => self.place().await?,
            Act::Choose => self.choose(&order.document).await?,
            Act::Tell => self.tell(&order.document).await,
            Act::Look => self.look(&order.document).await?,
            Act::AskWhen => self.ask_when().await?,
            Act::Reckon => Event::Reckoned(self.served().await?.map(|served| served.leaf)),
        };
        Ok(done.into())
    }

    async fn reserve(&self, order: &CertificateOrder) -> Result<Outcome, Error> {
        let account_key = (self.config.issuer.account().0,);
        // Asked before DNS and the issuer are: many may be held, and are looked at again and again.
        let account = self.account(&account_key).await?;
        let may_place = {
            let placed = self.context.placed.lock().unwrap_or_else(PoisonError::into_inner);
            let known = account.as_ref().map(|account| &account.document);
            self.may_place(order, known, &placed, self.config.clock.now())
        };
        if let Err(held) = may_place {
            return Ok(Event::Held(held).into());
        }
        if !self.has_address().await && !self.leads_to_zone(order).await {
            return Ok(Event::NoAddress.into());
        }
        if let Err(fault) = self.config.issuer.prepare().await {
            return Ok(Event::Fault(fault).into());
        }
        // It may be new, and others may have had their places meanwhile.
        let (account, now) = (self.account(&account_key).await?, self.config.clock.now());
        {
            let mut placed = self.context.placed.lock().unwrap_or_else(PoisonError::into_inner);
            let known = account.as_ref().map(|account| &account.document);
            if let Err(held) = self.may_place(order, known, &placed, now) {
                return Ok(Event::Held(held).into());
            }
            order::note_placed(&mut placed, now, Limits::SERVER_WINDOW_S);
        }
        let mut outcome = Outcome::from(Event::Reserved);
        if let Some(Versioned { mut document, revision }) = account {
            order::note_ordered(&mut document, (order, self.org()), now);
            outcome.ops.push(put_op(&account_key, &document).map_err(fault("write an account"))?);
            let expected = Expected::Revision(revision);
            outcome.compares.extend(compare::<AcmeAccount>(&account_key, expected));
        }
        Ok(outcome)
    }

    async fn account(&self, key: &(String,)) -> Result<Option<Versioned<AcmeAccount>>, Error> {
        let found = get_doc::<AcmeAccount>(self.config.store.as_ref(), key).await;
        found.map_err(fault("read an account"))
    }

    /// Returns whose the order is. The one for all of the platform's names spares many others: what
    /// the limit leaves of the issuer's own is for it.
    fn org(&self) -> Option<&OrgSlug> {
        Some(&self.key.0).filter(|_| self.key.1.as_str() != PLATFORM_APP)
    }

    /// Returns whether the limits leave a place, by what is known here and of the account.
    fn may_place(
        &self,
        order: &CertificateOrder,
        account: Option<&AcmeAccount>,
        placed: &[i64],
        now: Timestamp,
    ) -> Result<(), Held> {
        let (limits, org) = ((&self.config.limits, now), self.org());
        if let Some(org) = org {
            let others = self.context.domains().others((org, self.key.2.as_str()), now);
            order::domain_has_place(order, &others, limits)?;
        }
        order::may_place(order, Before { account, org, placed }, limits)
    }

    /// Returns whether an issuer could find the host name at all; it is tried where DNS does not
    /// answer this server. Names below another one need no address, only a record.
    async fn has_address(&self) -> bool {
        let hostname = &self.key.2;
        if hostname.starts_with(WILDCARD) {
            return true;
        }
        match dns::look(self.config.dns.as_ref(), hostname).await {
            Ok(seen) => !seen.resolved_addresses.is_empty(),
            Err(error) => {
                tracing::debug!(error = chain(&error), "host name not looked up");
                true
            }
        }
    }

    /// Returns where the name of DNS-01 may lead; empty without a zone of the platform's.
    fn target(&self, order: &CertificateOrder) -> String {
        dns::challenge_target(self.config.zone.as_deref(), &order.app_id, &self.key.2)
    }

    /// Returns where the name of DNS-01 leads, as far as DNS says it.
    async fn leads(&self) -> Vec<String> {
        let leads = dns::challenge_leads(self.config.dns.as_ref(), &self.key.2).await;
        leads
            .inspect_err(|error| tracing::debug!(error = chain(error), "challenge not looked up"))
            .unwrap_or_default()
    }

    /// Returns whether it leads to the platform's zone.
    async fn leads_to_zone(&self, order: &CertificateOrder) -> bool {
        let target = self.target(order);
        !target.is_empty() && self.leads().await.iter().any(|to| to.eq_ignore_ascii_case(&target))
    }

    async fn served(&self) -> Result<Option<ServedCertificate>, Error> {
        let (org, app, hostname) = self.key.clone();
        let key = (org, app, hostname, CertificateSource::Fly);
        let found = get_doc::<ServedCertificate>(self.config.store.as_ref(), &key).await;
        Ok(found.map_err(fault("read a certificate"))?.map(|found| found.document))
    }

    async fn place(&self) -> Result<Event, Error> {
        let served = self.served().await?;
        let replaces = served.as_ref().and_then(|served| served.leaf.renewal_id.as_ref());
        Ok(match self.config.issuer.place(&self.key.2, replaces).await {
            Ok(url) => Event::Placed(url),
            Err(Fault::Enough(pause, text)) => {
                self.limit_account(pause).await?;
                Event::Fault(Fault::Enough(pause, text))
            }
            Err(fault) => Event::Fault(fault),
        })
    }

    /// Writes down for all orders that the issuer has enough of the account.
    async fn limit_account(&self, pause: Option<Duration>) -> Result<(), Error> {
        let Some(pause) = pause else { return Ok(()) };
        let store = self.config.store.as_ref();
        let key = (self.config.issuer.account().0,);
        let found = get_doc::<AcmeAccount>(store, &key).await.map_err(fault("read an account"))?;
        let Some(Versioned { mut document, revision }) = found else { return Ok(()) };
        document.rate_limited_until =
            Some(self.config.clock.now().plus(pause.min(order::ACCOUNT_PAUSE_MAX)));
        let written =
            perch_store::put_doc(store, &key, &document, Expected::Revision(revision)).await;
        match written {
            // Somebody placed an order meanwhile; each hears of it by itself.
            Ok(_) | Err(perch_store::Error::Conflict { .. }) => Ok(()),
            Err(error) => Err(fault("write an account")(error)),
        }
    }

    async fn choose(&self, order: &CertificateOrder) -> Result<Event, Error> {
        let Some(url) = &order.url else { return Ok(gone()) };
        let offer = match self.config.issuer.offer(url).await {
            Ok(offer) => offer,
            Err(fault) => return Ok(Event::Fault(fault)),
        };
        match offer.progress {
            Progress::Pending => {}
            Progress::Ready => return self.satisfied(order),
            Progress::Invalid(word, text) => return Ok(Event::Fault(Fault::Refused(word, text))),
            Progress::Processing | Progress::Valid => return Ok(gone()),
        }
        let ways = Ways { tls: self.config.tls, zone: self.leads_to_zone(order).await };
        let chosen = order::choose(&self.key.2, &offer.answers, ways, order.failures);
        Ok(match chosen {
            Some(answer) => Event::Chosen(answer.clone()),
            None => {
                let ways = offer.answers.iter().map(|answer| format!("{:?}", answer.method));
                Event::NoWay(ways.collect::<Vec<_>>().join(", "))
            }
        })
    }

    async fn tell(&self, order: &CertificateOrder) -> Event {
        let (Some(url), Some(answer)) = (&order.url, &order.answer) else { return gone() };
        // Before DNS is asked: that there is nothing would be kept for a while.
        if !self.is_answered(order, answer).await {
            return Event::NotAnswered;
        }
        if answer.method == ChallengeMethod::Dns
            && let Some(missing) = self.missing(order, &answer.txt).await
        {
            return Event::NoRecord(missing);
        }
        match self.config.issuer.tell(url, answer.method).await {
            Ok(()) => Event::Told,
            Err(fault) => Event::Fault(fault),
        }
    }

    /// Waits until this server's view has an answer; returns whether it has.
    async fn is_answered(&self, order: &CertificateOrder, answer: &ChallengeAnswer) -> bool {
        let (view, hostname) = (&self.config.view, &self.key.2);
        let label = dns::challenge_label(&order.app_id, hostname);
        let is_there = || match answer.method {
            ChallengeMethod::Dns => view.texts(&label).contains(&answer.txt),
            ChallengeMethod::Http | ChallengeMethod::TlsAlpn => view.answers(hostname, answer),
        };
        let mut changed = view.changed();
        let answered = async { while !is_there() && changed.changed().await.is_ok() {} };
        tokio::time::timeout(ANSWERED_TIMEOUT, answered).await.is_ok()
    }

    /// Looks for the record that an order waits for; returns what is there instead, if it is not.
    async fn missing(&self, order: &CertificateOrder, txt: &str) -> Option<Missing> {
        let hostname = &self.key.2;
        let name = dns::challenge_name(hostname);
        let seen = match self.config.dns.records(&name, RecordType::Txt).await {
            Ok(seen) if seen.iter().any(|it| it == txt) => return None,
            Ok(seen) => seen.into_iter().take(SHOWN_MAX).collect(),
            Err(error) => vec![chain(&error)],
        };
        let leads = self.leads().await.into_iter().take(SHOWN_MAX).collect();
        let has_others = !hostname.starts_with(WILDCARD);
        Some(Missing { seen, leads, target: self.target(order), has_others })
    }

    async fn look(&self, order: &CertificateOrder) -> Result<Event, Error> {
        let Some(url) = &order.url else { return Ok(gone()) };
        match self.config.issuer.progress(url).await {
            Ok(Progress::Pending) => Ok(Event::Unfinished),
            Ok(Progress::Ready) => self.satisfied(order),
            Ok(Progress::Invalid(word, text)) => Ok(Event::Fault(Fault::Refused(word, text))),
            // Without a request of ours it cannot be.
            Ok(Progress::Processing | Progress::Valid) => Ok(gone()),
            Err(fault) => Ok(Event::Fault(fault)),
        }
    }

    /// Makes the key of the certificate; it is written down before a request with it is sent.
    fn satisfied(&self, order: &CertificateOrder) -> Result<Event, Error> {
        let key = KeyPair::generate().map_err(|error| Error::Key(chain(&error)))?;
        let pem = Secret::new(key.serialize_pem());
        let purpose = purpose(self.key, &order.app_id);
        Ok(Event::Satisfied(self.config.key.public().seal(purpose, pem.expose().as_bytes())?))
    }

    async fn finalize(&self, order: &CertificateOrder) -> Result<Outcome, Error> {
        let (Some(url), Some(sealed)) = (&order.url, &order.sealed_key) else {
            return Ok(gone().into());
        };
        let key = self.config.key.open_text(purpose(self.key, &order.app_id), sealed)?;
        let issuer = &self.config.issuer;
        let mut progress = issuer.progress(url).await;
        if progress == Ok(Progress::Ready) {
            // A request that arrived before a crash is not sent again: the order says so then.
            progress = match issuer.finalize(url, &self.request(&key)?).await {
                Ok(()) => issuer.progress(url).await,
                Err(fault) => Err(fault),
            };
        }
        let event = match progress {
            Ok(Progress::Valid) => match issuer.certificate(url).await {
                Ok(chain) => return self.issued(order, sealed, (chain, &key)),
                Err(fault) => Event::Fault(fault),
            },
            Ok(Progress::Ready | Progress::Processing) => Event::Unfinished,
            Ok(Progress::Pending) => gone(),
            Ok(Progress::Invalid(word, text)) => Event::Fault(Fault::Refused(word, text)),
            Err(fault) => Event::Fault(fault),
        };
        Ok(event.into())
    }

    fn request(&self, key: &Secret) -> Result<Vec<u8>, Error> {
        let fault = |error: rcgen::Error| Error::Key(chain(&error));
        let key = KeyPair::from_pem(key.expose()).map_err(fault)?;
        let mut params = CertificateParams::new(vec![self.key.2.clone()]).map_err(fault)?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(fault)?;
        Ok(request.der().to_vec())
    }

    /// Puts the certificate where edges see it, with the order's end.
    fn issued(
        &self,
        order: &CertificateOrder,
        sealed: &str,
        (chain, key): (String, &Secret),
    ) -> Result<Outcome, Error> {
        let bad = |text: String| -> Result<Outcome, Error> {
            Ok(Event::Fault(Fault::Refused("bad_certificate".to_owned(), text)).into())
        };
        if chain.len() > CHAIN_BYTES_MAX {
            return bad(format!("the issuer's certificate has {} bytes", chain.len()));
        }
        let leaf = match inspect::issued(&chain) {
            Ok(leaf) => leaf,
            Err(text) => return bad(format!("the issuer's certificate {text}")),
        };
        if let Err(text) = inspect::certified_key(&chain, key) {
            return bad(format!("the key of the issuer's certificate {text}"));
        }
        let (org, app, hostname) = self.key.clone();
        let document = ServedCertificate {
            app_id: order.app_id.clone(),
            chain,
            sealed_key: sealed.to_owned(),
            leaf: leaf.clone(),
            created_at: self.config.clock.now(),
        };
        let served = (org, app, hostname, CertificateSource::Fly);
        let mut outcome = Outcome::from(Event::Issued(leaf));
        outcome.ops.push(put_op(&served, &document).map_err(fault("write a certificate"))?);
        outcome.compares.push(Compare::Exists { key: CertificateDoc::key(self.key) });
        Ok(outcome)
    }

    async fn ask_when(&self) -> Result<Event, Error> {
        let served = self.served().await?;
        let Some(id) = served.and_then(|served| served.leaf.renewal_id) else {
            return Ok(Event::Renewal(None));
        };
        Ok(match self.config.issuer.renewal(&id).await {
            Ok(renewal) => Event::Renewal(renewal),
            Err(fault) => {
                tracing::debug!(?fault, hostname = self.key.2, "time of renewal not told");
                Event::NotAsked
            }
        })
    }
}

fn purpose<'a>((org, app, hostname): &'a Key, app_id: &'a str) -> Purpose<'a> {
    Purpose::CertificateKey { org, app, app_id, hostname }
}

/// Returns what follows from a step that did not come to an end.
fn too_slow(act: Act) -> Event {
    if act == Act::AskWhen {
        return Event::NotAsked;
    }
    Event::Fault(Fault::Passing("the step did not come to an end in its time".to_owned()))
}

/// Returns what a step's outcome is written for. What the issuer was asked for has a place on a full
/// disk too: it would be asked for once more when there is room.
const fn writes_for(act: Act) -> perch_store::Purpose {
    match act {
        Act::Place => perch_store::Purpose::Freeing,
        Act::Reserve
        | Act::Choose
        | Act::Tell
        | Act::Look
        | Act::Finalize
        | Act::AskWhen
        | Act::Reckon => perch_store::Purpose::Ordinary,
    }
}

fn gone() -> Event {
    Event::Fault(Fault::Gone("the order is not the one that was placed".to_owned()))
}

fn random() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Error::Key(error.to_string()))?;
    Ok(u64::from_be_bytes(bytes))
}
