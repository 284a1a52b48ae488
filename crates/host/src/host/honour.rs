//! What this server cannot honour of a configuration, found out before anything is written down.
//!
//! Never changes anything: it looks at the server and at the machine as it is.

use std::path::Path;

use perch_types::host::HostMachine;
use perch_types::image::ImageRef;
use perch_types::machine_config::RootfsPersist;
use perch_types::{ApiError, Code, MachineConfig};

/// Where cgroup version 1 counts swap, on kernels that do.
const SWAP_ACCOUNT_V1: &str = "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes";
/// What is there on every server with memory in cgroup version 1.
const MEMORY_V1: &str = "/sys/fs/cgroup/memory/memory.limit_in_bytes";

/// The swap that a server has for its machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swap {
    /// All of it, in MiB.
    pub(super) total_mb: u64,
    /// Whether a machine can be kept from using more than its own.
    pub(super) is_counted: bool,
}

impl Swap {
    /// Asks the kernel.
    pub(super) fn of_server() -> Self {
        let info = rustix::system::sysinfo();
        let is_counted = !Path::new(MEMORY_V1).exists() || Path::new(SWAP_ACCOUNT_V1).exists();
        Self { total_mb: info.totalswap.saturating_mul(u64::from(info.mem_unit)) >> 20, is_counted }
    }
}

/// Refuses a configuration that this server cannot honour.
pub(super) fn check(config: &MachineConfig, swap: Swap) -> Result<(), ApiError> {
    let wanted = u64::from(config.swap_mb());
    let refuse = |text: String, hint: &str| {
        let text = format!("config.init.swap_size_mb: {text}");
        Err(ApiError::new(Code::UnsupportedKey, text).with_hint(hint))
    };
    if wanted == 0 {
        return Ok(());
    }
    if swap.total_mb == 0 {
        return refuse(
            "this server has no swap".to_owned(),
            "leave it out and ask for more memory, or add swap to the server",
        );
    }
    if !swap.is_counted {
        return refuse(
            "this server's kernel does not count swap by machine".to_owned(),
            "leave it out, or boot the server with `swapaccount=1`",
        );
    }
    if wanted > swap.total_mb {
        let text = format!("{wanted} MiB are more than the server's {}", swap.total_mb);
        return refuse(text, "ask for less, or add swap to the server");
    }
    Ok(())
}

/// Refuses an update that would keep a writable layer and give it another size.
pub(super) fn check_layer(
    before: &HostMachine,
    config: &MachineConfig,
    image: &ImageRef,
) -> Result<(), ApiError> {
    let others = |config: &MachineConfig| {
        let references = config.image_references().into_iter().skip(1);
        references.map(str::to_owned).collect::<Vec<_>>()
    };
    let keeps = config.rootfs_persist() == RootfsPersist::Always
        && image.digest == before.image_ref.digest
        && others(config) == others(&before.config);
    let (now, wanted) = (before.config.rootfs_size_gb(), config.rootfs_size_gb());
    if !keeps || now == wanted {
        return Ok(());
    }
    let text = format!(
        "config.rootfs.size_gb: {wanted} is not {now}, the size of the layer that the machine keeps"
    );
    Err(ApiError::new(Code::InvalidValue, text)
        .with_hint("keep the size, give up `persist`, or make another machine"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_refused_where_there_is_none_or_none_is_counted() {
        for (wanted, total_mb, is_counted, want) in [
            (0, 0, false, None),
            (64, 64, true, None),
            (64, 0, true, Some("this server has no swap")),
            (64, 128, false, Some("this server's kernel does not count swap by machine")),
            (64, 63, true, Some("64 MiB are more than the server's 63")),
        ] {
            let mut config = MachineConfig::default();
            config.init.swap_size_mb = Some(wanted);
            let said = check(&config, Swap { total_mb, is_counted }).err();
            assert!(said.iter().all(|error| error.code == Code::UnsupportedKey));
            let said = said.map(|error| error.error);
            assert_eq!(said, want.map(|want| format!("config.init.swap_size_mb: {want}")));
        }
    }
}
