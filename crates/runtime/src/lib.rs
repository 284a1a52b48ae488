//! Starts one machine in its cage, talks to it and stops it.
//!
//! Never opens a database, never calls an API and never decides what should run: a host does.

pub mod cgroup;
pub mod clock;
pub mod consumed;
pub mod containers;
pub mod error;
pub mod fake;
pub mod frame;
pub mod handover;
pub mod inherited;
pub mod log;
pub mod loopback;
pub mod memory;
pub mod process;
pub mod processes;
pub mod protocol;
pub mod room;
pub mod sandbox;
pub mod spec;
pub mod volume;

use std::os::fd::OwnedFd;

use async_trait::async_trait;

pub use cgroup::Pressure;
pub use consumed::{Consumed, Traffic};
pub use containers::{ContainerSpec, ContainerStart, Containers};
pub use error::Error;
pub use fake::FakeRuntime;
pub use memory::Memory;
pub use perch_types::guest::{Ended, GuestExec, GuestProcess, GuestStart, TerminalSize};
pub use processes::Process;
pub use protocol::{InstanceInfo, Stats};
pub use sandbox::{Config, SandboxRuntime};
pub use spec::{
    BootSpec, ExitReason, ExitStatus, IdRange, Limits, LogLimits, MachineDir, Mount, Volume,
};

/// A way to run machines.
#[async_trait]
pub trait Runtime: Send + Sync + std::fmt::Debug {
    /// Makes the sandbox of one boot, up to but not including its program.
    ///
    /// Returns once its network namespace can be reached; the program waits for
    /// [`Instance::start`]. On an error nothing but files that [`Runtime::clean`] removes is left.
    async fn create(&self, spec: &BootSpec) -> Result<Box<dyn Instance>, Error>;

    /// Finds the machine's latest boot again after a restart of the caller.
    ///
    /// # Errors
    /// [`Error::Silent`] or [`Error::Stranger`] when its monitor runs and does not answer, or not
    /// so that it is understood: the boot may run.
    async fn adopt(&self, dir: &MachineDir) -> Result<Adopted, Error>;

    /// Removes whatever a boot left behind: processes, cgroup, socket. May run any number of times.
    /// Kills a boot that still runs. The log, the exit status and the upper image stay.
    async fn clean(&self, dir: &MachineDir) -> Result<(), Error>;
}

/// What [`Runtime::adopt`] found.
#[derive(Debug)]
pub enum Adopted {
    /// It runs.
    Running(Box<dyn Instance>),
    /// It ended and left its status.
    Ended(ExitStatus),
    /// It is gone without a status: killed together with its monitor, or the server restarted.
    Gone,
}

/// One boot of a machine that runs.
#[async_trait]
pub trait Instance: Send + Sync + std::fmt::Debug {
    /// Returns who this is.
    fn info(&self) -> &InstanceInfo;

    /// Opens the machine's network namespace; never that of a process that took over its id.
    fn network_namespace(&self) -> Result<OwnedFd, Error>;

    /// Executes the program; its environment goes through sockets only. Comes once.
    ///
    /// # Errors
    /// [`Error::NotExecutable`] when there is no such program or it may not be executed; the
    /// machine has then ended with code 127 or 126.
    async fn start(&self, start: GuestStart) -> Result<(), Error>;

    /// Executes the programs of a machine's containers, each when those that it waits for have come
    /// so far. Comes once, instead of [`Instance::start`]. Returns once the first was executed.
    ///
    /// # Errors
    /// As [`Instance::start`], when none can be executed.
    async fn start_containers(&self, containers: Vec<ContainerStart>) -> Result<(), Error>;

    /// Returns how the containers stand, once that is something else than at the counter `seen`.
    async fn containers(&self, seen: u64) -> Result<Containers, Error>;

    /// Says whether a container's health checks pass. Says nothing of another start of it.
    async fn container_health(
        &self,
        container: usize,
        start: u32,
        healthy: bool,
    ) -> Result<(), Error>;

    /// Stops a container that is not well, unless it was started again meanwhile; its restart
    /// policy says what follows.
    async fn stop_unwell(&self, container: usize, start: u32) -> Result<(), Error>;

    /// Sends a signal to the main program.
    async fn signal(&self, signal: i32) -> Result<(), Error>;

