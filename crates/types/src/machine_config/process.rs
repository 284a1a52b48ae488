//! `config.processes`: several main processes in one machine, and what a process's environment is
//! made of beside `env`.
//!
//! Never holds a secret: only the name of one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Other, is_false, null_is_default};

/// One of `config.processes`. What it leaves out is `config.init`'s, and the image's then.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessConfig {
    /// Replaces entrypoint and command entirely.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Replaces the image's ENTRYPOINT.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Replaces the image's CMD.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Whom it runs as; the image's user when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment, merged over the machine's.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub env: BTreeMap<String, String>,
    /// Secrets that it gets under names of its own.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,
    /// Whether it gets no secret of the app but those it names.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub ignore_app_secrets: bool,
    /// Variables that say something about the machine.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFrom>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// A secret of the app as a variable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SecretRef {
    /// The variable.
    #[serde(default, deserialize_with = "null_is_default")]
    pub env_var: String,
    /// The secret's name; the variable's when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl SecretRef {
    /// Returns the secret's name.
    #[must_use]
    pub fn secret(&self) -> &str {
        self.name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.env_var)
    }
}

/// A field of the machine as a variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFrom {
    /// The variable.
    pub env_var: String,
    /// The field.
    pub field_ref: FieldRef,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

/// Fields of a machine that a variable can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldRef {
    /// Its id.
    Id,
    /// Its version.
    Version,
    /// Its app.
    AppName,
    /// Its private IPv6 address.
    PrivateIp,
    /// Its region.
    Region,
    /// Its image.
    Image,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_comes_back_as_it_was_sent() {
        let sent = serde_json::json!({
            "exec": ["/bin/worker"], "entrypoint": ["/e"], "cmd": ["c"], "user": "web:adm",
            "env": {"A": "1"}, "secrets": [{"env_var": "TOKEN", "name": "API_TOKEN"}],
            "ignore_app_secrets": true, "env_from": [{"env_var": "ID", "field_ref": "id"}],
            "later": 1,
        });
        let process: ProcessConfig = serde_json::from_value(sent.clone()).unwrap();
        assert_eq!(serde_json::to_value(&process).unwrap(), sent);
        assert_eq!(process.secrets[0].secret(), "API_TOKEN");
        let own = SecretRef {
            env_var: "A".to_owned(),
            name: Some(String::new()),
            ..SecretRef::default()
        };
        assert_eq!(own.secret(), "A");
        let text = serde_json::from_str::<EnvFrom>(r#"{"env_var":"A","field_ref":"cpu"}"#);
        assert!(text.unwrap_err().to_string().contains("`private_ip`"));
    }
}
