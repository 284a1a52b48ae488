//! Kernel switches of the host and of machines' interfaces, under /proc/sys/net.
//!
//! Never turns forwarding off again: somebody else may have come to rely on it.

use std::fs;
use std::io;
use std::path::Path;

use super::Error;

const ROOT: &str = "/proc/sys/net";

/// Turns forwarding on for the whole host (there is no way to do it for some interfaces only:
/// answers come in by any of them). An interface that takes its IPv6 route from router
/// advertisements would stop to once it forwards, so it is first told to go on.
pub(super) fn enable_forwarding() -> Result<(), Error> {
    if read("ipv6/conf/all/forwarding")? != "1" {
        let root = Path::new(ROOT).join("ipv6/conf");
        let entries = fs::read_dir(&root)
            .map_err(|source| Error::Sysctl { name: "ipv6/conf".to_owned(), source })?;
        for entry in entries.flatten() {
            let name = format!("ipv6/conf/{}/accept_ra", entry.file_name().to_string_lossy());
            // An interface may vanish meanwhile; `all` and `default` carry the value too.
            if read(&name).is_ok_and(|value| value == "1") {
                write(&name, "2")?;
            }
        }
        write("ipv6/conf/all/forwarding", "1")?;
    }
    if read("ipv4/ip_forward")? != "1" {
        write("ipv4/ip_forward", "1")?;
    }
    Ok(())
}

/// Sets what the host's side of a machine's interface needs. The firewall covers the same
/// ground; this holds should somebody flush it.
pub(super) fn harden_host_side(interface: &str) -> Result<(), Error> {
    write(&format!("ipv4/conf/{interface}/rp_filter"), "1")?;
    write(&format!("ipv6/conf/{interface}/accept_ra"), "0")
}

/// Sets, in the calling thread's namespace, what programs in machines expect: ports below 1024
/// and echo requests without privileges, as other container platforms have them.
pub(super) fn prepare_machine_side() -> Result<(), Error> {
    write("ipv4/ip_unprivileged_port_start", "0")?;
    write("ipv4/ping_group_range", "0 2147483647")?;
    write("ipv6/conf/eth0/accept_ra", "0")
}

fn read(name: &str) -> Result<String, Error> {
    fs::read_to_string(Path::new(ROOT).join(name))
        .map(|text| text.trim().to_owned())
        .map_err(|source| Error::Sysctl { name: name.to_owned(), source })
}

fn write(name: &str, value: &str) -> Result<(), Error> {
    let result: io::Result<()> = fs::write(Path::new(ROOT).join(name), value);
    result.map_err(|source| Error::Sysctl { name: name.to_owned(), source })
}
