//! The unpacking child on its own, for tests of this crate; the daemon runs the same function as
//! its subcommand `unpack-layer`.
//!
//! Never does anything before it.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    perch_oci::unpack::child_main()
}
