//! The runtime against the kernel: real sandboxes around a root of busybox.
//!
//! Never leaves a process, mount, cgroup or loop device behind.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod adoption;
mod cage;
mod containers;
mod exec;
mod limits;
mod logs;
mod machine;
mod processes;
mod program;
mod versions;
