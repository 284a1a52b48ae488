//! Which system calls a machine may make.
//!
//! Never a list of what is forbidden: what is not named is refused. The list follows the one that
//! container engines have made common, less what no app of a machine needs.
//!
//! The program that the kernel runs finds a call's number by halving: the kernel goes through it for
//! every number that there is when a machine begins, and through a list that would take it long.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use perch_runtime::Error;
use seccompiler::{BpfProgram, sock_filter};

use crate::syscalls::ALLOWED;

/// Flags of `clone` that make namespaces: mount, cgroup, UTS, IPC, user, PID, network.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
/// Personalities that programs ask for: Linux, 32-bit uname, no randomisation, and "which is it".
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];
/// Socket families that reach past the machine's own network: the hypervisor's (40), and the
/// kernel's crypto interface (38), which no app needs and which has had many faults.
const FAMILIES_REFUSED: [u32; 2] = [40, 38];

/// Numbers of calls that came, or will come, after the list was made.
const YOUNGER: RangeInclusive<i64> = 451..=511;

/// The architecture whose numbers the list has, as the kernel calls it in a filter.
const ARCHITECTURE: u32 = 0xc000_003e;
/// Where a filter finds the call's number, the architecture, and the lower half of the first
/// argument.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENT_AT: u32 = 16;

/// Instructions of a filter: load a word, and jump if it is, is at least, has a bit of, or end.
const LOAD: u16 = 0x20;
const IF_IS: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_HAS_ANY: u16 = 0x45;
const END: u16 = 0x06;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Refused,
    /// As on a kernel without it: programs try it and fall back.
    Absent,
    /// Its first argument decides.
    Judged(Judged),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judged {
    Clone,
    Personality,
    Socket,
}

impl Verdict {
    fn of(number: i64, allowed: &BTreeSet<i64>) -> Self {
        match number {
            libc::SYS_clone => Self::Judged(Judged::Clone),
            libc::SYS_personality => Self::Judged(Judged::Personality),
            libc::SYS_socket => Self::Judged(Judged::Socket),
            // A filter cannot look into the memory that clone3's flags are in. Without the call,
            // programs fall back to clone, which can be judged.
            libc::SYS_clone3 => Self::Absent,
            _ if allowed.contains(&number) => Self::Allowed,
            _ if YOUNGER.contains(&number) => Self::Absent,
            _ => Self::Refused,
        }
    }

    /// Returns what a filter says when it ends.
    fn word(self) -> u32 {
        let errno = |errno: libc::c_int| libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
        match self {
            Self::Allowed => libc::SECCOMP_RET_ALLOW,
            Self::Refused | Self::Judged(_) => errno(libc::EPERM),
            Self::Absent => errno(libc::ENOSYS),
        }
    }

    /// Returns the end of the way to it.
    fn program(self) -> Result<BpfProgram, Error> {
        match self {
            Self::Judged(Judged::Clone) => {
                judged((IF_HAS_ANY, &[CLONE_NAMESPACES]), Self::Refused, Self::Allowed)
            }
            Self::Judged(Judged::Personality) => {
                judged((IF_IS, &PERSONALITIES), Self::Allowed, Self::Refused)
            }
            Self::Judged(Judged::Socket) => {
                judged((IF_IS, &FAMILIES_REFUSED), Self::Refused, Self::Allowed)
            }
            Self::Allowed | Self::Refused | Self::Absent => Ok(vec![step(END, self.word())]),
        }
    }
}

/// Compiles the filter.
pub(crate) fn compile() -> Result<BpfProgram, Error> {
    let mut program = vec![
        step(LOAD, ARCHITECTURE_AT),
        jump(IF_IS, ARCHITECTURE, 1)?,
        step(END, libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, NUMBER_AT),
    ];
    program.append(&mut halved(&ranges())?);
    Ok(program)
}

/// Returns the numbers from which on another verdict holds, the last of them for ever.
fn ranges() -> Vec<(u32, Verdict)> {
    let allowed: BTreeSet<i64> = ALLOWED.iter().copied().collect();
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for (number, first) in (0..=YOUNGER.end().saturating_add(1)).zip(0_u32..) {
        let verdict = Verdict::of(number, &allowed);
        if ranges.last().is_none_or(|(_, before)| *before != verdict) {
            ranges.push((first, verdict));
        }
    }
    ranges
}

/// Returns the way from a loaded number to its verdict.
fn halved(ranges: &[(u32, Verdict)]) -> Result<BpfProgram, Error> {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    match (low, high) {
        ([], [(_, verdict)]) => verdict.program(),
        (low, [(first, _), ..]) => {
            let mut below = halved(low)?;
            let mut program = vec![jump(IF_AT_LEAST, *first, below.len())?];
            program.append(&mut below);
            program.append(&mut halved(high)?);
            Ok(program)
        }
        (_, []) => Err(Error::Spec("compile the system call filter: it is empty".to_owned())),
    }
}

