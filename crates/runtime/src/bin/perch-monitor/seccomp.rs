//! Which system calls a machine may make.
//!
//! Never a list of what is forbidden: what is not named is refused. The list follows the one that
//! container engines have made common, less what no app of a machine needs.

use std::collections::BTreeMap;

use perch_runtime::Error;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::syscalls::ALLOWED;

/// Flags of `clone` that make namespaces: mount, cgroup, UTS, IPC, user, PID, network.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// Personalities that programs ask for: Linux, 32-bit uname, no randomisation, and "which is it".
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];
/// Socket families that reach past the machine's own network: the hypervisor's (40), and the
/// kernel's crypto interface (38), which no app needs and which has had many faults.
const FAMILIES_REFUSED: [u64; 2] = [40, 38];

/// Numbers of calls that came, or will come, after the list was made.
const YOUNGER: std::ops::RangeInclusive<i64> = 451..=511;

/// Compiles the filters in the order in which they are applied.
pub(crate) fn compile() -> Result<Vec<BpfProgram>, Error> {
    let refused = u32::try_from(libc::EPERM).unwrap_or(1);
    let unknown = u32::try_from(libc::ENOSYS).unwrap_or(38);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    rules.insert(libc::SYS_clone, vec![all(&[(0, SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)])?]);
    rules.insert(
        libc::SYS_personality,
        PERSONALITIES
            .iter()
            .map(|value| all(&[(0, SeccompCmpOp::Eq, *value)]))
            .collect::<Result<_, _>>()?,
    );
    let families: Vec<_> =
        FAMILIES_REFUSED.iter().map(|family| (0, SeccompCmpOp::Ne, *family)).collect();
    rules.insert(libc::SYS_socket, vec![all(&families)?]);
    let allow = program(rules, SeccompAction::Errno(refused), SeccompAction::Allow)?;
    // A filter cannot look into the memory that clone3's flags are in. Without the call, programs
    // fall back to clone, which the first filter can judge.
    // Calls that are younger than this list get the same answer: programs try them and fall back.
    let mut absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    absent.extend(YOUNGER.filter(|number| !ALLOWED.contains(number)).map(|one| (one, Vec::new())));
    let fall_back = program(absent, SeccompAction::Allow, SeccompAction::Errno(unknown))?;
    // Both refuse, with different errors: the kernel takes that of the filter applied last.
    Ok(vec![allow, fall_back])
}

fn fault(error: impl std::fmt::Display) -> Error {
    Error::Spec(format!("compile the system call filter: {error}"))
}

fn all(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, Error> {
    let conditions = conditions
        .iter()
        .map(|(index, operator, value)| {
            SeccompCondition::new(*index, SeccompCmpArgLen::Dword, operator.clone(), *value)
        })
        .collect::<Result<_, _>>()
        .map_err(fault)?;
    SeccompRule::new(conditions).map_err(fault)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(fault)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(fault)?;
    BpfProgram::try_from(filter).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k6_what_no_machine_needs_is_not_on_the_list() {
        let refused = [
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_bpf,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_io_uring_setup,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_pivot_root,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_clone,
        ];
        for number in refused {
            assert!(!ALLOWED.contains(&number), "{number}");
        }
        assert_eq!(compile().unwrap().len(), 2);
    }

    /// Makes calls with arguments of zero, or `first`, under the filters, in a thread of its own.
    fn errors_under_filter(calls: Vec<(i64, i64)>) -> Vec<i32> {
        let filters = compile().unwrap();
        let make = move || {
            for filter in &filters {
                seccompiler::apply_filter(filter).unwrap();
            }
            calls
                .iter()
                .map(|(number, first)| {
                    #[expect(unsafe_code, reason = "the calls have no other form")]
                    // SAFETY: all are refused before they look at an argument, or take none.
                    let result = unsafe { libc::syscall(*number, *first, 0, 0, 0, 0, 0) };
                    if result < 0 {
                        std::io::Error::last_os_error().raw_os_error().unwrap_or_default()
                    } else {
                        0
                    }
                })
                .collect()
        };
        std::thread::spawn(make).join().unwrap()
    }

    #[test]
    fn k6_the_kernel_refuses_what_the_filter_says() {
        let refused = [
            libc::SYS_keyctl,
            libc::SYS_bpf,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_io_uring_setup,
            libc::SYS_open_by_handle_at,
            libc::SYS_kexec_load,
            libc::SYS_mount,
            libc::SYS_ptrace,
            libc::SYS_add_key,
            libc::SYS_reboot,
        ];
        let errors = errors_under_filter(refused.iter().map(|one| (*one, 0)).collect());
        assert_eq!(errors, vec![libc::EPERM; refused.len()]);
        let new_user = i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
        let calls = vec![
            (libc::SYS_clone, new_user),
            (libc::SYS_unshare, i64::from(libc::CLONE_NEWUSER)),
            (libc::SYS_clone3, 0),
            (500, 0),
            (libc::SYS_socket, 40),
            (libc::SYS_socket, 38),
            (libc::SYS_personality, 0x0400_0000),
            (libc::SYS_personality, 0),
            (libc::SYS_getppid, 0),
        ];
        let (refused, unknown) = (libc::EPERM, libc::ENOSYS);
        let expected = [refused, refused, unknown, unknown, refused, refused, refused, 0, 0];
        assert_eq!(errors_under_filter(calls), expected);
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut sorted = ALLOWED.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), ALLOWED.len());
    }
}
