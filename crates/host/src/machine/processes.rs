//! Several main processes of one machine: what each is, and whom and with what it runs.
//!
//! Never starts one: init does.

use std::collections::BTreeMap;

use perch_types::env::machine::PREFIXES;
use perch_types::guest::GuestProcess;
use perch_types::image::ImageConfig;
use perch_types::machine_config::{EnvFrom, FieldRef, MachineConfig, ProcessConfig, SecretRef};
use perch_types::{ApiError, Code, Secret};

use super::guest::{Surroundings, argv, image_text};
use super::record::{Record, Version};

/// What variables can be made of.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The machine.
    pub record: &'a Record,
    /// The version that runs.
    pub version: &'a Version,
    /// Where it is.
    pub around: &'a Surroundings,
    /// The app's secrets.
    pub secrets: &'a BTreeMap<String, Secret>,
}

impl Sources<'_> {
    fn field(&self, field: FieldRef) -> String {
        match field {
            FieldRef::Id => self.record.id.to_string(),
            FieldRef::Version => self.version.instance.to_string(),
            FieldRef::AppName => self.record.app.to_string(),
            FieldRef::PrivateIp => self.around.private_ip.to_string(),
            FieldRef::Region => self.around.region.to_string(),
            FieldRef::Image => image_text(&self.version.image, &self.version.config.image),
        }
    }

    /// Returns the variables that fields of the machine and named secrets give.
    ///
    /// # Errors
    /// When a secret is missing; the text begins with `path`.
    pub fn variables(
        &self,
        path: &str,
        env_from: &[EnvFrom],
        secrets: &[SecretRef],
    ) -> Result<BTreeMap<String, Secret>, ApiError> {
        let mut env = BTreeMap::new();
        for one in env_from {
            env.insert(one.env_var.clone(), Secret::new(self.field(one.field_ref)));
        }
        for one in secrets {
            let Some(value) = self.secrets.get(one.secret()) else {
                let text = format!("{path}.secrets: the app has no secret `{}`", one.secret());
                return Err(ApiError::new(Code::InvalidValue, text)
                    .with_hint("set the secret, or take its name out of the list"));
            };
            env.insert(one.env_var.clone(), value.clone());
        }
        Ok(env)
    }
}

/// Returns the main processes of a version that has several.
///
/// # Errors
/// When one names no program or a secret that the app does not have.
pub fn processes(sources: Sources<'_>, image: &ImageConfig) -> Result<Vec<GuestProcess>, ApiError> {
    let config = &sources.version.config;
    let each = config.processes.iter().enumerate();
    each.map(|(index, process)| one(&format!("config.processes[{index}]"), process, sources, image))
        .collect()
}

fn one(
    path: &str,
    process: &ProcessConfig,
    sources: Sources<'_>,
    image: &ImageConfig,
) -> Result<GuestProcess, ApiError> {
    let config = &sources.version.config;
    let argv = argv(&merged(process, config), image);
    if argv.is_empty() {
        let text = format!("{path}: names no program to run, and neither do `init` and the image");
        return Err(ApiError::new(Code::InvalidValue, text)
            .with_hint("set its `exec` or `cmd`, or give the image a CMD"));
    }
    let mut env: BTreeMap<String, Secret> = BTreeMap::new();
    let mut without = Vec::new();
    if process.ignore_app_secrets {
        for name in sources.secrets.keys().filter(|name| !is_platforms(name)) {
            match config.env.get(name).or_else(|| image.env.get(name)) {
                // What the secret had hidden is there again.
                Some(value) => drop(env.insert(name.clone(), Secret::new(value.as_str()))),
                None => without.push(name.clone()),
            }
        }
    }
    for (name, value) in &process.env {
        env.insert(name.clone(), Secret::new(value.as_str()));
    }
    env.extend(sources.variables(path, &process.env_from, &process.secrets)?);
    env.retain(|name, _| !is_platforms(name));
    let user = process.user.clone().filter(|user| !user.is_empty());
    Ok(GuestProcess { argv, user, env, without })
}

/// Returns whether a variable is the platform's own, which nothing replaces.
pub(super) fn is_platforms(name: &str) -> bool {
    use perch_types::env::machine::{
        ALLOC_ID, APP_NAME, IMAGE_REF, MACHINE_ID, MACHINE_VERSION, PRIVATE_IP, REGION,
        VM_MEMORY_MB,
    };
    let own = [
        ALLOC_ID,
        APP_NAME,
        IMAGE_REF,
        MACHINE_ID,
        MACHINE_VERSION,
        PRIVATE_IP,
        REGION,
        VM_MEMORY_MB,
    ];
    let rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    rest.is_some_and(|rest| own.contains(&rest))
}

