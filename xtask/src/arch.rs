//! Compares the crate table of ARCHITECTURE.md with what the crates really use.
//!
//! Never looks at what only tests use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::portable;

/// A row of the table: a crate's layer and the crates it may use.
#[derive(Debug)]
struct Row {
    layer: Option<u32>,
    may_use: BTreeSet<String>,
}

/// The crate that is for other systems too.
const CLI: &str = "cli";
/// Words of the "may use" column that stand for sets of crates.
const ANYTHING: &str = "anything";
const ALL_ROLES: &str = "all roles";
/// Crates that `all roles` and everything below them stand for: every crate with a layer under 4.
const ROLE_LAYER_MAX: u32 = 3;

pub(crate) fn run(root: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("read ARCHITECTURE.md")?;
    let table = parse(&text)?;
    let used = used_crates(root)?;
    let mut faults = compare(&table, &used);
    let cli = table.get(CLI).context("find the CLI in the table")?;
    faults.extend(portable::faults(root, &cli.may_use)?);
    if !faults.is_empty() {
        bail!("{}", faults.join("\n  "));
    }
    Ok(format!("{} crates as ARCHITECTURE.md says; the CLI links nothing of Linux", used.len()))
}

fn parse(text: &str) -> Result<BTreeMap<String, Row>> {
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [names, layer, _, may_use, _] = cells.as_slice() else {
            continue;
        };
        let may_use: BTreeSet<String> = may_use
            .split(',')
            .map(|word| word.split('(').next().unwrap_or_default().trim().to_owned())
            .filter(|word| !word.is_empty() && word != "-")
            .collect();
        for name in names.split(',').map(|name| name.trim().trim_matches('`').to_owned()) {
            let row = Row { layer: layer.parse().ok(), may_use: may_use.clone() };
            if rows.insert(name.clone(), row).is_some() {
                bail!("crate `{name}` stands in the table twice");
            }
        }
    }
    Ok(rows)
}

/// Returns for every crate of the workspace which others it uses outside of tests.
fn used_crates(root: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let short = |name: &str| name.strip_prefix("perch-").unwrap_or(name).to_owned();
    let mut used = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let uses = package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|dependency| dependency.starts_with("perch-"))
            .map(short)
            .collect();
        used.insert(short(name), uses);
    }
    Ok(used)
}

fn compare(
    table: &BTreeMap<String, Row>,
    used: &BTreeMap<String, BTreeSet<String>>,
) -> Vec<String> {
    let mut faults = Vec::new();
    for name in table.keys().filter(|name| !used.contains_key(*name)) {
        faults.push(format!("`{name}` is in the table and no crate"));
    }
    for (name, uses) in used {
        let Some(row) = table.get(name) else {
            faults.push(format!("`{name}` is a crate and not in the table"));
            continue;
        };
        for other in uses {
            if !allowed(table, row, other) {
                faults.push(format!("`{name}` uses `{other}`, which its row does not allow"));
            }
            let other_layer = table.get(other).and_then(|row| row.layer);
            if let (Some(layer), Some(other_layer)) = (row.layer, other_layer)
                && other_layer > layer
            {
                faults.push(format!("`{name}` (layer {layer}) points up at `{other}`"));
            }
        }
    }
    faults
}

fn allowed(table: &BTreeMap<String, Row>, row: &Row, other: &str) -> bool {
    let is_role_or_below =
        table.get(other).and_then(|row| row.layer).is_some_and(|layer| layer <= ROLE_LAYER_MAX);
    row.may_use.contains(other)
        || row.may_use.contains(ANYTHING)
        || (row.may_use.contains(ALL_ROLES) && is_role_or_below)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "
| `types` | 1 | words | - | I/O |
| `store` | 2 | documents | types | requests |
| `daemon` | 4 | wiring | all roles | logic |
| `testkit`, `xtask` | - | tests | anything | run time |
";

    fn uses(pairs: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        pairs
            .iter()
            .map(|(name, uses)| {
                ((*name).to_owned(), uses.iter().map(|other| (*other).to_owned()).collect())
            })
            .collect()
    }

    #[test]
    fn a_tree_as_the_table_says_has_no_faults() {
        let used = uses(&[
            ("types", &[]),
            ("store", &["types"]),
            ("daemon", &["store", "types"]),
            ("testkit", &["daemon"]),
            ("xtask", &[]),
        ]);
        assert_eq!(compare(&parse(TABLE).unwrap(), &used), Vec::<String>::new());
    }

    #[test]
    fn each_way_to_leave_the_table_is_a_fault() {
        let table = parse(TABLE).unwrap();
        for (used, words) in [
            (uses(&[("types", &["store"]), ("store", &[]), ("daemon", &[])]), "does not allow"),
            (uses(&[("types", &["store"]), ("store", &[]), ("daemon", &[])]), "points up"),
            (uses(&[("extra", &[])]), "not in the table"),
            (uses(&[("types", &[])]), "no crate"),
        ] {
            let faults = compare(&table, &used).join("\n");
            assert!(faults.contains(words), "{words}: {faults}");
        }
    }
}
