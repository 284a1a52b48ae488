//! One build: the context unpacked, the Dockerfile run, the image pushed, each in its own cage.
//!
//! Never decides who may build or push: the credentials that came with the request do, at the
//! registry.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use perch_types::build::{BuildEvent, BuildRequest};
use perch_types::image::Digest;
use perch_types::{ApiError, Code, Secret};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio::sync::{OwnedMutexGuard, mpsc};

use crate::builder::Builder;
use crate::cage::{self, Exit, Phase};
use crate::config::{DOCKERFILE_BYTES_MAX, PUSH_TIME_MAX, UNPACK_TIME_MAX};
use crate::context::{ContextError, Unpacked};
use crate::disk;
use crate::dockerfile::Dockerfile;
use crate::error::Error;
use crate::gateway::{self, Registry, Window};
use crate::output::{Output, VARIABLES};
use crate::spec::Bind;

/// Lines on their way from a cage to their reader.
const LINES_WAITING_MAX: usize = 64;
/// Variables that make common tools trust the server's certificates, besides `SSL_CERT_FILE`.
///
/// The bundle is a file in the cage's `/dev`, which the build tool shows to every `RUN`: so it
/// leaves neither a file nor a mount point in a layer. Bound over the image's own bundle it would
/// break `apt-get install ca-certificates`, which renames a new file over that path. As build
/// arguments the variables are seen by `RUN` and by nothing that runs the image.
const MORE_VARIABLES: [&str; 7] = [
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
];
const UNPACK: &str = "exec tar --extract --file=/input/context --directory=/context \
    --no-same-owner --numeric-owner --quoting-style=escape -vv \"$@\"";
/// In Docker's format of images: the OCI's has no room for `SHELL` and `HEALTHCHECK`.
const BUILD: &str = "cp /etc/ssl/certs/ca-certificates.crt /dev/perch-ca.crt
tool='buildah --storage-driver overlay --root /store/graph --runroot /run/containers'
$tool rm --all >/dev/null 2>&1 || true
exec $tool build --isolation chroot --layers --format docker --tag localhost/build \"$@\" /context";
const PUSH: &str =
    "buildah --storage-driver overlay --root /store/graph --runroot /run/containers push \
    --tls-verify=false --digestfile /tmp/digest localhost/build \"docker://127.0.0.1:$1\"
echo \"perch-digest $(cat /tmp/digest)\"";
/// How long a client may take up nothing of its build's events.
const READER_TIMEOUT: Duration = Duration::from_secs(120);

/// What is to be built, checked.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) app: String,
    /// The app's id: whose store of layers it is.
    pub(crate) store: String,
    pub(crate) request: BuildRequest,
    pub(crate) token: Secret,
    /// The folder with `packed/context` and an empty `tree`.
    pub(crate) folder: PathBuf,
    /// Whether the context is gzipped.
    pub(crate) gzip: bool,
}

/// Where an image is made: a slot, and whom it has to do with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bay<'a> {
    pub(crate) builder: &'a Builder,
    pub(crate) slot: usize,
    pub(crate) registry: &'a Registry,
    pub(crate) events: &'a Events,
}

/// What an image is made of.
#[derive(Debug)]
pub(crate) struct Recipe<'a> {
    /// The Dockerfile's name as the user knows it.
    pub(crate) name: &'a str,
    pub(crate) dockerfile: &'a Dockerfile,
    pub(crate) request: &'a BuildRequest,
    /// The unpacked context.
    pub(crate) context: &'a Path,
    /// A folder for the Dockerfile as it is run.
    pub(crate) input: &'a Path,
    pub(crate) store: &'a Path,
}

/// Where events go; a closed one means that nobody waits for the build.
pub(crate) type Events = mpsc::Sender<BuildEvent>;

/// Runs a job to its last event. Whatever happens, its context is removed.
pub(crate) async fn run(builder: Arc<Builder>, job: Job, events: Events) {
    let outcome = build(&builder, &job, &events).await;
    if let Err(error) = disk::remove(&job.folder) {
        tracing::warn!(%error, "context left behind");
    }
    builder.trim().await;
    finish(outcome, &events).await;
}

