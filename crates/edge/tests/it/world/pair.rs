//! Two servers on one: each has its edge and its host, and both have one directory.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use perch_client::HostClient;
use perch_edge::{
    Binder, Certificates, Config, Edge, FarConfig, Https, Limits, RawConfig, RawLimits, Readings,
    peer_name,
};
use perch_store::{Expected, SqliteStore, Store, ViewFollower, ViewHandle, put_doc};
use perch_types::clock::Clock;
use perch_types::directory::{EdgeDoc, MachineRecord};
use perch_types::ports::RawPort;
use perch_types::{HostId, MachineState};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{DEADLINE, Doors, Host, TestClock, claim_of, machine, put_app, until};
use crate::tls::Certs;

/// Who vouches for edges.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots
    }

    /// Makes a certificate for a name.
    pub(crate) fn issue(
        &self,
        name: String,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name]).unwrap();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![made.der().clone(), self.certificate.clone()], key)
    }
}

/// One of the two servers.
pub(crate) struct Side {
    /// Where clients come.
    pub(crate) address: SocketAddr,
    /// Where clients of HTTPS come, if it serves that.
    pub(crate) https: Option<SocketAddr>,
    /// Where other edges come.
    pub(crate) peers: SocketAddr,
    pub(crate) id: HostId,
    pub(crate) host: Arc<Host>,
    doors: Arc<Doors>,
    edge: Edge,
}

impl Side {
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Sends bytes and returns all that comes back until the end.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The edge may answer, and close, before all of it is sent.
        let _sent = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _end = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Asks the app `web` for a path, with more fields.
    pub(crate) fn ask(&self, path: &str, fields: &str) -> String {
        let head = format!("GET {path} HTTP/1.1\r\nHost: web.perch.localhost\r\n");
        self.raw(format!("{head}Connection: close\r\n{fields}\r\n").as_bytes())
    }

    pub(crate) fn get(&self, path: &str) -> String {
        self.ask(path, "")
    }

    /// Returns where a raw port is that is claimed.
    pub(crate) fn port(&self, port: RawPort) -> SocketAddr {
        self.doors.at(port).unwrap()
    }

    /// Returns what reads its edge's numbers.
    pub(crate) fn readings(&self) -> Readings {
        self.edge.readings()
    }

    /// Stops its edge.
    pub(crate) fn stop(&self) {
        self.edge.stop();
    }
}

/// All of it; it ends when this is dropped.
pub(crate) struct Pair {
    /// Where the tests' clients come mostly, in region `ams`.
    pub(crate) near: Side,
    /// The other, in region `fra`.
    pub(crate) far: Side,
    pub(crate) authority: Authority,
    /// Whom the certificates of HTTPS are from.
    pub(crate) roots: Arc<RootCertStore>,
    store: Arc<dyn Store>,
    view: ViewHandle,
    pub(crate) runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

/// A machine of the other server.
fn elsewhere(mut record: MachineRecord) -> MachineRecord {
    record.host = HostId::from_bits(2);
    record.region = "fra".parse().unwrap();
    record
}

impl Pair {
    /// Starts both with their machines of the app `web`; those of the second are made its own.
    pub(crate) fn new(near: Vec<MachineRecord>, far: Vec<MachineRecord>) -> Self {
        Self::with(near, far, &Limits::default())
    }

    pub(crate) fn with(near: Vec<MachineRecord>, far: Vec<MachineRecord>, limits: &Limits) -> Self {
        Self::made((near, far), (limits, &RawLimits::default()), false)
    }

    pub(crate) fn with_raw(
        near: Vec<MachineRecord>,
        far: Vec<MachineRecord>,
        raw_limits: &RawLimits,
    ) -> Self {
        Self::made((near, far), (&Limits::default(), raw_limits), false)
    }

    /// Both serve HTTPS too.
    pub(crate) fn with_https(near: Vec<MachineRecord>, far: Vec<MachineRecord>) -> Self {
        Self::made((near, far), (&Limits::default(), &RawLimits::default()), true)
    }

