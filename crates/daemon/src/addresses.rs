//! Which block the private IPv4 addresses of machines are of.
//!
//! Never another one under a machine that runs: its interface, the firewall, the resolver and what
//! the edge knows are of the block that it was started with. One that is configured anew counts once
//! no machine runs, at the latest after a restart of the server.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context as _, Result};

use crate::certificate::write_private;
use crate::config::{Config, Ipv4Pool};
use crate::identity::HOST_DIR;

/// Where the block is noted: where the notes of boots are, so that it goes with them.
const FILE: &str = "machines-ipv4";

/// Puts the block that is in use into the place of the configured one, and notes it.
pub(crate) fn settle(config: &mut Config) -> Result<()> {
    let used = in_use(config)?;
    let shown = String::from(used);
    if used != config.machines_ipv4 {
        tracing::warn!(
            configured = String::from(config.machines_ipv4),
            in_use = shown,
            "machines that run keep their addresses: `machines_ipv4` counts once none does"
        );
        config.machines_ipv4 = used;
    }
    write_private(&config.run_dir.join(FILE), shown.as_bytes())
}

/// Returns the block that machines which run have addresses of, else the configured one.
pub(crate) fn in_use(config: &Config) -> Result<Ipv4Pool> {
    let (path, wanted) = (config.run_dir.join(FILE), config.machines_ipv4);
    let noted = match fs::read_to_string(&path) {
        // One that cannot be understood was not written by a server with machines.
        Ok(text) => Ipv4Pool::try_from(text).ok(),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("read `{}`", path.display())),
    };
    let Some(noted) = noted.filter(|noted| *noted != wanted) else {
        return Ok(wanted);
    };
    let host = config.run_dir.join(HOST_DIR);
    let runs = perch_host::has_boots(&host)
        .with_context(|| format!("look for machines in `{}`", host.display()))?;
    Ok(if runs { noted } else { wanted })
}

#[cfg(test)]
mod tests {
    use perch_types::MachineId;

    use super::*;

    #[test]
    fn a_block_that_is_configured_anew_counts_once_no_machine_runs() {
        let run = tempfile::tempdir().unwrap();
        let with = |block: &str| Config {
            run_dir: run.path().to_owned(),
            machines_ipv4: block.to_owned().try_into().unwrap(),
            ..Config::default()
        };
        let settled = |block: &str| {
            let mut config = with(block);
            settle(&mut config).unwrap();
            String::from(config.machines_ipv4)
        };
        let (first, second) = ("10.1.0.0/16", "10.2.0.0/20");
        assert_eq!(settled(first), first);
        let machine = run.path().join("host/machines").join(MachineId::from_bits(7).as_str());
        fs::create_dir_all(&machine).unwrap();
        fs::write(machine.join("boot.json"), "{}").unwrap();
        for _ in 0..2 {
            assert_eq!(settled(second), first, "a machine runs");
            assert_eq!(String::from(in_use(&with(second)).unwrap()), first);
        }
        fs::remove_file(machine.join("boot.json")).unwrap();
        assert_eq!(settled(second), second);
        fs::write(run.path().join(FILE), "nonsense").unwrap();
        assert_eq!(settled(first), first);
    }
}
