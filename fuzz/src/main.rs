//! Feeds the fuzz targets with messages that were changed at random, for as long as it is told.
//!
//! Never finds its way by coverage, so that it needs no compiler but the project's. It ends at the
//! first input that fails, writes that down, and says how to run it again.
//!
//!     perch-fuzz [--seconds N] [--seed N] [--input FILE] [TARGET]...
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[path = "../../crates/cli/src/authority.rs"]
mod authority;

/// A function that takes any bytes.
type Target = fn(&[u8]);

/// What is fed, and what its bytes are made of.
#[derive(Clone, Copy)]
struct Fed {
    name: &'static str,
    target: Target,
    seeds: &'static [&'static str],
}

/// The targets of a crate, by their names, and their seeds.
type Set = (&'static [(&'static str, Target)], &'static [&'static str]);
const SETS: [Set; 4] = [
    (perch_edge::fuzzing::TARGETS, perch_edge::fuzzing::SEEDS),
    (perch_certs::fuzzing::TARGETS, perch_certs::fuzzing::SEEDS),
    (perch_dns::fuzzing::TARGETS, perch_dns::fuzzing::SEEDS),
    // Of a program, and of nothing else that could be linked.
    (&[("authority", authority::fuzz)], authority::FUZZ_SEEDS),
];

fn all() -> impl Iterator<Item = Fed> {
    SETS.into_iter().flat_map(|(targets, seeds)| {
        targets.iter().map(move |&(name, target)| Fed { name, target, seeds })
    })
}

/// How long each target is fed when nothing else is said.
const SECONDS: u64 = 20;
/// The longest input.
const BYTES_MAX: usize = 4096;
/// The most changes to one input.
const CHANGES_MAX: u64 = 8;
/// Bytes that parsers look at.
const BYTES: &[u8] = b"\r\n\t \0:;,=\"'/*?#@.-_+0159afxAFX\x0b\x7f\xff";
/// How many inputs go by between two looks at the clock.
const LOOK_EVERY: u32 = 256;

struct Arguments {
    seconds: u64,
    seed: u64,
    input: Option<PathBuf>,
    targets: Vec<Fed>,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            writeln!(std::io::stderr(), "error: {error}").ok();
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let arguments = parse(std::env::args().skip(1))?;
    if let Some(path) = &arguments.input {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        arguments.targets.iter().for_each(|fed| (fed.target)(&bytes));
        println!("{} bytes hold", bytes.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("seed {}", arguments.seed);
    for Fed { name, target, seeds } in &arguments.targets {
        let end = Instant::now() + Duration::from_secs(arguments.seconds);
        let mut random = Random(arguments.seed | 1);
        let mut count = 0_u64;
        while Instant::now() < end {
            for _ in 0..LOOK_EVERY {
                let bytes = input(&mut random, seeds);
                if std::panic::catch_unwind(|| target(&bytes)).is_err() {
                    let path = std::env::temp_dir().join(format!("perch-fuzz-{name}"));
                    std::fs::write(&path, &bytes).map_err(|error| error.to_string())?;
                    println!("{name} fails; again: perch-fuzz --input {} {name}", path.display());
                    return Ok(ExitCode::FAILURE);
                }
            }
            count += u64::from(LOOK_EVERY);
        }
        println!("{name}: {count} inputs hold");
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut arguments =
        Arguments { seconds: SECONDS, seed: now.as_secs(), input: None, targets: Vec::new() };
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().unwrap_or_default();
            value.parse::<u64>().map_err(|error| format!("{word} {value}: {error}"))
        };
        match word.as_str() {
            "--seconds" => arguments.seconds = number()?,
            "--seed" => arguments.seed = number()?,
            "--input" => arguments.input = words.next().map(PathBuf::from),
            name => {
                let names = || all().map(|fed| fed.name).collect::<Vec<_>>().join(", ");
                let found = all().find(|fed| fed.name == name);
                let found = found.ok_or_else(|| format!("{name}: targets are {}", names()))?;
                arguments.targets.push(found);
            }
        }
    }
    if arguments.targets.is_empty() {
        arguments.targets = all().collect();
    }
    Ok(arguments)
}

/// Two seeds, one behind the other, with some changes.
fn input(random: &mut Random, seeds: &[&str]) -> Vec<u8> {
    let mut bytes = [*random.one(seeds), *random.one(seeds)].concat().into_bytes();
    if random.below(16) == 0 {
        bytes = (0..random.below(64)).map(|_| random.byte()).collect();
    }
    for _ in 0..random.below(CHANGES_MAX) {
        let at = random.index(bytes.len() + 1);
        match random.below(6) {
            0 => bytes.insert(at, *random.one(BYTES)),
            1 => bytes.insert(at, random.byte()),
            2 => drop(bytes.splice(at..(at + 1).min(bytes.len()), [])),
            3 => {
                let byte = *random.one(BYTES);
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            4 => {
                let end = (at + random.index(24)).min(bytes.len());
                let piece = bytes.get(at..end).unwrap_or_default().to_vec();
                let to = random.index(bytes.len() + 1);
                drop(bytes.splice(to..to, piece));
            }
            _ => {
                let seed = random.one(seeds).as_bytes();
                let piece = seed.get(..random.index(seed.len())).unwrap_or_default().to_vec();
                drop(bytes.splice(at..at, piece));
            }
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    fn index(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.below(limit)).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or_default()
    }

    fn one<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.index(all.len());
        &all[index]
    }
}
