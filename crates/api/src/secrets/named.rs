//! Secrets that a machine's configuration names, against those that its app has.
//!
//! Never reads a value. A secret that is taken away later is found missing by the host, at the next
//! boot.

use perch_types::directory::AppDoc;
use perch_types::machine_config::{FileConfig, SecretRef};
use perch_types::{Code, MachineConfig};

use super::change::load;
use crate::config::Shared;
use crate::reply::Failure;

/// Refuses a configuration that names a secret which the machine would not find at its boot:
/// clients set secrets before they name them (contract 1.9), and a machine that is to `skip` them
/// gets none.
pub(crate) async fn check(
    shared: &Shared,
    app: &AppDoc,
    config: &MachineConfig,
    skip: bool,
) -> Result<(), Failure> {
    let named = named(config);
    let Some((first, name)) = named.first() else {
        return Ok(());
    };
    if skip {
        let text = format!("{first}: names `{name}`, and with skip_secrets there is no secret");
        return Err(Failure::new(Code::InvalidValue, text)
            .with_hint("name no secret, or leave skip_secrets out"));
    }
    let stored = load(shared, app).await?;
    for (path, name) in &named {
        if !stored.values.contains_key(*name) {
            let known: Vec<String> = stored.values.into_keys().collect();
            return Err(Failure::unknown_reference(path, ("secret", name), &known)
                .with_hint("set the secret first: `perch secrets set`"));
        }
    }
    Ok(())
}

/// Returns every secret that a configuration names, with the path to it.
fn named(config: &MachineConfig) -> Vec<(String, &str)> {
    let mut all = Vec::new();
    of_files(&mut all, "config", &config.files);
    for (index, process) in config.processes.iter().enumerate() {
        of_list(&mut all, &format!("config.processes[{index}]"), &process.secrets);
    }
    for (index, container) in config.containers.iter().enumerate() {
        let path = format!("config.containers[{index}]");
        of_files(&mut all, &path, &container.files);
        of_list(&mut all, &path, &container.secrets);
    }
    all
}

fn of_files<'a>(all: &mut Vec<(String, &'a str)>, path: &str, files: &'a [FileConfig]) {
    for (index, file) in files.iter().enumerate() {
        let name = file.secret_name.as_deref();
        all.extend(name.map(|name| (format!("{path}.files[{index}].secret_name"), name)));
    }
}

fn of_list<'a>(all: &mut Vec<(String, &'a str)>, path: &str, secrets: &'a [SecretRef]) {
    for (index, one) in secrets.iter().enumerate() {
        let is_named = one.name.as_deref().is_some_and(|name| !name.is_empty());
        let field = if is_named { "name" } else { "env_var" };
        all.push((format!("{path}.secrets[{index}].{field}"), one.secret()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_name_is_found_with_the_field_that_has_it() {
        let config: MachineConfig = serde_json::from_value(json!({
            "files": [
                {"guest_path": "/a", "raw_value": ""},
                {"guest_path": "/b", "secret_name": "KEY"},
            ],
            "processes": [{}, {"secrets": [{"env_var": "A"}, {"env_var": "B", "name": "TOKEN"}]}],
            "containers": [{
                "name": "db", "image": "db:1",
                "files": [{"guest_path": "/c", "secret_name": "CERT"}],
                "secrets": [{"env_var": "C", "name": ""}],
            }],
        }))
        .unwrap();
        let found = named(&config);
        let found: Vec<(&str, &str)> =
            found.iter().map(|(path, name)| (path.as_str(), *name)).collect();
        assert_eq!(
            found,
            [
                ("config.files[1].secret_name", "KEY"),
                ("config.processes[1].secrets[0].env_var", "A"),
                ("config.processes[1].secrets[1].name", "TOKEN"),
                ("config.containers[0].files[0].secret_name", "CERT"),
                ("config.containers[0].secrets[0].env_var", "C"),
            ]
        );
    }
}