    fn made(
        (near, far): (Vec<MachineRecord>, Vec<MachineRecord>),
        limits: (&Limits, &RawLimits),
        has_https: bool,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (runtime, dir) = (runtime.unwrap(), tempfile::tempdir().unwrap());
        let guard = runtime.enter();
        let clock: Arc<dyn Clock> = Arc::new(TestClock(Instant::now(), Arc::default()));
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(dir.path().join("d.db"), clock).unwrap());
        for (number, app) in ["probe", "web", "other"].into_iter().enumerate() {
            runtime.block_on(put_app(store.as_ref(), app, number as u64));
        }
        let view = ViewFollower::start(Arc::clone(&store), dir.path().join("view.json"));
        let authority = Authority::new();
        let far: Vec<MachineRecord> = far.into_iter().map(elsewhere).collect();
        let certs = Arc::new(Certs::new());
        let starting = Starting {
            dir: dir.path(),
            authority: &authority,
            certs: has_https.then_some(&certs),
            view: &view,
            limits,
        };
        let sides = [("ams", 1, &near), ("fra", 2, &far)]
            .map(|(region, id, machines)| starting.side(region, HostId::from_bits(id), machines));
        drop(guard);
        let [near_side, far_side] = sides;
        let pair = Self {
            near: near_side,
            far: far_side,
            authority,
            roots: Arc::new(certs.roots()),
            store,
            view,
            runtime,
            _dir: dir,
        };
        for side in [&pair.near, &pair.far] {
            pair.put_edge(&side.id, side.peers);
            let probe =
                b"GET / HTTP/1.1\r\nHost: probe.perch.localhost\r\nConnection: close\r\n\r\n";
            until("the edge has heard of its machines", || side.raw(probe).contains("PM08"));
        }
        near.into_iter().chain(far).for_each(|record| pair.publish(&record));
        pair
    }

    /// Gives an app a raw port, at both sides.
    pub(crate) fn claim_port(&self, app: &str, port: RawPort) {
        let claim = claim_of(&[app]);
        let put = put_doc(self.store.as_ref(), &port, &claim, Expected::Any);
        self.runtime.block_on(put).unwrap();
        for side in [&self.near, &self.far] {
            until("the port is open", || side.doors.at(port).is_some());
        }
    }

    /// Writes down where the edge of a host is.
    pub(crate) fn put_edge(&self, host: &HostId, address: SocketAddr) {
        let (key, doc) = ((host.clone(),), EdgeDoc { address });
        let put = put_doc(self.store.as_ref(), &key, &doc, Expected::Any);
        self.runtime.block_on(put).unwrap();
        let knows = self.view.wait_for(|view| view.edge(host) == Some(address), DEADLINE);
        self.runtime.block_on(knows).unwrap();
    }

    /// Writes a machine down in the directory, as its host does.
    pub(crate) fn publish(&self, record: &MachineRecord) {
        let key = (record.org.clone(), record.app.clone(), record.id.clone());
        let put = put_doc(self.store.as_ref(), &key, record, Expected::Any);
        self.runtime.block_on(put).unwrap();
        let knows = self.view.wait_for(|view| view.machine(&record.id) == Some(record), DEADLINE);
        self.runtime.block_on(knows).unwrap();
    }
}

/// What both sides are started with.
struct Starting<'a> {
    dir: &'a std::path::Path,
    authority: &'a Authority,
    certs: Option<&'a Arc<Certs>>,
    view: &'a ViewHandle,
    limits: (&'a Limits, &'a RawLimits),
}

impl Starting<'_> {
    /// Starts one side, on the runtime that is entered.
    fn side(&self, region: &str, id: HostId, machines: &[MachineRecord]) -> Side {
        let host = Arc::new(Host::new());
        // The sign that the edge has heard of everything.
        let mut probe = machine(0xff, "probe", MachineState::Failed, 1);
        probe.host = id.clone();
        host.put(probe);
        machines.iter().for_each(|machine| host.put(machine.clone()));
        let socket = self.dir.join(format!("{region}.sock"));
        let unix = tokio::net::UnixListener::bind(&socket).unwrap();
        let router = Arc::clone(&host).router();
        tokio::spawn(async move { axum::serve(unix, router).await });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peers = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [&listener, &peers].map(|listener| listener.local_addr().unwrap());
        let (chain, key) = self.authority.issue(peer_name(&id));
        let https = self.certs.map(|certs| Https {
            listeners: vec![TcpListener::bind("127.0.0.1:0").unwrap()],
            certificates: Arc::clone(certs) as Arc<dyn Certificates>,
        });
        let secured = https.as_ref().map(|https| https.listeners[0].local_addr().unwrap());
        let doors = Arc::<Doors>::default();
        let (limits, raw_limits) = self.limits;
        let edge = Edge::start(Config {
            listeners: vec![listener],
            https,
            domain: "perch.localhost".to_owned(),
            issuer: None,
            region: region.parse().unwrap(),
            host_id: id.clone(),
            host: HostClient::new(socket),
            view: self.view.clone(),
            clock: Arc::new(TestClock(Instant::now(), Arc::default())),
            limits: limits.clone(),
            raw: Some(RawConfig {
                binder: Arc::clone(&doors) as Arc<dyn Binder>,
                certificates: self.certs.map(|certs| Arc::clone(certs) as Arc<dyn Certificates>),
                limits: raw_limits.clone(),
            }),
            far: Some(FarConfig {
                listeners: vec![peers],
                chain,
                key,
                roots: self.authority.roots(),
            }),
        })
        .unwrap();
        let [address, peers] = addresses;
        Side { address, https: secured, peers, id, host, doors, edge }
    }
}
