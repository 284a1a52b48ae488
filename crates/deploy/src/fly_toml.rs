//! Writes `fly.toml`: a new one with the reasons as comments, or an edit of one that is there.
//!
//! Never touches what it was not asked to: comments, order and spaces stay.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use perch_types::machine_config::Signal;
use toml_edit::{DocumentMut, Value, value};

/// What a new file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApp {
    /// The app's name.
    pub app: String,
    /// Where its machines are.
    pub region: String,
    /// The Dockerfile, when it is not `Dockerfile`.
    pub dockerfile: Option<String>,
    /// A ready image; nothing is built.
    pub image: Option<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// The port that the program listens on.
    pub internal_port: u16,
    /// Why this port.
    pub port_why: String,
    /// The signal that asks the program to end.
    pub kill_signal: Option<Signal>,
    /// Memory of a machine in MiB.
    pub memory_mb: u32,
    /// Whether the platform serves HTTPS, so that plain HTTP may be redirected.
    pub has_https: bool,
}

/// Why a file cannot be edited.
#[derive(Debug, Clone, thiserror::Error)]
#[error("edit the configuration of the app")]
pub struct EditError {
    /// What is wrong with the text.
    #[from]
    pub source: toml_edit::TomlError,
}

/// Returns the text of a new file.
#[must_use]
pub fn new_fly_toml(new: &NewApp) -> String {
    let mut text = format!(
        "# fly.toml app configuration file generated for {}\n\
         # `perch deploy` rolls out what this file says.\n\n\
         app = {}\nprimary_region = {}\n",
        new.app,
        literal(&new.app),
        literal(&new.region)
    );
    if let Some(signal) = new.kill_signal {
        let name = serde_json::to_value(signal).unwrap_or_default();
        let name = name.as_str().unwrap_or_default();
        line(&mut text, format_args!("kill_signal = {}", literal(name)));
    }
    line(&mut text, format_args!("\n[build]"));
    if let Some(image) = &new.image {
        line(&mut text, format_args!("  image = {}", literal(image)));
    }
    if let Some(dockerfile) = &new.dockerfile {
        line(&mut text, format_args!("  dockerfile = {}", literal(dockerfile)));
    }
    if !new.env.is_empty() {
        line(&mut text, format_args!("\n[env]"));
        for (name, value) in &new.env {
            line(&mut text, format_args!("  {} = {}", key(name), literal(value)));
        }
    }
    line(&mut text, format_args!("\n[http_service]"));
    line(&mut text, format_args!("  # {}", new.port_why.replace(['\n', '\r'], " ")));
    line(&mut text, format_args!("  internal_port = {}", new.internal_port));
    line(&mut text, format_args!("  force_https = {}", new.has_https));
    line(&mut text, format_args!("  # A stopped machine is started by the next request."));
    line(&mut text, format_args!("  auto_stop_machines = \"off\""));
    line(&mut text, format_args!("  auto_start_machines = true"));
    line(&mut text, format_args!("  min_machines_running = 0"));
    line(&mut text, format_args!("\n[[vm]]"));
    line(&mut text, format_args!("  memory = \"{}mb\"", new.memory_mb));
    line(&mut text, format_args!("  cpu_kind = \"shared\"\n  cpus = 1"));
    text
}

/// Returns the text with another app name, all else as it was.
///
/// # Errors
/// When the text is not TOML.
pub fn with_app_name(text: &str, app: &str) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    if let Some(old) = document.get_mut("app").and_then(|item| item.as_value_mut()) {
        let decor = old.decor().clone();
        *old = Value::from(app);
        *old.decor_mut() = decor;
    } else {
        document.insert("app", value(app));
    }
    Ok(document.to_string())
}

fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

fn key(text: &str) -> String {
    toml_edit::Key::new(text).to_string()
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    if writeln!(text, "{line}").is_err() {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_app() -> NewApp {
        NewApp {
            app: "web".to_owned(),
            region: "local".to_owned(),
            dockerfile: Some("Containerfile".to_owned()),
            image: None,
            env: BTreeMap::from([
                ("PORT".to_owned(), "8080".to_owned()),
                ("A b".to_owned(), "\"\n".to_owned()),
            ]),
            internal_port: 8080,
            port_why: "EXPOSE in line 3\nof Dockerfile".to_owned(),
            kill_signal: Some(Signal::SigTerm),
            memory_mb: 512,
            has_https: false,
        }
    }

    #[test]
    fn a_new_file_explains_itself_and_is_read_back() {
        let text = new_fly_toml(&new_app());
        insta::assert_snapshot!(text);
        let config = crate::parse(&text).unwrap();
        assert_eq!(config.app.as_deref(), Some("web"));
        assert_eq!(config.env, new_app().env);
        assert_eq!(config.unsupported(), []);
        let machine = config.to_machine_config("app", "i").unwrap();
        assert_eq!(machine.memory_mb(), 512);
        assert_eq!(machine.stop_signal(), Signal::SigTerm);
    }

    #[test]
    fn an_edit_keeps_everything_else() {
        let text = "# mine\napp   =  'old' # why\n\n[env]\n  A = 1\n";
        assert_eq!(
            with_app_name(text, "new").unwrap(),
            "# mine\napp   =  \"new\" # why\n\n[env]\n  A = 1\n"
        );
        assert_eq!(
            with_app_name("[env]\nA = 1\n", "new").unwrap(),
            "app = \"new\"\n[env]\nA = 1\n"
        );
        with_app_name("app = ", "new").unwrap_err();
    }
}