/// Returns the machine's configuration with what a process says of its program.
fn merged(process: &ProcessConfig, config: &MachineConfig) -> MachineConfig {
    let mut init = config.init.clone();
    let ProcessConfig { exec, entrypoint, cmd, .. } = process;
    if !(exec.is_empty() && entrypoint.is_empty() && cmd.is_empty()) {
        init.exec.clone_from(exec);
    }
    if !entrypoint.is_empty() {
        init.entrypoint.clone_from(entrypoint);
    }
    if !cmd.is_empty() {
        init.cmd.clone_from(cmd);
    }
    MachineConfig { init, ..MachineConfig::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::guest::tests::around;
    use crate::machine::record::tests::record;

    fn found(config: serde_json::Value) -> Result<Vec<GuestProcess>, ApiError> {
        let mut record = record();
        let MachineConfig { env, init, processes: list, .. } =
            serde_json::from_value(config).unwrap();
        record.version.config.env = env;
        record.version.config.init = init;
        record.version.config.processes = list;
        let words = |text: &str| vec![text.to_owned()];
        let image = ImageConfig {
            entrypoint: words("/entry"),
            cmd: words("serve"),
            env: [("HIDDEN".to_owned(), "image".to_owned())].into(),
            ..ImageConfig::default()
        };
        let secrets = [("TOKEN", "t"), ("HIDDEN", "h")];
        let secrets = secrets.map(|(name, value)| (name.to_owned(), Secret::new(value))).into();
        let around = around();
        let version = &record.version;
        let sources = Sources { record: &record, version, around: &around, secrets: &secrets };
        processes(sources, &image)
    }

    #[test]
    fn a_process_is_what_it_says_then_what_init_says_then_the_image() {
        for (init, process, want) in [
            ("{}", "{}", "/entry serve"),
            (r#"{"cmd":["init"]}"#, "{}", "/entry init"),
            (r#"{"exec":["/all"]}"#, "{}", "/all"),
            (r#"{"exec":["/all"]}"#, r#"{"cmd":["own"]}"#, "/entry own"),
            (r#"{"entrypoint":["/e"]}"#, r#"{"cmd":["own"]}"#, "/e own"),
            ("{}", r#"{"entrypoint":["/mine"],"cmd":["own"]}"#, "/mine own"),
            (r#"{"cmd":["init"]}"#, r#"{"exec":["/only","x"]}"#, "/only x"),
        ] {
            let parse = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
            let config = serde_json::json!({"init": parse(init), "processes": [parse(process)]});
            let found = found(config).unwrap();
            assert_eq!(found[0].argv.join(" "), want, "{init} {process}");
        }
    }

    #[test]
    fn an_environment_has_fields_and_named_secrets_and_leaves_the_platforms_alone() {
        let found = found(serde_json::json!({"env": {"A": "machine"}, "processes": [
            {"user": "web", "env": {"A": "own", "FLY_MACHINE_ID": "forged", "FLY_OWN": "1"},
             "env_from": [{"env_var": "ID", "field_ref": "id"},
                          {"env_var": "WHERE", "field_ref": "region"},
                          {"env_var": "IP", "field_ref": "private_ip"},
                          {"env_var": "APP", "field_ref": "app_name"},
                          {"env_var": "IMAGE", "field_ref": "image"},
                          {"env_var": "V", "field_ref": "version"}],
             "secrets": [{"env_var": "MY_TOKEN", "name": "TOKEN"}]},
            {"ignore_app_secrets": true, "secrets": [{"env_var": "TOKEN"}]},
            {"ignore_app_secrets": true},
        ]}))
        .unwrap();
        let shown = |process: &GuestProcess| {
            let env: Vec<String> = process
                .env
                .iter()
                .map(|(name, value)| format!("{name}={}", value.expose()))
                .collect();
            env.join(" ")
        };
        assert_eq!(
            shown(&found[0]),
            "A=own APP=web FLY_OWN=1 ID=00000000000abc IMAGE=web:1 IP=fdaa::1:2 MY_TOKEN=t \
             V=01HF7YAT000000000000000007 WHERE=ams"
        );
        assert_eq!((found[0].user.as_deref(), found[0].without.len()), (Some("web"), 0));
        assert_eq!(
            (shown(&found[1]).as_str(), found[1].without.len()),
            ("HIDDEN=image TOKEN=t", 1)
        );
        assert_eq!(
            (shown(&found[2]).as_str(), &found[2].without[..]),
            ("HIDDEN=image", &["TOKEN".to_owned()][..])
        );
    }

    #[test]
    fn a_secret_that_is_not_there_is_named() {
        let error = found(serde_json::json!({"processes": [{}, {"secrets": [{"env_var": "NO"}]}]}));
        let text = error.unwrap_err().error;
        assert_eq!(text, "config.processes[1].secrets: the app has no secret `NO`");
    }
}
