//! The base images: Debian, Python and PHP, made of Debian's own packages.
//!
//! Never makes an image half visible: each is pushed whole and its tag comes last, so one that was
//! interrupted begins again at the first image that is not there.
//!
//! `mmdebstrap` runs in the same kind of cage as a build, in its mode `root`: its mode `unshare`
//! would make a second user namespace and wants ids for root in `/etc/subuid`, while inside the
//! cage it is root already, of ids that own nothing on the host.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perch_types::build::{BuildEvent, BuildRequest};
use perch_types::{ApiError, Code, Secret};

use crate::build::{self, Bay, Events, Recipe};
use crate::builder::Builder;
use crate::cage::Phase;
use crate::dockerfile::Dockerfile;
use crate::error::Error;
use crate::spec::Bind;
use crate::tools;

/// How long the packages of one base system may take.
const SYSTEM_TIME_MAX: Duration = Duration::from_mins(20);
/// Where a host says which mirrors it uses.
const SOURCES: [&str; 2] = ["/etc/apt/sources.list", "/etc/apt/sources.list.d"];
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";
const SUITE: &str = "bookworm";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Runs inside the cage: its paths are the cage's own, never the host's.
const SYSTEM: &str = "rm -rf /stage/*
export TMPDIR=/stage
mmdebstrap --mode=root --variant=minbase --format=tar \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='Acquire::Languages \"none\"' \
  bookworm /stage/partial.tar /input/debian.list
mv /stage/partial.tar /stage/debian.tar";

/// One base image.
struct Image {
    repository: &'static str,
    tags: &'static [&'static str],
    dockerfile: &'static str,
    files: &'static [(&'static str, &'static str)],
}

const IMAGES: [Image; 3] = [
    Image {
        repository: "base/library/debian",
        tags: &["bookworm", "bookworm-slim"],
        dockerfile: include_str!("base/debian.Dockerfile"),
        files: &[("docker-clean", include_str!("base/docker-clean"))],
    },
    Image {
        repository: "base/library/python",
        tags: &["3.11-slim", "3.11-slim-bookworm"],
        dockerfile: include_str!("base/python.Dockerfile"),
        files: &[],
    },
    Image {
        repository: "base/library/php",
        tags: &["8.2-apache", "8.2-apache-bookworm"],
        dockerfile: include_str!("base/php.Dockerfile"),
        files: &[
            ("php-apache.conf", include_str!("base/php-apache.conf")),
            ("php-ports.conf", include_str!("base/php-ports.conf")),
            ("php-perch.ini", include_str!("base/php-perch.ini")),
            ("apache2-foreground", include_str!("base/apache2-foreground")),
        ],
    },
];

/// Makes the base images that are not there, or all of them, and sends the last event.
pub(crate) async fn run(builder: Arc<Builder>, token: Secret, force: bool, events: Events) {
    let outcome = make_all(&builder, &token, force, &events).await;
    build::finish(outcome.map(|()| BuildEvent::Done), &events).await;
}

async fn make_all(
    builder: &Builder,
    token: &Secret,
    force: bool,
    events: &Events,
) -> Result<(), Error> {
    tools::check(tools::FOR_BASE_IMAGES)?;
    if !Path::new(KEYRING).exists() {
        let missing = "the keys of Debian's archive are missing: install them with `apt-get install debian-archive-keyring`";
        return Err(Error::Build(ApiError::new(Code::Unavailable, missing)));
    }
    let _one = builder.bootstrap.lock().await;
    let registry = builder.registry(token);
    for (number, image) in IMAGES.iter().enumerate() {
        let name = image.repository.trim_start_matches("base/library/");
        let last_tag = image.tags.last().copied().unwrap_or_default();
        if !force && registry.layers_bytes(image.repository, last_tag).await?.is_some() {
            build::progress(events, &format!("{name}:{last_tag} is there")).await?;
            continue;
        }
        build::progress(events, &format!("make {name}:{last_tag}")).await?;
        let slot = builder.slot(events).await?;
        let bay = Bay { builder, slot: slot.number(), registry: &registry, events };
        make(bay, image, number == 0).await?;
    }
    // What it was made of is in the registry now.
    crate::disk::remove(&builder.disk.work()?)
}

async fn make(bay: Bay<'_>, image: &Image, system: bool) -> Result<(), Error> {
    let Bay { builder, slot, events, .. } = bay;
    let context = builder.disk.work()?;
    let input = builder.disk.context("base")?;
    if system {
        let list = input.join("debian.list");
        fs::write(&list, sources(&host_sources())).map_err(Error::file("write", list))?;
        make_system(builder, slot, &context, &input, events).await?;
    }
    for (name, content) in image.files {
        let path = context.join(name);
        fs::write(&path, content).map_err(Error::file("write", path))?;
    }
    let _one = builder.disk.lock("").lock_owned().await;
    let store = builder.disk.store("")?;
    let dockerfile = Dockerfile::parse(image.dockerfile);
    let request = BuildRequest::default();
    let recipe = Recipe {
        name: image.repository,
        dockerfile: &dockerfile,
        request: &request,
        context: &context,
        input: &input,
        store: &store,
    };
    build::make_image(bay, &recipe).await?;
    for tag in image.tags {
        build::progress(events, &format!("push {}:{tag}", image.repository)).await?;
        let target = (image.repository, *tag);
        let (digest, size_bytes) = build::push_image(bay, &store, target).await?;
        let reference = format!("registry.internal/{}:{tag}", image.repository);
        let event = BuildEvent::Image { reference, digest, size_bytes };
        events.send(event).await.map_err(|_gone| Error::Abandoned)?;
    }
    crate::disk::remove(&input)
}

