//! The unpacking child on its own, for tests that pull what this registry holds; the daemon runs the same function as
//! its subcommand `unpack-layer`.
//!
//! Never does anything before it.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    perch_oci::unpack::child_main()
}
