//! What tests of survival do to a cloud and look at: kills, wiping, and what there is of it.
//!
//! Never does any of it politely.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use perch_durable::{Db, Table};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Cloud;
use crate::http::{self, Answer};
use crate::{Place, Reality, Said, wait_for};

/// How long a host may take to come to rest after a kill, on a busy machine.
const REST: Duration = Duration::from_secs(60);

/// Calls the API as the administrator, from any thread and while the server is killed.
#[derive(Debug, Clone)]
pub struct Caller {
    api: SocketAddr,
    token: String,
}

impl Caller {
    /// Calls the API.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Result<Answer> {
        let authorization = format!("Bearer {}", self.token);
        let fields = [
            ("Host", "api"),
            ("Authorization", authorization.as_str()),
            ("Content-Type", "application/json"),
        ];
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        http::request(self.api, method, path, &fields, &body)
    }
}

/// How far a replacement of the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// One of its processes has ended to make room.
    Ending,
    /// The next program runs, and all sockets lie in its standard input or were taken from there.
    Begun,
    /// It has started a process.
    Starting,
}

impl Cloud {
    /// Returns a way to call the API from other threads.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller { api: self.api, token: self.token.clone() }
    }

    /// Has the program that is installed now take the place of the server that runs, and waits until
    /// it has processes of its own and answers.
    ///
    /// # Errors
    /// When it does not come.
    pub fn replace(&self) -> Result<()> {
        let before = self.role_pids();
        self.signal(Signal::HUP)?;
        wait_for("processes of the program that took the place", REST, || {
            let now = self.role_pids();
            let is_new = |role: &str| {
                now.iter()
                    .any(|(name, pid)| name == role && !before.iter().any(|old| old.1 == *pid))
            };
            before.iter().all(|(role, _)| is_new(role)).then_some(())
        })?;
        self.must("GET", "/v1/apps?org_slug=personal", &Value::Null).map(drop)
    }

    /// Begins to replace the server and kills the supervisor with SIGKILL in the midst of it; waits
    /// until none of its processes is left, whichever program started it. Machines run on.
    ///
    /// # Errors
    /// When it does not come so far, or a process does not end.
    pub fn kill_while_replaced(&mut self, moment: Moment) -> Result<()> {
        let server = self.server.as_ref().map(Child::id).context("the server does not run")?;
        let before = self.role_pids();
        self.signal(Signal::HUP)?;
        // What has come stays so: a look that is late misses none.
        wait_for("the replacement to come so far", REST, || {
            let has_come = match moment {
                Moment::Ending => {
                    before.iter().any(|(_, pid)| !Path::new(&format!("/proc/{pid}")).is_dir())
                }
                Moment::Begun => has_inherited(server),
                Moment::Starting => {
                    let is_new = |pid: &i32| before.iter().all(|(_, old)| old != pid);
                    has_inherited(server) && self.role_pids().iter().any(|(_, pid)| is_new(pid))
                }
            };
            has_come.then_some(())
        })?;
        self.signal(Signal::KILL)?;
        self.reap()?;
        wait_for("the server's processes to end", REST, || {
            self.processes().is_ok_and(|left| left.is_empty()).then_some(())
        })
    }

    /// Returns the ids of all processes of the server's program in this cloud's network.
    fn processes(&self) -> Result<Vec<String>> {
        let program = self.perchd_program();
        let network = fs::read_link("/proc/thread-self/ns/net").context("read the network")?;
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").context("list processes")?.flatten() {
            let leads = |link: &str, to: &Path| {
                fs::read_link(process.path().join(link)).is_ok_and(|found| found == to)
            };
            if leads("exe", &program) && leads("ns/net", &network) {
                found.push(process.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(found)
    }

    /// Runs a command of the server's program for this server's folder; returns whether it
    /// succeeded and what it printed.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn operator(&self, command: &str, words: &[&str]) -> Result<(bool, String)> {
        let output = self.perchd(command).args(words).output().context("run perchd")?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// Ends the server, takes its machines and everything else away: as good as a new server.
    ///
    /// # Errors
    /// When something stays.
    pub fn wipe(&mut self) -> Result<()> {
        if self.server.is_some() {
            self.stop()?;
        }
        let (done, text) = self.operator("remove", &["--yes"])?;
        ensure!(done, "perchd remove: {text}");
        Ok(())
    }

    /// Returns where the host keeps its things.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            data: self.data().join("host"),
            run: self.folder.path().join("r/host"),
            cgroup: self.instance.clone(),
            pool: self.data().join("host/volumes/pool"),
        }
    }

    /// Has one process of the server stand still. What is asked of it waits.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn pause_role(&self, role: &str) -> Result<()> {
        let found = self.role_pids().into_iter().find(|(name, _)| name == role);
        let (_, pid) = found.with_context(|| format!("find the {role} process"))?;
        signal(pid, Signal::STOP)
    }

    /// Kills all processes of the server with SIGKILL, also one that stands still; machines run
    /// on.
    ///
    /// # Errors
    /// When a process does not end.
    pub fn crash(&mut self) -> Result<()> {
        let roles = self.role_pids();
        // First the supervisor: it would start the others again.
        self.signal(Signal::STOP)?;
        for (_, pid) in roles {
            signal(pid, Signal::KILL)?;
        }
        self.kill()
    }

    /// Kills the monitor of a machine, or its init, with SIGKILL; returns whether it ran.
    ///
    /// # Errors
    /// When it cannot be looked for.
    pub fn kill_inside(&self, machine: &str, who: &str) -> Result<bool> {
        let path = self.place().run.join("machines").join(machine).join("boot.json");
        let Ok(text) = fs::read(path) else { return Ok(false) };
        let Ok(boot) = serde_json::from_slice::<Value>(&text) else { return Ok(false) };
        let pid = boot[who]["pid"].as_i64().context("read a process id")?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("read a process id")?;
        Ok(kill_process(pid, Signal::KILL).is_ok())
    }

    /// Does to everything what a power failure and a boot do: all processes are gone, and with
    /// them mounts, loop devices, cgroups, interfaces, the firewall and what lies in /run. The
    /// server then starts, and finds another boot id in its file than it has.
    ///
    /// # Errors
    /// When something stays, or the server does not get ready.
    pub fn reboot(&mut self) -> Result<()> {
        if self.server.is_some() {
            self.kill()?;
        }
        let place = self.place();
        for machine in fs::read_dir(place.run.join("machines")).into_iter().flatten().flatten() {
            let id = machine.file_name().to_string_lossy().into_owned();
            for who in ["monitor", "init"] {
                self.kill_inside(&id, who)?;
            }
        }
        // With a hierarchy of the first version a frozen process takes no signal, not even this.
        let thaw = format!(
            "find /sys/fs/cgroup -path '*/{}*' -name freezer.state \
               -exec sh -c 'echo THAWED >$0' {{}} \\;",
            self.instance
        );
        Command::new("sh").args(["-c", &thaw]).status().context("run sh")?;
        wait_for("the machines to end", REST, || {
            let reality = Reality::look(&place).ok()?;
            (!reality.has_processes()).then_some(())
        })?;
        let script = format!(
            "for mount in $(cut -d ' ' -f 2 /proc/self/mounts | grep '^{0}/' | sort -r); do \
               umount -l $mount || exit 1; done; rm -rf {0}/r; \
             find /sys/fs/cgroup -depth -type d -path '*/{1}*' -exec rmdir {{}} \\;",
            self.folder.path().display(),
            self.instance
        );
        let output = Command::new("sh").args(["-c", &script]).output().context("run sh")?;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "take away what a boot does: {complaint}");
        super::own_network()?;
        forget_boot(&place.data.join("host.db"))?;
        self.boot()
    }

    /// Waits until what the API says of all machines of an app is what there is, and returns the
    /// machines. The app must be the only one with machines.
    ///
    /// # Errors
    /// When the two stay different; the text says in what.
    pub fn agrees(&self, app: &str) -> Result<Vec<Value>> {
        let place = self.place();
        let mut wrong = Vec::new();
        let found = wait_for("the API to say what is", REST, || match self.compare(app, &place) {
            Ok((machines, differences)) => {
                wrong = differences;
                wrong.is_empty().then_some(machines)
            }
            Err(error) => {
                wrong = vec![format!("{error:#}")];
                None
            }
        });
        found.with_context(|| format!("{wrong:#?}\n{}", tail(&self.server_log())))
    }

    fn compare(&self, app: &str, place: &Place) -> Result<(Vec<Value>, Vec<String>)> {
        let list = self.must("GET", &format!("/v1/apps/{app}/machines"), &Value::Null)?;
        let machines = list.as_array().cloned().unwrap_or_default();
        let mut wrong = Vec::new();
        let mut said = Vec::new();
        for machine in &machines {
            let id = machine["id"].as_str().unwrap_or_default().to_owned();
            match machine["state"].as_str().unwrap_or_default() {
                "started" | "suspended" => said.push(Said { id, runs: true }),
                "stopped" | "failed" => said.push(Said { id, runs: false }),
                other => wrong.push(format!("machine {id} is {other}")),
            }
        }
        if wrong.is_empty() {
            let volumes = self.must("GET", &format!("/v1/apps/{app}/volumes"), &Value::Null)?;
            let reality = Reality::look(place)?;
            wrong = reality.differences(&said);
            wrong.extend(reality.volumes_said_otherwise(volumes.as_array().map_or(&[], |all| all)));
        }
        Ok((machines, wrong))
    }
}

/// Returns whether a program has taken the place of the one before as the same process.
fn has_inherited(pid: u32) -> bool {
    let variables = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    variables.split(|byte| *byte == 0).any(|one| one.starts_with(b"PERCHD_INHERITS="))
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("read a process id")?;
    kill_process(pid, signal).context("signal a process")
}

/// Writes into a host's file that the server was booted another time when it was written.
fn forget_boot(file: &Path) -> Result<()> {
    let table: Table<String, Value> = Table::new("host");
    let db = Db::open(file, &[]).context("open the host's file")?;
    let written: Result<(), perch_durable::Error> = db
        .write(move |tx| {
            for (key, mut row) in table.list(tx)?.records {
                row["server_boot"] = "another".into();
                table.put(tx, &key, &row)?;
            }
            Ok(())
        })
        .wait();
    written.context("write the host's file")
}

/// Returns the end of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n")
}