/// Sends the last event.
pub(crate) async fn finish(outcome: Result<BuildEvent, Error>, events: &Events) {
    let event = outcome.unwrap_or_else(|error| {
        if !matches!(error, Error::Build(_) | Error::Abandoned | Error::Context(_)) {
            let error = error.to_api();
            tracing::warn!(error = error.error, "build not done");
        }
        BuildEvent::Failed { error: error.to_api() }
    });
    // Whoever asked may be gone: then nobody needs to know.
    drop(tell(events, event).await);
}

async fn build(builder: &Builder, job: &Job, events: &Events) -> Result<BuildEvent, Error> {
    let slot = builder.slot(events).await?;
    let input = job.folder.join("packed");
    let tree = job.folder.join("tree");
    progress(events, "unpack the context").await?;
    unpack(builder, slot.number(), job, events).await?;
    let packed = input.join("context");
    fs::remove_file(&packed).map_err(Error::file("remove", packed))?;
    let name = job.request.dockerfile.as_deref().unwrap_or("Dockerfile");
    let text = read_dockerfile(&tree, name)?;
    let dockerfile = Dockerfile::parse(&text);
    if dockerfile.is_empty() {
        return Err(refused(format!("the file `{name}` has no instruction")));
    }
    let _one = only_one(builder, &job.store, events).await?;
    let store = builder.disk.store(&job.store)?;
    let recipe = Recipe {
        name,
        dockerfile: &dockerfile,
        request: &job.request,
        context: &tree,
        input: &input,
        store: &store,
    };
    let registry = builder.registry(&job.token);
    let bay = Bay { builder, slot: slot.number(), registry: &registry, events };
    make_image(bay, &recipe).await?;
    progress(events, "push the image").await?;
    let target = (job.app.as_str(), job.request.tag.as_str());
    let (digest, size_bytes) = push_image(bay, &store, target).await?;
    let reference = format!("registry.internal/{}:{}", job.app, job.request.tag);
    Ok(BuildEvent::Image { reference, digest, size_bytes })
}

/// Waits until no other build of the app runs.
async fn only_one(
    builder: &Builder,
    store: &str,
    events: &Events,
) -> Result<OwnedMutexGuard<()>, Error> {
    let lock = builder.disk.lock(store);
    if let Ok(guard) = Arc::clone(&lock).try_lock_owned() {
        return Ok(guard);
    }
    progress(events, "waiting for another build of this app").await?;
    tokio::select! {
        guard = lock.lock_owned() => Ok(guard),
        () = events.closed() => Err(Error::Abandoned),
    }
}

/// Tells the client what is done now.
pub(crate) async fn progress(events: &Events, text: &str) -> Result<(), Error> {
    tell(events, BuildEvent::Progress { text: text.to_owned() }).await
}

/// Sends an event to a client that takes up events; one that does not is as good as gone, and
/// must not keep its build's place from others.
async fn tell(events: &Events, event: BuildEvent) -> Result<(), Error> {
    tell_within(events, event, READER_TIMEOUT).await
}

async fn tell_within(events: &Events, event: BuildEvent, limit: Duration) -> Result<(), Error> {
    events.send_timeout(event, limit).await.map_err(|_gone| Error::Abandoned)
}

async fn unpack(builder: &Builder, slot: usize, job: &Job, events: &Events) -> Result<(), Error> {
    let phase = Phase {
        name: "unpack",
        slot,
        script: UNPACK,
        arguments: if job.gzip { vec!["--gzip".to_owned()] } else { Vec::new() },
        environment: Vec::new(),
        binds: vec![
            Bind::read_only(job.folder.join("packed"), "/input"),
            Bind::writable(job.folder.join("tree"), "/context"),
        ],
        internet: false,
        window: None,
        time_max: UNPACK_TIME_MAX,
    };
    let mut unpacked = Unpacked::default();
    let mut last = String::new();
    let exit = run_phase(builder, phase, events, &mut |line| {
        unpacked.admit(&line)?;
        if line.starts_with("tar: ") {
            last = line;
        }
        Ok(None)
    })
    .await?;
    match exit {
        Exit { timed_out: true, .. } => {
            Err(ContextError::Archive("it took too long".to_owned()).into())
        }
        Exit { code: Some(0), .. } => Ok(()),
        Exit { .. } => Err(ContextError::Archive(last).into()),
    }
}

