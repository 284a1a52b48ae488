//! Real servers that say what reaches them: node, Python's own, nginx and hyper.
//!
//! Never one that is not installed: a test is skipped for it, by its name.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;

use crate::world::until;

const NODE: &str = include_str!("origins/node.js");
const PYTHON: &str = include_str!("origins/python.py");
const NGINX: &str = include_str!("origins/nginx.conf");
const BODY_MAX: usize = 1 << 20;

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Node,
    Python,
    Nginx,
    Hyper,
}

impl Kind {
    pub(crate) fn missing(self) -> &'static str {
        match self {
            Self::Node => "node (Debian package nodejs)",
            Self::Python => "python3 (Debian package python3)",
            Self::Nginx => "nginx (`scripts/setup test` unpacks it)",
            Self::Hyper => "",
        }
    }
}

/// What a server says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) target: String,
    /// The name that the edge gave it, if it has one.
    pub(crate) id: String,
}

enum Lines {
    File(PathBuf),
    Memory(Arc<Mutex<Vec<String>>>),
}

/// A server on loopback; it ends when this is dropped.
pub(crate) struct Server {
    pub(crate) port: u16,
    lines: Lines,
    child: Option<Child>,
    _runtime: Option<tokio::runtime::Runtime>,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts one; `None` if there is no such program.
    pub(crate) fn start(kind: Kind) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        match kind {
            Kind::Node => Some(Self::script("node", NODE, folder)),
            Kind::Python => Some(Self::script("python3", PYTHON, folder)),
            Kind::Nginx => Some(Self::nginx(&nginx_program()?, folder)),
            Kind::Hyper => Some(Self::hyper(folder)),
        }
        .filter(|server| server.port != 0)
    }

    /// A program that says its port first; port 0 if it cannot be started.
    fn script(program: &str, text: &str, folder: tempfile::TempDir) -> Self {
        let (path, told) = (folder.path().join("script"), folder.path().join("told"));
        std::fs::write(&path, text).unwrap();
        let output = File::create(&told).unwrap();
        let child = Command::new(program)
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .ok();
        let mut server = Self {
            port: 0,
            lines: Lines::File(told.clone()),
            child,
            _runtime: None,
            _folder: folder,
        };
        if let Some(child) = server.child.as_mut() {
            let mut port = None;
            until("the origin says its port or ends", || {
                let text = std::fs::read_to_string(&told).unwrap();
                port = text
                    .lines()
                    .next()
                    .filter(|_| text.contains('\n'))
                    .and_then(|line| line.strip_prefix("port "))
                    .and_then(|port| port.parse().ok());
                port.is_some() || child.try_wait().unwrap().is_some()
            });
            server.port = port.unwrap();
        }
        server
    }

    fn nginx(program: &Path, folder: tempfile::TempDir) -> Self {
        // It cannot be asked which port was free.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let below = folder.path().display().to_string();
        let config = NGINX.replace("FOLDER", &below).replace("PORT", &port.to_string());
        let path = folder.path().join("conf");
        std::fs::write(&path, config).unwrap();
        let mut child = Command::new(program)
            .args(["-p", &below, "-e", &format!("{below}/error"), "-c"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("nginx listens", || {
            assert!(
                child.try_wait().unwrap().is_none(),
                "{}",
                std::fs::read_to_string(folder.path().join("error")).unwrap_or_default()
            );
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let lines = Lines::File(folder.path().join("told"));
        Self { port, lines, child: Some(child), _runtime: None, _folder: folder }
    }

    fn hyper(folder: tempfile::TempDir) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let told = Arc::clone(&lines);
        let router = Router::new().fallback(move |request: Request| {
            let told = Arc::clone(&told);
            async move { hear(request, &told).await }
        });
        let guard = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        drop(guard);
        runtime.spawn(async move { axum::serve(listener, router).await });
        let lines = Lines::Memory(lines);
        Self { port, lines, child: None, _runtime: Some(runtime), _folder: folder }
    }

    /// Returns what it has said so far.
    pub(crate) fn told(&self) -> Vec<Told> {
        let text = match &self.lines {
            Lines::File(path) => {
                String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
            }
            Lines::Memory(lines) => lines.lock().unwrap().join("\n") + "\n",
        };
        // A line without an end is still being written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let (method, target, id) = (words.next()?, words.next()?, words.next()?);
                // nginx writes this of what it could not read; nothing was done for it.
                (method != "-" && !method.is_empty() && method != "port")
                    .then(|| Told { target: target.to_owned(), id: id.to_owned() })
            })
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            terminate(child);
        }
    }
}

/// Ends a program so that it can end those that it has started.
fn terminate(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
    }
    child.wait().ok();
}

async fn hear(request: Request, told: &Mutex<Vec<String>>) -> String {
    let target = request.uri().to_string();
    let id = request.headers().get("fly-request-id").and_then(|id| id.to_str().ok());
    let line = format!("{} {target} {}", request.method(), id.unwrap_or("-"));
    told.lock().unwrap().push(line);
    // Read to its end, as apps do; one that breaks off was told all the same.
    axum::body::to_bytes(request.into_body(), BODY_MAX).await.ok();
    target
}

fn nginx_program() -> Option<PathBuf> {
    let unpacked =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/conformance/nginx/usr/sbin/nginx");
    let installed = PathBuf::from("/usr/sbin/nginx");
    [unpacked, installed].into_iter().find(|path| path.is_file())
}
