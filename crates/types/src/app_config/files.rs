//! `[[files]]`: files that are written into the machines of a process group (contract 2.3).
//!
//! Never reads a file of the source folder: whoever read the configuration gives what is in it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::{AppConfig, ExpandError};
use crate::machine_config::{FileConfig, Other};

/// One of `[[files]]`; exactly one of its three sources is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileSection {
    /// Where it is written, absolute.
    #[serde(default)]
    pub guest_path: String,
    /// The file with its content, relative to the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_path: Option<String>,
    /// The secret whose value is its content in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Its content as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_value: Option<String>,
    /// The groups that it is about; none means the default one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
    /// What was read from `local_path`.
    #[serde(skip)]
    pub local_content: Option<Vec<u8>>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl AppConfig {
    /// Returns the files of a group's machines.
    pub(super) fn files_of(&self, group: &str) -> Result<Vec<FileConfig>, ExpandError> {
        self.files.iter().filter(|it| self.is_of(&it.processes, group)).map(file).collect()
    }
}

fn file(section: &FileSection) -> Result<FileConfig, ExpandError> {
    let bounds = |field, rule| ExpandError::Bounds { section: "files".to_owned(), field, rule };
    if !section.guest_path.starts_with('/') {
        return Err(bounds("guest_path", "an absolute path"));
    }
    let sources = [&section.local_path, &section.secret_name, &section.raw_value];
    if sources.iter().filter(|source| source.is_some()).count() != 1 {
        return Err(bounds("local_path", "given, or else `secret_name` or `raw_value`"));
    }
    let content = match (&section.local_path, &section.local_content) {
        (Some(_), None) => return Err(bounds("local_path", "read before")),
        (Some(_), Some(content)) => Some(content.as_slice()),
        (None, _) => section.raw_value.as_deref().map(str::as_bytes),
    };
    Ok(FileConfig {
        guest_path: section.guest_path.clone(),
        raw_value: content.map(|content| BASE64.encode(content)),
        secret_name: section.secret_name.clone(),
        ..FileConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(files: &Value) -> AppConfig {
        serde_json::from_value(json!({"files": files})).unwrap()
    }

    #[test]
    fn a_file_has_its_content_in_base64_or_names_a_secret() {
        let mut config = config(&json!([
            {"guest_path": "/etc/motd", "raw_value": "hello\n"},
            {"guest_path": "/etc/tls.key", "secret_name": "TLS_KEY"},
            {"guest_path": "/etc/app.conf", "local_path": "app.conf"},
            {"guest_path": "/etc/other", "raw_value": "", "processes": ["worker"]},
        ]));
        config.processes = [("app", "a"), ("worker", "b")]
            .map(|(name, command)| (name.to_owned(), command.to_owned()))
            .into();
        let unread = config.to_machine_config("app", "web:1").unwrap_err().to_string();
        assert!(unread.contains("`local_path` of `files`"), "{unread}");
        config.files[2].local_content = Some(b"\xff\x00".to_vec());
        let machine = config.to_machine_config("app", "web:1").unwrap();
        assert_eq!(
            serde_json::to_value(&machine.files).unwrap(),
            json!([
                {"guest_path": "/etc/motd", "raw_value": "aGVsbG8K"},
                {"guest_path": "/etc/tls.key", "secret_name": "TLS_KEY"},
                {"guest_path": "/etc/app.conf", "raw_value": "/wA="},
            ])
        );
        let worker = config.to_machine_config("worker", "web:1").unwrap();
        assert_eq!(worker.files[0].guest_path, "/etc/other");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_key() {
        for (file, key) in [
            (json!({"guest_path": "etc/motd", "raw_value": "x"}), "guest_path"),
            (json!({"guest_path": "/etc/motd"}), "local_path"),
            (json!({"guest_path": "/a", "raw_value": "x", "secret_name": "X"}), "local_path"),
        ] {
            let error = config(&json!([file])).to_machine_config("app", "web:1").unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("`{key}` of `files`")), "{text}");
        }
        let unknown = json!([{"guest_path": "/a", "raw_value": "x", "processes": ["nobody"]}]);
        let error = config(&unknown).to_machine_config("app", "web:1").unwrap_err().to_string();
        assert!(error.contains("`files` names the process group `nobody`"), "{error}");
    }
}
