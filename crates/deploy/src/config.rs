//! Reads `fly.toml`.
//!
//! Never refuses an unknown key: `AppConfig::unsupported` tells of these.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use perch_types::app_config::AppConfig;

/// The largest configuration file, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("understand `{}`", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: ParseError,
    },
}

/// Where a text is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

/// Reads the configuration at a path.
///
/// # Errors
/// When it cannot be read, or is wrong somewhere.
pub fn load(path: &Path) -> Result<(AppConfig, String), ConfigError> {
    let error = |source| ConfigError::Read { path: path.to_owned(), source };
    let text = String::from_utf8(read(path)?);
    let text = text.map_err(|_| error(io::Error::new(io::ErrorKind::InvalidData, "not UTF-8")))?;
    let config =
        parse(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
    Ok((config, text))
}

/// Reads the local files that `[[files]]` names, beside the configuration at `path`.
///
/// # Errors
/// When one cannot be read.
pub fn read_local_files(config: &mut AppConfig, path: &Path) -> Result<(), ConfigError> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    for file in &mut config.files {
        if let Some(local) = &file.local_path {
            file.local_content = Some(read(&folder.join(local))?);
        }
    }
    Ok(())
}

/// Reads a file of at most [`CONFIG_BYTES_MAX`].
fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let error = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(error)?;
    let mut content = Vec::new();
    let read = file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut content).map_err(error)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > CONFIG_BYTES_MAX {
        return Err(error(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
    }
    Ok(content)
}

/// Reads a configuration's text.
///
/// # Errors
/// When it is wrong somewhere; the error says where.
pub fn parse(text: &str) -> Result<AppConfig, ParseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let (line, column) = place(text, start);
        ParseError {
            line,
            column,
            message: error.message().lines().next().unwrap_or_default().to_owned(),
        }
    })
}

/// Returns line and column of a byte offset, both from 1.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_have_a_place() {
        let faults: Vec<String> = [
            "app = \"web\"\nenv = 3\n",
            "app = \"web\n",
            "[http_service]\n  internal_port = 70000\n",
            "[http_service]\nforce_https = true\n",
            "kill_timeout = \"soon\"\n",
            "[deploy]\nstrategy = \"slow\"\n",
            "[[vm]]\n  memory = \"much\"\n",
        ]
        .into_iter()
        .map(|text| parse(text).unwrap_err().to_string())
        .collect();
        insta::assert_snapshot!(faults.join("\n"));
    }

    #[test]
    fn local_files_are_read_beside_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fly.toml");
        let text = "[[files]]\nguest_path = \"/a\"\nlocal_path = \"conf/a\"\n";
        std::fs::write(&path, text).unwrap();
        let (mut config, _) = load(&path).unwrap();
        let missing = read_local_files(&mut config, &path).unwrap_err().to_string();
        assert!(missing.contains("conf/a"), "{missing}");
        std::fs::create_dir(folder.path().join("conf")).unwrap();
        std::fs::write(folder.path().join("conf/a"), "hello").unwrap();
        read_local_files(&mut config, &path).unwrap();
        let machine = config.to_machine_config("app", "i").unwrap();
        assert_eq!(machine.files[0].raw_value.as_deref(), Some("aGVsbG8="));
    }

    #[test]
    fn a_file_as_other_tools_write_it_is_read() {
        let config = parse(
            "# fly.toml app configuration file generated for web\napp = 'web'\n\
             primary_region = 'ams'\n[build]\n\n[http_service]\n  internal_port = 8080\n  \
             force_https = true\n  auto_stop_machines = 'stop'\n  auto_start_machines = true\n  \
             min_machines_running = 0\n  processes = ['app']\n\n[[vm]]\n  memory = '1gb'\n  \
             cpu_kind = 'shared'\n  cpus = 1\n",
        )
        .unwrap();
        assert!(config.unsupported().is_empty(), "{:?}", config.unsupported());
        let machine = config.to_machine_config("app", "i").unwrap();
        assert_eq!(machine.services[0].ports.len(), 2);
        assert_eq!(machine.memory_mb(), 1024);
    }
}
