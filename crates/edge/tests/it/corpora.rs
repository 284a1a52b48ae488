//! Requests that others wrote to test parsers of theirs, read where `scripts/setup test` unpacked
//! them: gunicorn's files of requests, and those in llhttp's texts.
//!
//! Never has one of them in it, and never judges by what its authors say of it: each may be refused
//! or pass, but once and whole.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a test is skipped for without them.
pub(crate) const MISSING: &str =
    "requests of gunicorn and llhttp (`scripts/setup test` fetches them)";
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/conformance/corpora");
const HOST: &[u8] = b"Host: web.perch.localhost\r\n";

/// Returns each as it is and as one for the app `web`; nothing when there are none here.
pub(crate) fn all() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    below(Path::new(FOLDER), &mut files);
    let mut cases = BTreeSet::new();
    for file in files {
        // What is no text is none of theirs.
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let is = |ending: &str| file.extension().is_some_and(|it| it == ending);
        let is_of_requests = file.parent().is_some_and(|folder| folder.ends_with("test/request"));
        if is("http") {
            cases.insert(of_file(&text));
        } else if is("md") && is_of_requests {
            cases.extend(of_text(&text));
        }
    }
    let addressed: Vec<_> = cases.iter().map(|case| addressed(case)).collect();
    cases.extend(addressed);
    cases.into_iter().collect()
}

fn below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            below(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// A file is one stream: its own line ends mean nothing, those that are said do.
fn of_file(text: &str) -> Vec<u8> {
    unescaped(&text.replace(['\r', '\n'], ""))
}

/// A text has streams in blocks: a line end is one, but behind a backslash.
fn of_text(text: &str) -> Vec<Vec<u8>> {
    let (mut blocks, mut block) = (Vec::new(), None::<Vec<&str>>);
    for line in text.lines() {
        match (&mut block, line) {
            (None, "```http") => block = Some(Vec::new()),
            (None, _) => {}
            (Some(lines), "```") => {
                let text = lines.join("\r\n").replace("\\\r\n", "");
                blocks.push(unescaped(&text));
                block = None;
            }
            (Some(lines), line) => lines.push(line),
        }
    }
    blocks
}

/// Returns the bytes that stand in a text with backslashes.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, used) = match (first, after) {
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [b'f', ..]) => (0x0c, 2),
            (b'\\', [b'\\', ..]) => (b'\\', 2),
            (b'\\', [high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', ..]) => {
                ((high - b'0') * 64 + (middle - b'0') * 8 + (low - b'0'), 4)
            }
            (b'\\', [b'0', ..]) => (0, 2),
            _ => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[used..];
    }
    bytes
}

/// Returns the same for the app `web`, so that the edge does not refuse it for its host alone.
fn addressed(case: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for line in case.split_inclusive(|byte| *byte == b'\n') {
        let text = line.trim_ascii_end().to_ascii_lowercase();
        if text.starts_with(b"host:") {
            continue;
        }
        all.extend_from_slice(line);
        if text.ends_with(b"http/1.1") || text.ends_with(b"http/1.0") {
            all.extend_from_slice(HOST);
        }
    }
    all
}

#[test]
fn streams_are_read_as_their_authors_write_them() {
    assert_eq!(
        of_file("GET / HTTP/1.1\\r\\n\nA:\\tb\\0\\r\\n\r\n\\r\\n\n"),
        b"GET / HTTP/1.1\r\nA:\tb\0\r\n\r\n"
    );
    let text = "words\n```http\nPOST / HTTP/1.1\nA: b\\033\\n\\\nC: d\n\n\n```\n```log\nx\n```\n";
    assert_eq!(of_text(text), [b"POST / HTTP/1.1\r\nA: b\x1b\nC: d\r\n\r\n".to_vec()]);
    let both = "GET / HTTP/1.1\r\nHOST: a\r\n\r\nGET /b HTTP/1.0\r\nHost : c\r\n\r\n";
    let want = "GET / HTTP/1.1\r\nHost: web.perch.localhost\r\n\r\n\
                GET /b HTTP/1.0\r\nHost: web.perch.localhost\r\nHost : c\r\n\r\n";
    assert_eq!(addressed(both.as_bytes()), want.as_bytes());
}
