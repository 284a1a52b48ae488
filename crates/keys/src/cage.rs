//! What the process gives up before it serves: the network, other programs, being looked into.
//!
//! Never needs a right for it, and nothing of it can be taken back.

use std::collections::BTreeMap;

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::error::Error;

/// The family of Unix sockets.
const UNIX: u64 = 1;
/// Calls that lead out, or into another process.
const REFUSED: [i64; 10] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_io_uring_setup,
    libc::SYS_open_by_handle_at,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
];

/// Gives up, for all threads of the process: sockets other than Unix ones, other programs, core
/// files, and being traced by its own user.
///
/// # Errors
/// When the kernel refuses.
pub fn enter() -> Result<(), Error> {
    let fault = |error: &dyn std::fmt::Display| Error::Cage(error.to_string());
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| fault(&error))?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| fault(&error))?;
    seccompiler::apply_filter_all_threads(&filter()?).map_err(|error| fault(&error))
}

fn filter() -> Result<BpfProgram, Error> {
    fn fault(error: impl std::fmt::Display) -> Error {
        Error::Cage(error.to_string())
    }
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    let other_family =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, UNIX).map_err(fault)?;
    let rule = SeccompRule::new(vec![other_family]).map_err(fault)?;
    rules.insert(libc::SYS_socket, vec![rule]);
    let refused = u32::try_from(libc::EPERM).unwrap_or(1);
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(fault)?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(refused), arch);
    BpfProgram::try_from(filter.map_err(fault)?).map_err(fault)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn t4_the_process_of_the_keys_has_no_network_and_runs_nothing() {
        // For one thread, so that other tests of this program keep theirs.
        std::thread::spawn(|| {
            TcpListener::bind("127.0.0.1:0").unwrap();
            seccompiler::apply_filter(&filter().unwrap()).unwrap();
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap_err();
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap_err();
            let program = std::process::Command::new("true").status().unwrap_err();
            for error in [tcp, udp, program] {
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            }
            UnixStream::pair().unwrap();
        })
        .join()
        .unwrap();
    }
}