/// Returns the way to one verdict if the first argument passes one of the tests, else to another.
/// Only the lower half of it counts, as it does for the kernel.
fn judged(
    (test, values): (u16, &[u32]),
    passed: Verdict,
    otherwise: Verdict,
) -> Result<BpfProgram, Error> {
    let mut program = vec![step(LOAD, ARGUMENT_AT)];
    for (before, value) in values.iter().enumerate() {
        // Over the tests that are left and the end of those that pass none.
        program.push(jump(test, *value, values.len().saturating_sub(before))?);
    }
    program.extend([step(END, otherwise.word()), step(END, passed.word())]);
    Ok(program)
}

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Makes an instruction that skips so many others if its test is passed.
fn jump(code: u16, k: u32, over: usize) -> Result<sock_filter, Error> {
    let jt = u8::try_from(over)
        .map_err(|_| Error::Spec("compile the system call filter: it is too long".to_owned()))?;
    Ok(sock_filter { code, jt, jf: 0, k })
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
    }

    /// Goes through the filter as the kernel does.
    fn run(program: &[sock_filter], architecture: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut word) = (0, 0);
        for _ in 0..program.len() {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let passed = match code {
                LOAD => {
                    word = match k {
                        NUMBER_AT => number,
                        ARCHITECTURE_AT => architecture,
                        ARGUMENT_AT => argument,
                        _ => panic!("load from {k}"),
                    };
                    continue;
                }
                END => return k,
                IF_IS => word == k,
                IF_AT_LEAST => word >= k,
                IF_HAS_ANY => word & k != 0,
                _ => panic!("instruction {code:#x}"),
            };
            at += usize::from(if passed { jt } else { jf });
        }
        panic!("no end")
    }

    #[test]
    fn k6_every_number_gets_what_the_list_says() {
        let program = compile().unwrap();
        let (allow, refuse) = (Verdict::Allowed.word(), Verdict::Refused.word());
        let absent = Verdict::Absent.word();
        assert!(ALLOWED.iter().all(|number| number <= YOUNGER.end()));
        let beyond = [1 << 16, 1 << 30, 0x4000_0000 | 57, u32::MAX - 1, u32::MAX];
        for number in (0..2048).chain(beyond) {
            let expected = match i64::from(number) {
                libc::SYS_clone | libc::SYS_personality | libc::SYS_socket => continue,
                libc::SYS_clone3 => absent,
                listed if ALLOWED.contains(&listed) => allow,
                451..=511 => absent,
                _ => refuse,
            };
            let found = run(&program, ARCHITECTURE, number, 0);
            assert_eq!(found, expected, "{number}");
            let other = run(&program, 0x4000_0003, number, 0);
            assert_eq!(other, libc::SECCOMP_RET_KILL_PROCESS, "{number}");
        }
        for (number, argument, expected) in [
            (libc::SYS_clone, 0, allow),
            (libc::SYS_clone, libc::CLONE_VM | libc::CLONE_THREAD | libc::SIGCHLD, allow),
            (libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, refuse),
            (libc::SYS_clone, libc::CLONE_NEWNS, refuse),
            (libc::SYS_clone, libc::CLONE_NEWNET, refuse),
            (libc::SYS_clone, libc::CLONE_NEWCGROUP, refuse),
            (libc::SYS_personality, 0, allow),
            (libc::SYS_personality, 0x0008, allow),
            (libc::SYS_personality, 0x0002_0008, allow),
            (libc::SYS_personality, -1, allow),
            (libc::SYS_personality, 0x0400_0000, refuse),
            (libc::SYS_socket, libc::AF_INET, allow),
            (libc::SYS_socket, libc::AF_UNIX, allow),
            (libc::SYS_socket, 38, refuse),
            (libc::SYS_socket, 40, refuse),
        ] {
            let number = u32::try_from(number).unwrap();
            let found = run(&program, ARCHITECTURE, number, argument.cast_unsigned());
            assert_eq!(found, expected, "{number} {argument:#x}");
        }
    }

    #[test]
    fn the_way_to_a_verdict_is_short() {
        let count = ranges().len();
        assert!(count < 128, "{count}");
        assert!(compile().unwrap().len() < 2 * count + 32);
    }

    /// Makes calls with arguments of zero, or `first`, under the filter, in a thread of its own.
    fn errors_under_filter(calls: Vec<(i64, i64)>) -> Vec<i32> {
        let filter = compile().unwrap();
        let make = move || {
            seccompiler::apply_filter(&filter).unwrap();
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
