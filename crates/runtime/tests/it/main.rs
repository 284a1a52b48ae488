//! The runtime against the kernel: real sandboxes around a root of busybox.
//!
//! Never leaves a process, mount, cgroup or loop device behind.

mod adoption;
mod bench;
mod cage;
mod exec;
mod limits;
mod logs;
mod machine;
mod program;
