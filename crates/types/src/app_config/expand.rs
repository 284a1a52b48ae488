//! From the file to what a machine is created with (contract 2.6).
//!
//! Never resolves an image: the caller gives the reference.

use super::{
    AppConfig, CheckSection, HttpService, RestartWord, ServiceSection, VmSection, split_words,
};
use crate::env::machine::PRIMARY_REGION;
use crate::machine_config::{
    GuestConfig, InitConfig, MachineConfig, Other, RestartConfig, RestartPolicy, StopConfig,
};
use crate::service::{Check, CheckKind, Handler, Port, Protocol, Service};

/// The key of a machine's metadata that names its process group.
const GROUP_KEY: &str = "fly_process_group";

/// What the file says and cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A section names a group that `[processes]` does not.
    #[error("`{section}` names the process group `{group}`, which `[processes]` does not have")]
    UnknownGroup {
        /// The section.
        section: String,
        /// The group.
        group: String,
    },
    /// With `[processes]`, a service must say which group it is of.
    #[error("`{section}` needs `processes = [\"...\"]`, because the file has `[processes]`")]
    GroupMissing {
        /// The section.
        section: String,
    },
    /// A command cannot be split into words.
    #[error("split the command of the process group `{group}`")]
    Command {
        /// The group.
        group: String,
        /// Why not.
        source: super::UnclosedQuote,
    },
    /// A preset of `[[vm]]` that there is not.
    #[error("`{size}` is not a machine size such as `shared-cpu-1x` or `performance-2x`")]
    UnknownSize {
        /// The size.
        size: String,
    },
    /// A check of `[checks]` has no port and there is no `[http_service]` to take it from.
    #[error("`checks.{name}` needs a `port`")]
    CheckPort {
        /// The check.
        name: String,
    },
    /// A time is outside of its bounds.
    #[error("`{field}` of `{section}` must be {rule}")]
    Bounds {
        /// The section.
        section: String,
        /// The field.
        field: &'static str,
        /// The bounds.
        rule: &'static str,
    },
}

impl AppConfig {
    /// Returns what a machine of `group` is created with.
    ///
    /// `guest` stays unset when the file has no fitting `[[vm]]`: an existing machine then keeps
    /// what it has.
    ///
    /// # Errors
    /// When a section contradicts another; the text names both.
    pub fn to_machine_config(
        &self,
        group: &str,
        image: &str,
    ) -> Result<MachineConfig, ExpandError> {
        self.check_groups()?;
        self.check_times()?;
        let mut config = MachineConfig {
            image: image.to_owned(),
            env: self.env.clone(),
            init: self.init_of(group)?,
            guest: self.guest_of(group)?,
            restart: self.restart_of(group),
            mounts: self.mounts_of(group)?,
            files: self.files_of(group)?,
            statics: self.statics.clone(),
            ..MachineConfig::default()
        };
        config.env.insert("FLY_PROCESS_GROUP".to_owned(), group.to_owned());
        if let Some(region) = &self.primary_region {
            config.env.insert(PRIMARY_REGION.to_owned(), region.clone());
        }
        config.metadata.insert("fly_platform_version".to_owned(), "v2".to_owned());
        config.metadata.insert(GROUP_KEY.to_owned(), group.to_owned());
        if let Some(http) = self.http_service.as_ref().filter(|it| self.is_of(&it.processes, group))
        {
            config.services.push(http_service(http));
        }
        let services = self.services.iter().filter(|it| self.is_of(&it.processes, group));
        config.services.extend(services.map(service));
        for (name, check) in &self.checks {
            if self.is_of(&check.processes, group) {
                config.checks.insert(name.clone(), self.top_level_check(name, check)?);
            }
        }
        if self.stop_signal().is_some() || self.stop_timeout().is_some() {
            config.stop_config = Some(StopConfig {
                timeout: self.stop_timeout(),
                signal: self.stop_signal(),
                ..StopConfig::default()
            });
        }
        Ok(config)
    }

    /// Returns whether a section with these groups is about `group` (contract 2.4).
    pub(super) fn is_of(&self, groups: &[String], group: &str) -> bool {
        if groups.is_empty() {
            return group == self.default_group();
        }
        groups.iter().any(|name| name == group)
    }

