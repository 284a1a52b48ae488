//! The parent's side: starts the child, maps its ids, gives it the job, waits.
//!
//! Never reads a layer, and trusts nothing the child leaves but the size of a plain file. Layers
//! stay this process's: the child reads them by their mode, other pulls may read the same files.

use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;

use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::process::{Child, Command};

use super::{
    EROFS, Fault, HOST_ID_COUNT, Job, MESSAGE_BYTES_MAX, MKFS, MKFS_TIME, Privilege, READY, Report,
    TREE, layer, mkfs_arguments,
};

/// How much of what the child says on standard error is kept.
const STDERR_BYTES_MAX: usize = 4096;
/// Where programs are looked for; nothing else of the environment is passed on.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the child says at its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Unpacked(Report),
    Refused(Fault),
}

/// Turns the layers in `work` into `work/rootfs.erofs`, synced, owned by this process.
///
/// Dropping the future kills the child.
pub(crate) async fn build(work: &Path, job: &Job, privilege: &Privilege) -> Result<Report, Fault> {
    tokio::fs::create_dir(work.join(TREE)).await.map_err(|e| Fault::io("make the tree", &e))?;
    let report = match privilege {
        Privilege::InProcess => in_process(work, job).await?,
        Privilege::Child { program, args, host_id_base } => {
            hand_over(work, *host_id_base).map_err(|e| Fault::io("hand over", &e))?;
            let mut command = Command::new(program);
            command.args(args);
            in_child(command, work, job, *host_id_base).await?
        }
    };
    let erofs = work.join(EROFS);
    take_back(&erofs).map_err(|e| Fault::io("take the file system", &e))?;
    Ok(report)
}

async fn in_process(work: &Path, job: &Job) -> Result<Report, Fault> {
    let (folder, job) = (work.to_owned(), job.clone());
    let report = tokio::task::spawn_blocking(move || layer::unpack(&folder, &job))
        .await
        .map_err(|e| Fault::System(format!("unpack: {e}")))??;
    let output = Command::new(MKFS)
        .args(mkfs_arguments())
        .env(MKFS_TIME, report.newest_mtime_s.to_string())
        .current_dir(work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| Fault::io("run mkfs.erofs", &e))?;
    if output.status.success() {
        return Ok(report);
    }
    Err(Fault::System(format!("{MKFS}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// Gives the work folder and the tree to the child's root.
fn hand_over(work: &Path, base: u32) -> io::Result<()> {
    for path in [work.join(TREE), work.to_owned()] {
        std::os::unix::fs::lchown(path, Some(base), Some(base))?;
    }
    Ok(())
}

async fn in_child(
    mut command: Command,
    work: &Path,
    job: &Job,
    base: u32,
) -> Result<Report, Fault> {
    command
        .env_clear()
        .env("PATH", PATH)
        .current_dir(work)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // Held until the child has ended.
    let (mut child, _keeper) =
        spawn(command).await.map_err(|e| Fault::io("start the unpacking child", &e))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Fault::System("start the unpacking child: no pipes".to_owned()));
    };
    let mut lines = BufReader::new(stdout.take(MESSAGE_BYTES_MAX));
    let talk = async {
        let mut last = talk(&mut child, &mut lines, job, base).await?;
        let mut line = String::new();
        while lines.read_line(&mut line).await.map_err(|e| Fault::io("hear the child", &e))? > 0 {
            last = std::mem::take(&mut line);
        }
        Ok(last)
    };
    let (last, said) = tokio::join!(talk, tail(stderr));
    let status = child.wait().await.map_err(|e| Fault::io("wait for the child", &e))?;
    let said = || format!("the unpacking child ended with {status}: {}", said.trim());
    match serde_json::from_str(&last?) {
        Ok(Answer::Unpacked(report)) if status.success() => Ok(report),
        Ok(Answer::Refused(fault)) => Err(fault),
        Ok(Answer::Unpacked(_)) | Err(_) => Err(Fault::System(said())),
    }
}

/// Starts the child from a thread that lives until the keeper is dropped. The child wants to be
/// killed when its parent dies, and to the kernel that is the thread which started it; threads of
/// the runtime come and go.
async fn spawn(mut command: Command) -> io::Result<(Child, mpsc::SyncSender<()>)> {
    let (give, take) = tokio::sync::oneshot::channel();
    let (keeper, kept) = mpsc::sync_channel::<()>(0);
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("unpack".to_owned()).spawn(move || {
        let _inside = runtime.enter();
        if give.send(command.spawn()).is_ok() {
            // Never sent to: ends when the keeper is dropped.
            let _dropped = kept.recv();
        }
    })?;
    let child = take.await.map_err(io::Error::other)??;
    Ok((child, keeper))
}

async fn talk<R: AsyncRead + Unpin>(
    child: &mut Child,
    lines: &mut BufReader<R>,
    job: &Job,
    base: u32,
) -> Result<String, Fault> {
    let mut line = String::new();
    lines.read_line(&mut line).await.map_err(|e| Fault::io("hear the child", &e))?;
    if line.trim() != READY {
        return Ok(line);
    }
    let pid = child.id().ok_or_else(|| Fault::System("the child is gone".to_owned()))?;
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{map}");
        tokio::fs::write(path, format!("0 {base} {HOST_ID_COUNT}\n"))
            .await
            .map_err(|e| Fault::io("map the child's ids", &e))?;
    }
    let mut text = serde_json::to_string(job).map_err(|e| Fault::System(e.to_string()))?;
    text.push('\n');
    let mut stdin = child
        .stdin
        .take()
        .ok_or_else(|| Fault::System("the child has no standard input".to_owned()))?;
    stdin.write_all(text.as_bytes()).await.map_err(|e| Fault::io("send the job", &e))?;
    Ok(String::new())
}

/// Reads all of a stream and returns its end.
async fn tail(mut stream: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = vec![0; STDERR_BYTES_MAX];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let excess = kept.len().saturating_sub(STDERR_BYTES_MAX);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Takes the file from the child's root: a plain file with one name, and nothing else.
fn take_back(erofs: &Path) -> io::Result<()> {
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(nofollow).open(erofs)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(io::Error::other("the child left something else than a file"));
    }
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
    file.sync_all()
}
