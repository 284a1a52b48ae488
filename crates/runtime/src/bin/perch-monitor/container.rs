//! The sandbox itself, by `libcontainer`.
//!
//! Never runs a program of the image: what is executed is init, from a descriptor, so that no
//! file of the host appears inside.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use perch_runtime::Error;
use perch_types::error::chain;
use perch_types::guest::SOCKET_FD;
use seccompiler::BpfProgram;
use serde_json::Value;

/// What the first process of the sandbox is given.
pub(crate) struct Parts {
    /// The binary of init.
    pub(crate) init: OwnedFd,
    /// Its socket to the monitor.
    pub(crate) socket: OwnedFd,
    /// Its standard output and error.
    pub(crate) outputs: [OwnedFd; 2],
    /// The filter of its system calls.
    pub(crate) filter: BpfProgram,
}

#[derive(Clone)]
struct Init {
    binary: RawFd,
    socket: RawFd,
    filter: Arc<BpfProgram>,
}

impl Init {
    fn become_init(&self) -> io::Result<std::convert::Infallible> {
        // Whoever kills the monitor kills the machine. Init asks for it again, as executing a
        // program may take it away.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        #[expect(unsafe_code, reason = "no safe binding for a chosen number")]
        // SAFETY: everything else that this process has open closes when it executes init.
        let number = unsafe { libc::dup2(self.socket, SOCKET_FD) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        seccompiler::apply_filter(&self.filter).map_err(io::Error::other)?;
        let argv = [c"perch-init".as_ptr(), std::ptr::null()];
        let envp: [*const libc::c_char; 1] = [std::ptr::null()];
        #[expect(unsafe_code, reason = "no safe binding")]
        // SAFETY: the strings and the two lists, each with its end, live until the call is over.
        let _failed = unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.binary,
                c"".as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        Err(io::Error::last_os_error())
    }
}

impl Executor for Init {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        match self.become_init() {
            Ok(never) => match never {},
            Err(error) => Err(ExecutorError::Other(format!("execute init: {error}"))),
        }
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(
        &self,
        _: std::collections::HashMap<String, String>,
    ) -> Result<(), ExecutorSetEnvsError> {
        // Init is executed with an empty environment of its own.
        Ok(())
    }
}

/// Makes the sandbox and executes init in it; returns its process id. `run` is the machine's run
/// folder, in which nothing of the papers is left.
pub(crate) fn create(name: &str, run: &Path, config: &Value, parts: Parts) -> Result<i32, Error> {
    let bundle = run.join("bundle");
    let state = run.join("oci");
    for dir in [&bundle, &state] {
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
    }
    let papers = bundle.join("config.json");
    fs::write(&papers, config.to_string()).map_err(Error::file("write", papers))?;
    let pid = build(name, &bundle, &state, parts)?;
    for dir in [&bundle, &state] {
        fs::remove_dir_all(dir).map_err(Error::file("remove", dir))?;
    }
    Ok(pid)
}

fn build(name: &str, bundle: &Path, state: &Path, parts: Parts) -> Result<i32, Error> {
    let Parts { init, socket, outputs: [stdout, stderr], filter } = parts;
    let executor =
        Init { binary: init.as_raw_fd(), socket: socket.as_raw_fd(), filter: Arc::new(filter) };
    let mut builder = ContainerBuilder::new(name.to_owned(), SyscallType::Linux)
        .with_executor(executor)
        .with_root_path(state)
        .map_err(refused)?;
    builder.stdout = Some(stdout);
    builder.stderr = Some(stderr);
    let mut container =
        builder.as_init(bundle).with_systemd(false).with_detach(true).build().map_err(refused)?;
    container.start().map_err(refused)?;
    let pid = container.pid().map(|pid| pid.as_raw());
    pid.ok_or_else(|| Error::Spec("the sandbox has no process".to_owned()))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn refused(error: libcontainer::error::LibcontainerError) -> Error {
    Error::Refused { operation: "make the sandbox", reason: chain(&error) }
}
