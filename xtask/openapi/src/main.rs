//! The OpenAPI document of what is served, made of the source: the table of endpoints, the
//! signatures of their handlers, the shapes of their bodies, and the comments on all of them.
//!
//! Never runs the server. A test of the api compares the document with the routes there are.

#![forbid(unsafe_code)]

mod operations;
mod schema;
mod serde_words;
mod source;
mod tables;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use schema::Schemas;
use source::Source;

/// The document, from the root of the repository.
const DOCUMENT: &str = "docs/openapi.json";

fn main() -> ExitCode {
    let write = std::env::args().nth(1).as_deref() == Some("--write");
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).unwrap_or(&here);
    match run(root, write) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Checks the document, or writes it anew with `write`.
fn run(root: &Path, write: bool) -> Result<String> {
    let path = root.join(DOCUMENT);
    let document = document(&Source::load(root)?)?;
    let count = document["paths"].as_object().map_or(0, Map::len);
    let fresh = format!("{:#}\n", sorted(document));
    if write {
        std::fs::write(&path, &fresh).with_context(|| format!("write `{}`", path.display()))?;
    } else {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))?;
        if text != fresh {
            bail!("{DOCUMENT} is not what the code says; run `cargo xtask openapi --write`");
        }
    }
    Ok(format!("{count} paths"))
}

fn document(source: &Source) -> Result<Value> {
    let mut schemas = Schemas::new(source);
    let paths = operations::paths(source, &mut schemas)?;
    let errors = operations::errors(source, &mut schemas)?;
    Ok(json!({
        "openapi": "3.0.3",
        "info": operations::info(),
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.named,
            "responses": errors,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }))
}

/// Orders the keys of every object, so that the text depends on nothing else.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
            fields.sort_by(|one, other| one.0.cmp(&other.0));
            Value::Object(fields.into_iter().map(|(name, value)| (name, sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