/// What becomes of a line: an event for the client, nothing, or the end of the phase.
pub(crate) type Taken = Result<Option<BuildEvent>, Error>;

/// Runs a phase and gives each of its lines to `take`; an error of that, or a client that goes
/// away, ends the phase.
pub(crate) async fn run_phase(
    builder: &Builder,
    phase: Phase<'_>,
    events: &Events,
    take: &mut (dyn FnMut(String) -> Taken + Send),
) -> Result<Exit, Error> {
    let (sender, mut lines) = mpsc::channel(LINES_WAITING_MAX);
    // Dropping `lines` at the end of the reader is what ends the cage.
    let reader = async move {
        loop {
            let line = tokio::select! {
                line = lines.recv() => line,
                () = events.closed() => return Err(Error::Abandoned),
            };
            match line {
                None => return Ok(()),
                Some(line) => {
                    if let Some(event) = take(line)? {
                        tell(events, event).await?;
                    }
                }
            }
        }
    };
    let (exit, read) = tokio::join!(cage::run(&builder.config, phase, sender), reader);
    read?;
    exit
}

/// Reads a file of the context as if the context were the whole file system (F8).
fn read_dockerfile(tree: &Path, name: &str) -> Result<String, Error> {
    let missing =
        |detail: String| refused(format!("the Dockerfile `{name}` of the context {detail}"));
    let root = fs::File::open(tree).map_err(Error::file("open", tree))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(&root, name, flags, Mode::empty(), resolve)
        .map_err(|errno| missing(format!("cannot be opened: {}", std::io::Error::from(errno))))?;
    let file = fs::File::from(file);
    if !file.metadata().is_ok_and(|found| found.is_file() && found.len() <= DOCKERFILE_BYTES_MAX) {
        return Err(missing(format!("is no file of at most {DOCKERFILE_BYTES_MAX} bytes")));
    }
    let mut text = String::new();
    file.take(DOCKERFILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| missing(format!("cannot be read: {error}")))?;
    Ok(text)
}

fn refused(text: String) -> Error {
    Error::Build(ApiError::new(Code::BuildFailed, text))
}

/// Runs a Dockerfile; the image is `localhost/build` in the store then.
pub(crate) async fn make_image(bay: Bay<'_>, recipe: &Recipe<'_>) -> Result<(), Error> {
    let Bay { builder, slot, registry, events } = bay;
    let path = recipe.input.join("Dockerfile");
    let text = recipe.dockerfile.with_after_from(&variables());
    fs::write(&path, text).map_err(Error::file("write", path))?;
    let arguments = tool_arguments(recipe.request);
    let phase = Phase {
        name: "build",
        slot,
        script: BUILD,
        arguments,
        environment: tool_environment(),
        binds: store_binds(
            recipe.store,
            [Bind::read_only(recipe.context, "/context"), Bind::read_only(recipe.input, "/input")],
        ),
        internet: true,
        window: Some((registry.clone(), Window::Pull)),
        time_max: Duration::from_secs(builder.config.limits.time_s_max),
    };
    let mut output = Output::new(recipe.dockerfile, recipe.name);
    let exit = run_phase(builder, phase, events, &mut |line| Ok(output.line(&line))).await?;
    if exit.code == Some(0) && !exit.timed_out {
        return Ok(());
    }
    Err(Error::Build(output.failure(&exit, &builder.config.limits)))
}

