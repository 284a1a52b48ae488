//! An issuer that is played over real TLS: by when to renew as it says it (RFC 9773), which not every
//! ACME server for tests does, and an account that it forgot.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use perch_certs::order::Fault;
use perch_certs::{Acme, AcmeConfig, Issuer as _, Renewal};
use perch_seal::Purpose;
use perch_store::{Expected, get_doc, put_doc};
use perch_types::certificate_docs::{AcmeAccount, RenewalId};
use perch_types::clock::Clock as _;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::world::World;

/// What a played issuer answers, by path, with the seconds of `Retry-After`.
type Answers = Arc<Mutex<Vec<(String, u16, Value, Option<u32>)>>>;

struct Played {
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
    url: String,
    roots: String,
}

impl Played {
    async fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (answers, asked) = (Answers::default(), Arc::new(Mutex::new(Vec::new())));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(serve(listener, acceptor, Arc::clone(&answers), Arc::clone(&asked)));
        Self { answers, asked, url, roots: certificate.pem() }
    }

    fn answer(&self, path: &str, status: u16, body: Value, again: Option<u32>) {
        let mut answers = self.answers.lock().unwrap();
        answers.retain(|(known, ..)| known != path);
        answers.push((path.to_owned(), status, body, again));
    }

    /// An issuer that has not been asked for anything yet.
    fn issuer(&self, world: &World, email: Option<&str>) -> Acme {
        let config = AcmeConfig {
            directory: format!("{}/directory", self.url),
            email: email.map(str::to_owned),
            roots: Some(self.roots.clone()),
        };
        let (store, key) = (Arc::clone(&world.store), Arc::clone(&world.key));
        Acme::new(config, store, key, world.clock.clone()).unwrap()
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (acceptor, answers) = (acceptor.clone(), Arc::clone(&answers));
        let asked = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut stream = acceptor.accept(stream).await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && head.len() < 8_192 {
                head.push(stream.read_u8().await?);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            // What is left unread would break the connection off under the answer.
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            let mut body = vec![0; length.unwrap_or_default()];
            stream.read_exact(&mut body).await?;
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            asked.lock().unwrap().push(path.clone());
            let found = answers.lock().unwrap().iter().find(|(known, ..)| *known == path).cloned();
            let (_, status, body, again) = found.unwrap_or_else(|| (path, 404, json!({}), None));
            let again = again.map(|seconds| format!("Retry-After: {seconds}\r\n"));
            let body = if head.starts_with("HEAD ") { String::new() } else { body.to_string() };
            let text = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 Replay-Nonce: nonce\r\n{}Content-Length: {}\r\n\r\n{body}",
                again.unwrap_or_default(),
                body.len()
            );
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await
        });
    }
}

fn id() -> RenewalId {
    RenewalId { authority: "aYhba4dGQEHhs3uEe6CuLN4ByNQ".to_owned(), serial: "AIdlQyE".to_owned() }
}

#[tokio::test]
async fn an_issuer_says_by_when_to_renew_and_when_to_ask_again() {
    let (world, played) = (World::start(), Played::start().await);
    let renewals = format!("{}/renewals", played.url);
    played.answer("/directory", 200, json!({"renewalInfo": renewals, "meta": {}}), None);
    let window = |start: &str, end: &str| json!({"suggestedWindow": {"start": start, "end": end}});
    let (start, end) = ("2026-01-02T04:00:00Z", "2026-01-03T04:00:00Z");
    let path = "/renewals/aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE";
    played.answer(path, 200, window(start, end), Some(21_600));
    let issuer = played.issuer(&world, None);
    let before = world.clock.now();
    let told = issuer.renewal(&id()).await.unwrap().unwrap();
    let Renewal { start: from, end: to, again } = told;
    assert_eq!((from, to), (start.parse().unwrap(), end.parse().unwrap()));
    let again = again.unwrap().unix_s() - before.unix_s();
    assert!((21_600..21_660).contains(&again), "{again}");
    // Without that it is asked as often as by itself; the directory is known by now.
    played.answer(path, 200, window(start, end), None);
    assert_eq!(issuer.renewal(&id()).await.unwrap().unwrap().again, None);
    assert_eq!(*played.asked.lock().unwrap(), ["/directory", path, path]);
    // A window that ends before it begins says nothing.
    played.answer(path, 200, window(end, start), None);
    assert_eq!(issuer.renewal(&id()).await, Ok(None));
    for (status, body) in [(200, json!({})), (404, json!({})), (200, window("soon", end))] {
        played.answer(path, status, body.clone(), None);
        let found = issuer.renewal(&id()).await;
        assert!(matches!(found, Err(Fault::Passing(_))), "{status} {body}: {found:?}");
    }
}

#[tokio::test]
async fn an_account_that_the_issuer_forgot_is_forgotten_when_it_is_to_be_introduced() {
    let (world, played) = (World::start(), Played::start().await);
    let at = |path: &str| format!("{}{path}", played.url);
    let directory = json!({
        "newNonce": at("/nonce"), "newAccount": at("/new"), "newOrder": at("/order"),
        "revokeCert": at("/revoke"), "keyChange": at("/change"),
    });
    played.answer("/directory", 200, directory, None);
    played.answer("/nonce", 200, json!({}), None);
    let gone = json!({
        "type": "urn:ietf:params:acme:error:accountDoesNotExist", "detail": "gone", "status": 400,
    });
    played.answer("/account/1", 400, gone, None);
    let issuer = played.issuer(&world, Some("ops@perch.example"));
    let (digest, directory) = issuer.account();
    let purpose = Purpose::AcmeAccountKey { directory: &directory };
    let key = KeyPair::generate().unwrap();
    let document = AcmeAccount {
        sealed_key: world.key.public().seal(purpose, &key.serialize_der()).unwrap(),
        directory,
        id: Some(at("/account/1")),
        email: None,
        ordered: Vec::new(),
        ordered_by: std::collections::BTreeMap::new(),
        rate_limited_until: None,
    };
    let path = (digest,);
    put_doc(world.store.as_ref(), &path, &document, Expected::Any).await.unwrap();
    let found = issuer.prepare().await;
    assert!(matches!(found, Err(Fault::Passing(_))), "{found:?}");
    let known = get_doc::<AcmeAccount>(world.store.as_ref(), &path).await.unwrap().unwrap();
    assert_eq!(known.document, AcmeAccount { id: None, ..document });
}

#[tokio::test]
async fn an_issuer_that_knows_nothing_of_it_is_not_asked() {
    let (world, played) = (World::start(), Played::start().await);
    played.answer("/directory", 200, json!({"newOrder": "x"}), None);
    let issuer = played.issuer(&world, None);
    assert_eq!(issuer.renewal(&id()).await, Ok(None));
    assert_eq!(*played.asked.lock().unwrap(), ["/directory"]);
}
