//! An app that brings its own Dockerfile, and what can be read out of one.
//!
//! Never evaluates more than `ARG` and `ENV` defaults; builds are the builder's.

use std::collections::BTreeMap;

use crate::files::Files;
use crate::plan::{Family, LaunchPlan, Source};

/// Names under which a Dockerfile is found, in this order.
const NAMES: &[&str] = &["Dockerfile", "Containerfile", "dockerfile"];
/// The port when nothing shows another.
const PORT_DEFAULT: u16 = 8080;
/// Memory when it is not known what runs, in MiB.
const MEMORY_MB: u32 = 512;

/// A port that the last stage exposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Exposed {
    /// The port.
    pub port: u16,
    /// The line in the file, from 1.
    pub line: usize,
}

/// What could be read out of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dockerfile {
    /// Stages, the last of which is the image.
    pub stages: Vec<String>,
    /// TCP ports of the last stage.
    pub exposed: Vec<Exposed>,
    /// The last stage's `USER`.
    pub user: Option<String>,
    /// The last stage's `CMD` or, without one, `ENTRYPOINT`, as written.
    pub command: Option<String>,
    /// Paths of the last stage's `VOLUME`, as written.
    pub volumes: Vec<String>,
}

impl Dockerfile {
    /// Reads the text of a Dockerfile; lines that make no sense are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut file = Self::default();
        let mut variables = BTreeMap::new();
        let mut entrypoint = None;
        for (line, instruction) in instructions(text) {
            let (word, rest) =
                instruction.split_once(char::is_whitespace).unwrap_or((&instruction, ""));
            let rest = rest.trim();
            match word.to_ascii_uppercase().as_str() {
                "FROM" => {
                    file = Self { stages: std::mem::take(&mut file.stages), ..Self::default() };
                    file.stages.push(rest.to_owned());
                    entrypoint = None;
                }
                "ARG" | "ENV" => remember(rest, &mut variables),
                "EXPOSE" => {
                    let ports = rest.split_whitespace().filter_map(|it| port_of(it, &variables));
                    file.exposed.extend(ports.map(|port| Exposed { port, line }));
                }
                "USER" => file.user = Some(rest.to_owned()),
                "CMD" => file.command = Some(rest.to_owned()),
                "ENTRYPOINT" => entrypoint = Some(rest.to_owned()),
                "VOLUME" => file.volumes.push(rest.to_owned()),
                _ => {}
            }
        }
        file.command = file.command.or(entrypoint);
        file
    }
}

/// Returns the instructions with the number of their first line: comments dropped, continued
/// lines joined, heredocs passed over.
fn instructions(text: &str) -> Vec<(usize, String)> {
    let mut instructions: Vec<(usize, String)> = Vec::new();
    let mut open: Option<(usize, String)> = None;
    let mut heredoc: Option<String> = None;
    for (index, line) in text.lines().enumerate() {
        if let Some(end) = &heredoc {
            if line.trim() == end {
                heredoc = None;
            }
            continue;
        }
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (start, mut joined) = open.take().unwrap_or((index + 1, String::new()));
        if let Some(part) = line.strip_suffix('\\') {
            joined.push_str(part);
            joined.push(' ');
            open = Some((start, joined));
            continue;
        }
        joined.push_str(line);
        heredoc = heredoc_end(&joined);
        instructions.push((start, joined));
    }
    instructions.extend(open);
    instructions
}