    fn check_groups(&self) -> Result<(), ExpandError> {
        let known = self.groups();
        let check = |section: &str, groups: &[String], required: bool| {
            if required && groups.is_empty() && !self.processes.is_empty() {
                return Err(ExpandError::GroupMissing { section: section.to_owned() });
            }
            match groups.iter().find(|group| !known.contains(&group.as_str())) {
                Some(group) => Err(ExpandError::UnknownGroup {
                    section: section.to_owned(),
                    group: group.clone(),
                }),
                None => Ok(()),
            }
        };
        if let Some(http) = &self.http_service {
            check("http_service", &http.processes, true)?;
        }
        for service in &self.services {
            check("services", &service.processes, true)?;
        }
        for (name, section) in &self.checks {
            check(&format!("checks.{name}"), &section.processes, false)?;
        }
        for section in &self.vm {
            check("vm", &section.processes, false)?;
        }
        for section in &self.mounts {
            check("mounts", &section.processes, false)?;
        }
        for section in &self.files {
            check("files", &section.processes, false)?;
        }
        for section in &self.restart {
            check("restart", &section.processes, false)?;
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), ExpandError> {
        for (name, check) in &self.checks {
            let bounds = |field, rule| ExpandError::Bounds {
                section: format!("checks.{name}"),
                field,
                rule,
            };
            if check.interval.is_some_and(|interval| interval.get().as_secs() < 2) {
                return Err(bounds("interval", "at least 2s"));
            }
            if check.timeout.is_some_and(|timeout| timeout.get().as_secs() > 60) {
                return Err(bounds("timeout", "at most 60s"));
            }
        }
        if self.stop_timeout().is_some_and(|it| it > crate::machine_config::STOP_TIMEOUT_MAX) {
            return Err(ExpandError::Bounds {
                section: "the file".to_owned(),
                field: "kill_timeout",
                rule: "at most 300s",
            });
        }
        Ok(())
    }

    fn init_of(&self, group: &str) -> Result<InitConfig, ExpandError> {
        let mut init = InitConfig::default();
        if let Some(old) = &self.experimental {
            init.cmd.clone_from(&old.cmd);
            init.entrypoint.clone_from(&old.entrypoint);
            init.exec.clone_from(&old.exec);
        }
        if let Some(command) = self.processes.get(group) {
            let words = split_words(command)
                .map_err(|source| ExpandError::Command { group: group.to_owned(), source })?;
            if !words.is_empty() {
                init.cmd = words;
            }
        }
        init.swap_size_mb = self.swap_size_mb;
        Ok(init)
    }

    fn guest_of(&self, group: &str) -> Result<Option<GuestConfig>, ExpandError> {
        let named = |vm: &&VmSection| vm.processes.iter().any(|name| name == group);
        let section = self
            .vm
            .iter()
            .find(named)
            .or_else(|| self.vm.iter().find(|vm| vm.processes.is_empty()));
        let Some(section) = section else {
            return Ok(None);
        };
        let mut guest = match &section.size {
            Some(size) => preset(size)?,
            None => GuestConfig::default(),
        };
        guest.cpu_kind = section.cpu_kind.or(guest.cpu_kind);
        guest.cpus = section.cpus.or(guest.cpus);
        guest.memory_mb = section.memory.or(section.memory_mb).or(guest.memory_mb);
        if let Some(persist) = &section.persist_rootfs {
            guest.other.insert("persist_rootfs".to_owned(), persist.clone());
        }
        Ok(Some(guest))
    }

    fn restart_of(&self, group: &str) -> Option<RestartConfig> {
        let section = self.restart.iter().find(|it| self.is_of(&it.processes, group))?;
        let policy = section.policy.map(|word| match word {
            RestartWord::Always => RestartPolicy::Always,
            RestartWord::Never => RestartPolicy::No,
            RestartWord::OnFailure => RestartPolicy::OnFailure,
        });
        Some(RestartConfig { policy, max_retries: section.retries, ..RestartConfig::default() })
    }

    fn top_level_check(&self, name: &str, section: &CheckSection) -> Result<Check, ExpandError> {
        let mut check = check_of(section, section.kind);
        check.port = check.port.or_else(|| Some(self.http_service.as_ref()?.internal_port));
        if check.port.is_none() {
            return Err(ExpandError::CheckPort { name: name.to_owned() });
        }
        Ok(check)
    }
}

/// Returns CPU and memory of a preset (contract 1.13).
fn preset(size: &str) -> Result<GuestConfig, ExpandError> {
    GuestConfig::preset(size).ok_or_else(|| ExpandError::UnknownSize { size: size.to_owned() })
}

/// Makes a service of `[http_service]`: plain HTTP on 80, HTTPS on 443.
fn http_service(http: &HttpService) -> Service {
    let pick = |keys: &[&str]| -> Other {
        keys.iter()
            .filter_map(|key| Some(((*key).to_owned(), http.other.get(*key)?.clone())))
            .collect()
    };
    Service {
        protocol: Protocol::Tcp,
        internal_port: http.internal_port,
        autostop: http.auto_stop_machines,
        autostart: http.auto_start_machines,
        min_machines_running: http.min_machines_running,
        ports: vec![
            Port {
                port: Some(80),
                handlers: vec![Handler::Http],
                force_https: http.force_https,
                http_options: http.http_options.clone(),
                ..Port::default()
            },
            Port {
                port: Some(443),
                handlers: vec![Handler::Http, Handler::Tls],
                http_options: http.http_options.clone(),
                other: pick(&["tls_options"]),
                ..Port::default()
            },
        ],
        checks: http.checks.iter().map(|it| check_of(it, Some(CheckKind::Http))).collect(),
        concurrency: http.concurrency.clone(),
        other: Other::new(),
    }
}

fn service(section: &ServiceSection) -> Service {
    let tcp = section.tcp_checks.iter().map(|it| check_of(it, Some(CheckKind::Tcp)));
    let http = section.http_checks.iter().map(|it| check_of(it, Some(CheckKind::Http)));
    Service {
        protocol: section.protocol,
        internal_port: section.internal_port,
        autostop: section.auto_stop_machines,
        autostart: section.auto_start_machines,
        min_machines_running: section.min_machines_running,
        ports: section.ports.clone(),
        checks: tcp.chain(http).collect(),
        concurrency: section.concurrency.clone(),
        other: Other::new(),
    }
}

fn check_of(section: &CheckSection, kind: Option<CheckKind>) -> Check {
    Check {
        kind,
        purpose: None,
        port: section.port,
        interval: section.interval,
        timeout: section.timeout,
        grace_period: section.grace_period,
        method: section.method.clone(),
        path: section.path.clone(),
        protocol: section.protocol,
        tls_skip_verify: section.tls_skip_verify,
        tls_server_name: section.tls_server_name.clone(),
        headers: section.headers.clone(),
        other: section.other.clone(),
    }
}