/// Pushes the image that was made last in a store, from a cage in which nothing of the user runs.
pub(crate) async fn push_image(
    bay: Bay<'_>,
    store: &Path,
    (repository, tag): (&str, &str),
) -> Result<(Digest, u64), Error> {
    let Bay { builder, slot, registry, events } = bay;
    let phase = Phase {
        name: "push",
        slot,
        script: PUSH,
        arguments: vec![format!("{}/{repository}:{tag}", gateway::PORT)],
        environment: tool_environment(),
        binds: store_binds(store, []),
        internet: false,
        window: Some((registry.clone(), Window::Push { repository: repository.to_owned() })),
        time_max: PUSH_TIME_MAX,
    };
    let mut digest = None;
    let mut last = String::new();
    let exit = run_phase(builder, phase, events, &mut |line| {
        digest = gateway::digest_in(&line).or_else(|| digest.take());
        last = line;
        Ok(None)
    })
    .await?;
    let fault = |detail: String| Error::Registry {
        what: format!("a push of `{repository}:{tag}`"),
        detail,
    };
    if exit.timed_out {
        return Err(fault("it took too long".to_owned()));
    }
    if last.contains("denied") || last.contains("unauthorized") {
        let text = format!("the credentials of this build may not push `{repository}:{tag}`");
        return Err(Error::Build(ApiError::new(Code::Forbidden, text)));
    }
    let digest = digest.filter(|_| exit.code == Some(0)).ok_or_else(|| fault(last))?;
    let size = registry.layers_bytes(repository, digest.as_str()).await?;
    Ok((digest, size.ok_or_else(|| fault("the image is not there after its push".to_owned()))?))
}

fn store_binds<const N: usize>(store: &Path, more: [Bind; N]) -> Vec<Bind> {
    let mut binds =
        vec![Bind::writable(store, "/store"), Bind::writable(store.join("tmp"), "/var/tmp")];
    binds.extend(more);
    binds
}

fn variables() -> String {
    let mut text = VARIABLES.to_owned();
    for name in MORE_VARIABLES {
        text.push(' ');
        text.push_str(name);
        text.push_str("=/dev/perch-ca.crt");
    }
    text
}

fn tool_environment() -> Vec<(String, String)> {
    [
        ("HOME", "/store/home"),
        ("TMPDIR", "/store/tmp"),
        ("XDG_RUNTIME_DIR", "/run"),
        ("BUILDAH_ISOLATION", "chroot"),
        // The build tool is root of a user namespace already and needs not make one.
        ("_CONTAINERS_USERNS_CONFIGURED", "done"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Returns the arguments of the build tool. Build arguments are among them and not in its
/// environment: there, a name such as `LD_PRELOAD` would be for the cage's own programs.
fn tool_arguments(request: &BuildRequest) -> Vec<String> {
    let mut arguments: Vec<String> = ["--file", "/input/Dockerfile"].map(str::to_owned).to_vec();
    if request.no_cache {
        arguments.push("--no-cache".to_owned());
    }
    if let Some(target) = &request.target {
        arguments.extend(["--target".to_owned(), target.clone()]);
    }
    for (name, value) in &request.args {
        arguments.extend(["--build-arg".to_owned(), format!("{name}={value}")]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_up_nothing_is_as_good_as_gone() {
        let (events, mut client) = mpsc::channel(1);
        let limit = Duration::from_millis(5);
        tell_within(&events, BuildEvent::Done, limit).await.unwrap();
        let second = tell_within(&events, BuildEvent::Done, limit).await;
        assert!(matches!(second, Err(Error::Abandoned)));
        client.recv().await.unwrap();
        tell_within(&events, BuildEvent::Done, limit).await.unwrap();
    }

    #[test]
    fn r11_a_build_argument_is_none_of_the_cages_own_variables() {
        let args = [("LD_PRELOAD", "/context/x.so"), ("PATH", "/context")];
        let args = args.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let request = BuildRequest { args, ..BuildRequest::default() };
        let arguments = tool_arguments(&request);
        assert!(arguments.contains(&"LD_PRELOAD=/context/x.so".to_owned()), "{arguments:?}");
        assert!(arguments.contains(&"PATH=/context".to_owned()), "{arguments:?}");
    }
}
