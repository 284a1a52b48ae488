//! An issuer in memory. It outlives the workers that ask it, as a real one does.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use perch_certs::order::Fault;
use perch_certs::{Issuer, Offer, Progress, Renewal};
use perch_types::certificate_docs::{ChallengeAnswer, ChallengeMethod, RenewalId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::CertificateSigningRequestDer;

#[derive(Debug, Default)]
struct Order {
    told: bool,
    chain: Option<String>,
}

/// What the issuer saw.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) placed: usize,
    pub(crate) finalized: usize,
    pub(crate) replaced: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    orders: BTreeMap<String, Order>,
    seen: Seen,
    refuses: Option<Fault>,
}

pub(crate) struct FakeIssuer {
    state: Mutex<State>,
    authority: rcgen::Issuer<'static, KeyPair>,
    methods: Vec<ChallengeMethod>,
    hangs: AtomicBool,
}

impl std::fmt::Debug for FakeIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeIssuer").field("methods", &self.methods).finish_non_exhaustive()
    }
}

impl FakeIssuer {
    pub(crate) fn new(methods: &[ChallengeMethod]) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = rcgen::Issuer::new(params, KeyPair::generate().unwrap());
        let (methods, hangs) = (methods.to_vec(), AtomicBool::new(false));
        Self { state: Mutex::default(), authority, methods, hangs }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.state.lock().unwrap().seen.clone()
    }

    /// Has the next order refused.
    pub(crate) fn refuse(&self, fault: Fault) {
        self.state.lock().unwrap().refuses = Some(fault);
    }

    /// Has orders that are placed answered never, or again.
    pub(crate) fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::SeqCst);
    }

    fn with<T>(&self, url: &str, act: impl FnOnce(&mut Order) -> T) -> Result<T, Fault> {
        let mut state = self.state.lock().unwrap();
        state.orders.get_mut(url).map(act).ok_or_else(|| Fault::Gone("no such order".to_owned()))
    }
}

#[async_trait]
impl Issuer for FakeIssuer {
    fn account(&self) -> (String, String) {
        ("fake".to_owned(), "https://issuer.example/directory".to_owned())
    }

    async fn prepare(&self) -> Result<(), Fault> {
        Ok(())
    }

    async fn place(&self, hostname: &str, replaces: Option<&RenewalId>) -> Result<String, Fault> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let mut state = self.state.lock().unwrap();
        state.seen.placed += 1;
        if let Some(fault) = state.refuses.take() {
            return Err(fault);
        }
        state.seen.replaced.extend(replaces.map(ToString::to_string));
        let url = format!("https://issuer.example/{hostname}/{}", state.seen.placed);
        state.orders.insert(url.clone(), Order::default());
        Ok(url)
    }

    async fn offer(&self, url: &str) -> Result<Offer, Fault> {
        let progress = self.progress(url).await?;
        let answer = |method: &ChallengeMethod| ChallengeAnswer {
            method: *method,
            token: "token".to_owned(),
            key_authorization: "token.thumb".to_owned(),
            txt: "digest".to_owned(),
        };
        Ok(Offer { progress, answers: self.methods.iter().map(answer).collect() })
    }

    async fn tell(&self, url: &str, _method: ChallengeMethod) -> Result<(), Fault> {
        self.with(url, |order| order.told = true)
    }

    async fn progress(&self, url: &str) -> Result<Progress, Fault> {
        self.with(url, |order| match (order.told, &order.chain) {
            (_, Some(_)) => Progress::Valid,
            (true, None) => Progress::Ready,
            (false, None) => Progress::Pending,
        })
    }

    async fn finalize(&self, url: &str, request_der: &[u8]) -> Result<(), Fault> {
        let der = CertificateSigningRequestDer::from(request_der.to_vec());
        let mut request = CertificateSigningRequestParams::from_der(&der).unwrap();
        request.params.not_before = date_time_ymd(2020, 1, 1);
        request.params.not_after = date_time_ymd(2090, 1, 1);
        request.params.use_authority_key_identifier_extension = true;
        let chain = request.signed_by(&self.authority).unwrap().pem();
        self.state.lock().unwrap().seen.finalized += 1;
        self.with(url, |order| order.chain = Some(chain))
    }

    async fn certificate(&self, url: &str) -> Result<String, Fault> {
        let chain = self.with(url, |order| order.chain.clone())?;
        chain.ok_or_else(|| Fault::Passing("not yet".to_owned()))
    }

    async fn renewal(&self, _id: &RenewalId) -> Result<Option<Renewal>, Fault> {
        Ok(None)
    }
}
