//! What every command needs: the printer, the platform, the app and its file.
//!
//! Never opens a connection or reads a file before it is asked for.

use std::path::{Path, PathBuf};

use perch_client::{Address, Api};
use perch_types::AppName;
use perch_types::app_config::{AppConfig, Severity};

use crate::args::Global;
use crate::credentials::{self, Credentials};
use crate::error::{CommandError, During as _, Result};
use crate::ui::Ui;

/// The configuration file's name.
pub(crate) const CONFIG_FILE: &str = "fly.toml";

/// One run of the CLI.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) ui: Ui,
    pub(crate) global: Global,
}

/// A configuration file that was read.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) config: AppConfig,
}

impl ConfigFile {
    /// Returns the folder that the file's paths are relative to.
    pub(crate) fn folder(&self) -> PathBuf {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.map_or_else(|| PathBuf::from("."), Path::to_owned)
    }
}

impl Invocation {
    pub(crate) fn new(global: Global) -> Self {
        let ui = Ui::new(global.json);
        let ui = if global.yes { ui.without_questions() } else { ui };
        Self { ui, global }
    }

    /// Returns the address and the token, from wherever they are.
    pub(crate) fn credentials(&self) -> Result<Credentials> {
        let (url, token) = (self.global.api_url.as_deref(), self.global.token.as_deref());
        credentials::find(url, token).during("find the address and the token of the platform")
    }

    /// Returns the platform.
    pub(crate) fn api(&self) -> Result<Api> {
        self.credentials()?.api()
    }

    /// Returns the platform and where it is.
    pub(crate) fn api_and_address(&self) -> Result<(Api, Address)> {
        let credentials = self.credentials()?;
        Ok((credentials.api()?, credentials.address))
    }

    /// Returns where the configuration file is expected; `folder` when no option says otherwise.
    pub(crate) fn config_path(&self, folder: &Path) -> PathBuf {
        match &self.global.config {
            Some(path) if path.is_dir() => path.join(CONFIG_FILE),
            Some(path) => path.clone(),
            None if folder == Path::new(".") => PathBuf::from(CONFIG_FILE),
            None => folder.join(CONFIG_FILE),
        }
    }

    /// Reads the configuration file, if it is there.
    pub(crate) fn config_file(&self, folder: &Path) -> Result<Option<ConfigFile>> {
        let path = self.config_path(folder);
        if self.global.config.is_none() && !path.exists() {
            return Ok(None);
        }
        let (config, text) = perch_deploy::load(&path).during("read the app's configuration")?;
        Ok(Some(ConfigFile { path, text, config }))
    }

    /// Reads the configuration file, which must be there.
    pub(crate) fn needed_config_file(&self, folder: &Path) -> Result<ConfigFile> {
        self.config_file(folder)?.ok_or_else(|| {
            CommandError::refused(
                format!("there is no {CONFIG_FILE} in `{}`", folder.display()),
                "make one with `perch launch`, or name it with `--config FILE`",
            )
        })
    }

    /// Returns the app that the options or the configuration file name.
    pub(crate) fn app(&self) -> Result<AppName> {
        let (name, origin) = match &self.global.app {
            Some(name) => (name.clone(), "--app".to_owned()),
            None => match self.config_file(Path::new("."))? {
                Some(ConfigFile { config: AppConfig { app: Some(name), .. }, path, .. }) => {
                    (name, path.display().to_string())
                }
                _ => {
                    return Err(CommandError::usage(
                        "no app is named",
                        "add `--app NAME`, or change into a folder with a fly.toml",
                    ));
                }
            },
        };
        app_name(&name, &origin)
    }

    /// Warns of what the file asks for in vain; refuses what would change the app.
    pub(crate) fn check_supported(&self, config: &AppConfig) -> Result {
        let unsupported = config.unsupported();
        let refused: Vec<_> =
            unsupported.iter().filter(|it| it.severity == Severity::Refuse).collect();
        for it in unsupported.iter().filter(|it| it.severity == Severity::Warn) {
            self.ui.warn(format!("`{}` in the file is not honoured: {}", it.key, it.note));
        }
        if refused.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> =
            refused.iter().map(|it| format!("`{}` ({})", it.key, it.note)).collect();
        Err(CommandError::refused(
            format!("the file asks for what this platform does not do yet: {}", keys.join(", ")),
            "take these keys out of the file to deploy without them",
        ))
    }
}

/// Returns a name that was checked.
pub(crate) fn app_name(name: &str, origin: &str) -> Result<AppName> {
    name.parse().map_err(|error: perch_types::id::InvalidId| {
        CommandError::usage(format!("{error} (from {origin})"), "an example: `my-app-2`")
    })
}