async fn make_system(
    builder: &Builder,
    slot: usize,
    work: &Path,
    input: &Path,
    events: &Events,
) -> Result<(), Error> {
    let phase = Phase {
        name: "system",
        slot,
        script: SYSTEM,
        arguments: Vec::new(),
        environment: vec![("HOME".to_owned(), "/tmp".to_owned())],
        binds: vec![Bind::writable(work, "/stage"), Bind::read_only(input, "/input")],
        internet: true,
        window: None,
        time_max: SYSTEM_TIME_MAX,
    };
    let mut last = String::new();
    let exit = build::run_phase(builder, phase, events, &mut |line| {
        last.clone_from(&line);
        Ok(Some(BuildEvent::Log { line }))
    })
    .await?;
    if exit.code == Some(0) && !exit.timed_out {
        return Ok(());
    }
    let text = format!("Debian's packages could not be put together: {last}");
    let hint = "look at the mirrors in /etc/apt/sources.list.d and at the network of this server";
    Err(Error::Build(ApiError::new(Code::BuildFailed, text).with_hint(hint)))
}

/// Returns what the host's apt is configured with, all files together.
fn host_sources() -> String {
    let mut text = String::new();
    for path in SOURCES {
        let files =
            fs::read_dir(path).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
        let files = files.unwrap_or_else(|_no_folder| vec![Path::new(path).to_owned()]);
        for file in files {
            let known = file.extension().is_some_and(|end| end == "list" || end == "sources");
            if known && let Ok(content) = fs::read_to_string(&file) {
                text.push_str(&content);
                text.push_str("\n\n");
            }
        }
    }
    text
}

/// Returns the sources of the base system: Debian bookworm from the mirrors that the host itself
/// uses for it, else from Debian's own.
fn sources(host: &str) -> String {
    let main = mirror_of(host, SUITE).unwrap_or(MIRROR);
    let security = mirror_of(host, "bookworm-security").unwrap_or(SECURITY_MIRROR);
    let line =
        |mirror: &str, suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    format!(
        "{}{}{}",
        line(main, SUITE),
        line(main, "bookworm-updates"),
        line(security, "bookworm-security")
    )
}

/// Finds the mirror of a suite, in either form that apt knows.
fn mirror_of<'a>(sources: &'a str, suite: &str) -> Option<&'a str> {
    let plain = |mirror: &str| {
        (mirror.starts_with("http://") || mirror.starts_with("https://"))
            && !mirror.contains(['[', ']', '"', '\\'])
            && mirror.contains("debian")
    };
    let one_line = sources.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().filter(|word| !word.starts_with('['));
        let found = words.next() == Some("deb");
        let mirror = words.next()?;
        (found && words.next() == Some(suite)).then_some(mirror)
    });
    let stanzas = sources.split("\n\n").filter_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
        let suites = field("Suites:")?;
        let mirror = field("URIs:")?.split_ascii_whitespace().next()?;
        suites.split_ascii_whitespace().any(|word| word == suite).then_some(mirror)
    });
    one_line.chain(stanzas).find(|mirror| plain(mirror))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_mirror_is_used_in_both_forms() {
        let one_line = "# deb http://no/debian bookworm main\ndeb http://mirror.example/debian bookworm main\n";
        assert_eq!(mirror_of(one_line, "bookworm"), Some("http://mirror.example/debian"));
        let stanzas = "Types: deb\nURIs: http://a.example/debian\nSuites: bookworm bookworm-updates\n\nTypes: deb\nURIs: http://s.example/debian-security\nSuites: bookworm-security\n";
        assert_eq!(mirror_of(stanzas, "bookworm"), Some("http://a.example/debian"));
        assert_eq!(
            mirror_of(stanzas, "bookworm-security"),
            Some("http://s.example/debian-security")
        );
        let ubuntu = "deb http://archive.example/ubuntu noble main\n";
        assert!(sources(ubuntu).contains(MIRROR));
    }

    #[test]
    fn every_file_that_an_image_copies_is_given_with_it() {
        for image in &IMAGES {
            for line in image.dockerfile.lines().filter(|line| line.starts_with("COPY ")) {
                let name = line
                    .split(' ')
                    .find(|word| !word.starts_with("--") && *word != "COPY")
                    .unwrap();
                assert!(image.files.iter().any(|(file, _)| *file == name), "{name}");
            }
        }
    }
}