fn heredoc_end(instruction: &str) -> Option<String> {
    let (_, after) = instruction.split_once("<<")?;
    let name: String = after
        .trim_start_matches('-')
        .trim_start_matches(['"', '\''])
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

fn remember(rest: &str, variables: &mut BTreeMap<String, String>) {
    let pairs = rest.split_whitespace().filter_map(|pair| pair.split_once('='));
    let mut any = false;
    for (name, value) in pairs {
        any = true;
        variables.insert(name.to_owned(), value.trim_matches(['"', '\'']).to_owned());
    }
    if !any && let Some((name, value)) = rest.split_once(char::is_whitespace) {
        variables.insert(name.to_owned(), value.trim().to_owned());
    }
}

/// Returns the port of `8080`, `8080/tcp`, `8080-8090`, `$PORT` or `${PORT:-8080}`.
fn port_of(word: &str, variables: &BTreeMap<String, String>) -> Option<u16> {
    let word = word.trim_matches(['"', '\'']);
    let (word, transport) = word.split_once('/').unwrap_or((word, "tcp"));
    if !transport.eq_ignore_ascii_case("tcp") {
        return None;
    }
    let value = match word.strip_prefix('$') {
        None => word.to_owned(),
        Some(name) => {
            let name = name.trim_start_matches('{').trim_end_matches('}');
            let (name, default) = name.split_once(":-").unwrap_or((name, ""));
            variables.get(name).cloned().unwrap_or_else(|| default.to_owned())
        }
    };
    let first = value.split('-').next().unwrap_or_default();
    first.parse().ok().filter(|port| *port != 0)
}

/// Plans an app that brings a Dockerfile.
pub(crate) fn detect(files: &dyn Files) -> Option<LaunchPlan> {
    let (name, text) = NAMES.iter().find_map(|name| Some((*name, files.text(name)?)))?;
    let file = Dockerfile::parse(&text);
    let mut plan = LaunchPlan::new(Family::Dockerfile, Source::Existing(name.to_owned()));
    plan.memory_mb = MEMORY_MB;
    plan.command.clone_from(&file.command);
    let stages = match file.stages.len() {
        0 | 1 => "it is in the source folder".to_owned(),
        count => format!("it is in the source folder; the last of its {count} stages is the image"),
    };
    plan.decide("build", name, stages);
    if let Some(command) = &file.command {
        plan.decide("command", command, format!("`CMD` or `ENTRYPOINT` of {name}"));
    }
    match file.exposed.as_slice() {
        [] => {
            plan.internal_port = PORT_DEFAULT;
            plan.env.insert("PORT".to_owned(), PORT_DEFAULT.to_string());
            let why = format!("{name} has no EXPOSE; the program is told by PORT");
            plan.decide("port", PORT_DEFAULT, why);
            plan.warnings.push(format!(
                "{name} does not say which port the program listens on: add `EXPOSE PORT`, or \
                 set `internal_port` in fly.toml"
            ));
        }
        [first, rest @ ..] => {
            plan.internal_port = first.port;
            let others = if rest.is_empty() { "" } else { ", the first of several" };
            let why = format!("EXPOSE in line {} of {name}{others}", first.line);
            plan.decide("port", first.port, why);
        }
    }
    plan.decide("memory", "512 MB", "it is not known what the image runs");
    warn(&mut plan, name, &file);
    if !files.has(".dockerignore") {
        plan.warnings.push(
            "there is no .dockerignore: everything in the folder is sent to the build".to_owned(),
        );
    }
    Some(plan)
}

fn warn(plan: &mut LaunchPlan, name: &str, file: &Dockerfile) {
    if file.stages.is_empty() {
        plan.warnings.push(format!("{name} has no FROM: it cannot be built"));
    }
    match file.user.as_deref() {
        None => plan.warnings.push(format!(
            "{name} has no USER: the program runs as root of its machine (never of the server)"
        )),
        Some(_) if plan.internal_port < 1024 => plan.warnings.push(format!(
            "port {} below 1024 with USER in {name}: the program may not be allowed to listen \
             there",
            plan.internal_port
        )),
        Some(_) => {}
    }
    if !file.volumes.is_empty() {
        plan.warnings.push(format!(
            "VOLUME {} in {name}: volumes are not offered yet, what is written there is lost with \
             the machine",
            file.volumes.join(" ")
        ));
    }
}
