//! The files that a configuration asks for, with their contents.
//!
//! Never keeps the value of a secret, and never asks a registry twice for what a version of a
//! machine was given once: a later boot gets the same file, and needs nobody for it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use perch_types::guest::{FILES_BYTES_MAX, GuestFile};
use perch_types::image::{ImageRef, Reference};
use perch_types::machine_config::FileConfig;
use perch_types::{ApiError, Code, Secret};
use sha2::{Digest as _, Sha256};

use super::record::Version;
use super::run::Work;
use crate::effects::Fault;

/// The longest configuration of an image that is written into a machine, in bytes.
pub const IMAGE_CONFIG_BYTES_MAX: usize = 256 * 1024;
/// What the names of folders with kept contents begin with.
const FOLDER_PREFIX: &str = "files-";

/// What a boot is given beside its record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Given {
    /// The app's secrets by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Configurations of images, as JSON, by the reference they were asked for with.
    pub image_configs: BTreeMap<String, String>,
}

/// Returns what init writes.
///
/// # Errors
/// When a secret or an image's configuration is missing or is no content, or all are too long.
pub fn files(files: &[FileConfig], given: &Given) -> Result<Vec<GuestFile>, ApiError> {
    let mut all = Vec::with_capacity(files.len());
    let mut bytes: usize = 0;
    for file in files {
        let refuse = |text: String| {
            let path = &file.guest_path;
            ApiError::new(Code::InvalidValue, format!("write file `{path}`: {text}"))
        };
        let content = content(file, given).map_err(refuse)?;
        bytes = bytes.saturating_add(content.expose().len() / 4 * 3);
        if bytes > FILES_BYTES_MAX {
            return Err(refuse(format!(
                "all files together are more than {FILES_BYTES_MAX} bytes"
            )));
        }
        all.push(GuestFile { path: file.guest_path.clone(), content, mode: file.mode() });
    }
    Ok(all)
}

fn content(file: &FileConfig, given: &Given) -> Result<Secret, String> {
    if let Some(raw) = &file.raw_value {
        return Ok(Secret::new(raw.as_str()));
    }
    if let Some(name) = &file.secret_name {
        let secret =
            given.secrets.get(name).ok_or_else(|| format!("the app has no secret `{name}`"))?;
        // Not the error: it may show a piece of the value.
        return match BASE64.decode(secret.expose()) {
            Ok(_) => Ok(secret.clone()),
            Err(_) => Err(format!("the value of secret `{name}` is not base64")),
        };
    }
    let reference = file.image_config.as_deref().unwrap_or_default();
    let json = given.image_configs.get(reference);
    let json = json.ok_or_else(|| format!("the configuration of `{reference}` is missing"))?;
    Ok(Secret::new(BASE64.encode(json)))
}

/// Returns the configurations of images that a version's files need.
///
/// # Errors
/// When one was never fetched and cannot be now.
pub async fn image_configs(
    work: &Work,
    version: &Version,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut all = BTreeMap::new();
    let wanted = version.config.files.iter().filter_map(|file| file.image_config.as_ref());
    let state = work.dir().state;
    let folder_of =
        |version: &Version| state.join(format!("{FOLDER_PREFIX}{}", version.instance.as_str()));
    let folder = folder_of(version);
    // An update may go back to the version that ran.
    let needed = [folder_of(&work.record.version), folder_of(work.record.incoming())];
    for reference in wanted {
        if all.contains_key(reference) {
            continue;
        }
        let kept = folder.join(format!("{:x}", Sha256::digest(reference)));
        let json = match std::fs::read_to_string(&kept) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let json = fetch(work, version, reference).await?;
                forget_others(&state, &needed).and_then(|()| keep(&folder, &kept, &json)).map_err(
                    |error| {
                        let text = format!("keep the configuration of `{reference}`: {error}");
                        Fault::permanent(Code::Internal, text)
                    },
                )?;
                json
            }
            Err(error) => {
                let text = format!("read the configuration of `{reference}`: {error}");
                return Err(Fault::permanent(Code::Internal, text));
            }
        };
        all.insert(reference.clone(), json);
    }
    Ok(all)
}

async fn fetch(work: &Work, version: &Version, reference: &str) -> Result<String, Fault> {
    // The machine's own image is the one that its version was pinned to.
    let image = if *reference == version.config.image {
        version.image.clone()
    } else {
        let parsed: Reference = reference.parse().map_err(|error| {
            Fault::permanent(Code::InvalidValue, format!("image_config: {error}"))
        })?;
        ImageRef::from(&parsed)
    };
    let json = work.shared.effects.images.config_json(&image).await?;
    if json.len() > IMAGE_CONFIG_BYTES_MAX {
        let text = format!(
            "the configuration of `{reference}` has {} bytes, more than {IMAGE_CONFIG_BYTES_MAX}",
            json.len()
        );
        return Err(Fault::permanent(Code::ImageInvalid, text));
    }
    Ok(json)
}

/// Removes what was kept for versions that are no more.
fn forget_others(state: &Path, needed: &[PathBuf]) -> io::Result<()> {
    for entry in std::fs::read_dir(state)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(FOLDER_PREFIX) && !needed.contains(&path) {
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// Keeps a content for later boots of the version.
fn keep(folder: &Path, path: &Path, json: &str) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let new = path.with_extension("new");
    std::fs::write(&new, json)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<FileConfig> {
        serde_json::from_str(text).unwrap()
    }

    fn given() -> Given {
        let secret = |name: &str, value: &str| (name.to_owned(), Secret::new(value));
        Given {
            secrets: [secret("KEY", "aHVudGVyMg=="), secret("PLAIN", "hunter2!")].into(),
            image_configs: [("web:1".to_owned(), "{}".to_owned())].into(),
        }
    }

    #[test]
    fn each_source_gives_its_content() {
        let files = files(
            &list(
                r#"[{"guest_path": "/a", "raw_value": "YQ=="},
                    {"guest_path": "/b", "secret_name": "KEY", "mode": 256},
                    {"guest_path": "/c", "image_config": "web:1", "mode": 0}]"#,
            ),
            &given(),
        );
        let found: Vec<_> = files
            .unwrap()
            .into_iter()
            .map(|file| (file.path, file.content.expose().to_owned(), file.mode))
            .collect();
        let want = |path: &str, content: &str, mode| (path.to_owned(), content.to_owned(), mode);
        assert_eq!(
            found,
            [
                want("/a", "YQ==", 0o644),
                want("/b", "aHVudGVyMg==", 0o400),
                want("/c", "e30=", 0o644)
            ]
        );
    }

    #[test]
    fn what_is_missing_or_too_long_is_named_and_no_value_shown() {
        let long = BASE64.encode(vec![0; FILES_BYTES_MAX + 3]);
        for (text, want) in [
            (r#"{"secret_name": "NONE"}"#.to_owned(), "the app has no secret `NONE`"),
            (r#"{"secret_name": "PLAIN"}"#.to_owned(), "the value of secret `PLAIN` is not base64"),
            (r#"{"image_config": "web:2"}"#.to_owned(), "the configuration of `web:2` is missing"),
            (
                format!(r#"{{"raw_value": "{long}"}}"#),
                "all files together are more than 524288 bytes",
            ),
        ] {
            let mut list = list(&format!("[{text}]"));
            list[0].guest_path = "/f".to_owned();
            let error = files(&list, &given()).unwrap_err();
            assert_eq!(error.error, format!("write file `/f`: {want}"));
        }
    }
}