    /// Sends `signal` and, if the program has not ended `grace_ms` later, kills the machine. The
    /// monitor does this, so it happens even if the caller dies. Returns at once.
    async fn stop(&self, signal: i32, grace_ms: u64) -> Result<(), Error>;

    /// Kills every process of the machine. Returns once this was done; see [`Instance::wait`].
    async fn kill(&self) -> Result<(), Error>;

    /// Stops the machine's processes where they are; returns once all of them stand still. On an
    /// error they go on.
    async fn freeze(&self) -> Result<(), Error>;

    /// Lets them go on.
    async fn thaw(&self) -> Result<(), Error>;

    /// Returns whether all of them stand still.
    async fn is_frozen(&self) -> Result<bool, Error>;

    /// Waits for the end of the machine. May be dropped and called again.
    async fn wait(&self) -> Result<ExitStatus, Error>;

    /// Waits until its processes have ended, which is a little before [`Instance::wait`] tells how.
    /// Asks nobody, so that it takes no place at the monitor. May be dropped and called again.
    async fn over(&self) -> Result<(), Error>;

    /// Runs a further program to its end and returns the beginnings of its output.
    async fn exec(&self, request: ExecRequest) -> Result<ExecOutput, Error>;

    /// Runs a further program with its streams open.
    async fn exec_stream(&self, exec: GuestExec) -> Result<ExecStream, Error>;

    /// Writes a line of the platform's into its log. One whose monitor is of an earlier release
    /// refuses, which loses the line and nothing else.
    async fn note(&self, text: &str) -> Result<(), Error>;

    /// Returns what it uses now.
    async fn stats(&self) -> Result<Stats, Error>;

    /// Returns what it has used since its boot.
    async fn consumed(&self) -> Result<Consumed, Error>;

    /// Returns which limits it has run into since its boot.
    async fn pressure(&self) -> Result<Pressure, Error>;

    /// Lists its processes, as seen from outside.
    async fn processes(&self) -> Result<Vec<Process>, Error>;

    /// Returns its memory.
    async fn memory(&self) -> Result<Memory, Error>;

    /// Changes how much memory it may use, until its end.
    ///
    /// # Errors
    /// [`Error::InUse`] when more is.
    async fn set_memory_limit(&self, bytes: u64) -> Result<(), Error>;

    /// Takes back memory that it could do without; returns how much it really was.
    async fn reclaim_memory(&self, bytes: u64) -> Result<u64, Error>;
}

/// The most output of one stream that [`Instance::exec`] returns, in bytes.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// The longest that [`Instance::exec`] waits.
pub const EXEC_TIMEOUT_MS_MAX: u64 = 300_000;
/// Frames that wait between a caller and a program it runs.
pub const EXEC_FRAMES_MAX: usize = 16;

/// What [`Instance::exec`] shall run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecRequest {
    /// The program.
    pub exec: GuestExec,
    /// Its whole standard input.
    pub stdin: Vec<u8>,
    /// After which it is killed; at most [`EXEC_TIMEOUT_MS_MAX`], 0 is the most.
    pub timeout_ms: u64,
    /// How much of each output is returned; at most [`EXEC_OUTPUT_BYTES_MAX`], 0 is the most.
    pub output_bytes_max: usize,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub ended: Ended,
    /// The beginning of its standard output.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error.
    pub stderr: Vec<u8>,
    /// Whether there was more of either.
    pub truncated: bool,
    /// Whether its time ran out and it was killed.
    pub timed_out: bool,
}

/// A program that runs by [`Instance::exec_stream`]. Dropping `input` ends it (hang-up).
#[derive(Debug)]
pub struct ExecStream {
    /// What goes in.
    pub input: tokio::sync::mpsc::Sender<ExecInput>,
    /// What comes out; ends after [`ExecEvent::Ended`] or [`ExecEvent::Failed`].
    pub events: tokio::sync::mpsc::Receiver<ExecEvent>,
}

/// What goes into a running program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes for its standard input or terminal.
    Stdin(Vec<u8>),
    /// End of its standard input.
    Eof,
    /// The terminal has another size.
    Resize(TerminalSize),
    /// A signal to its process group.
    Signal(i32),
}

/// What comes out of a running program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes of its standard output or terminal.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// It ended.
    Ended(Ended),
    /// It could not be executed.
    Failed {
        /// 126 or 127.
        code: i32,
        /// Why, naming the program.
        reason: String,
    },
}
