//! Files that are written before a program starts (contract 1.13).
//!
//! Never fetches a secret or an image: only their names are looked at.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use perch_types::image::Reference;
use perch_types::machine_config::FileConfig;

use super::refuse;
use crate::reply::Failure;

/// Files of one list.
const FILES_MAX: usize = 32;
/// Bytes of the literal contents of one list together.
const RAW_BYTES_MAX: usize = 40 * 1024;
/// The longest path.
const PATH_BYTES_MAX: usize = 1024;
/// The longest name of a file or folder in it: the kernel's.
const PATH_PART_BYTES_MAX: usize = 255;
/// The highest permissions: all, with set-user-id, set-group-id and sticky.
const MODE_MAX: u32 = 0o7777;
/// Where the kernel and the platform show what is no file of the machine.
const RESERVED: [&str; 5] = ["proc", "sys", "dev", ".fly", ".perch"];
/// The longest name of a secret.
const SECRET_NAME_BYTES_MAX: usize = 255;

/// Checks a list of files at `path`, such as `config.files`.
pub(super) fn check(path: &str, files: &[FileConfig]) -> Result<(), Failure> {
    if files.len() > FILES_MAX {
        return refuse(format!("{path}: {} are more than {FILES_MAX}", files.len()));
    }
    let mut seen = BTreeSet::new();
    let mut raw_bytes = 0;
    for (index, file) in files.iter().enumerate() {
        let path = format!("{path}[{index}]");
        guest_path(&format!("{path}.guest_path"), &file.guest_path)?;
        if !seen.insert(file.guest_path.as_str()) {
            let twice = &file.guest_path;
            return refuse(format!("{path}.guest_path: `{twice}` is in the list twice"));
        }
        raw_bytes += source(&path, file)?;
        if let Some(mode) = file.mode.filter(|mode| *mode > MODE_MAX) {
            let allowed = format!("{MODE_MAX} (octal {MODE_MAX:o})");
            return refuse(format!("{path}.mode: {mode} is not 0 to {allowed}"));
        }
    }
    if raw_bytes > RAW_BYTES_MAX {
        let what = "bytes of `raw_value`s together";
        return refuse(format!("{path}: {raw_bytes} {what} are more than {RAW_BYTES_MAX}"));
    }
    Ok(())
}

fn guest_path(path: &str, value: &str) -> Result<(), Failure> {
    if value.is_empty() {
        return refuse(format!("{path}: is missing"));
    }
    let shown: String = value.chars().take(80).collect();
    let Some(rest) = value.strip_prefix('/') else {
        return refuse(format!("{path}: `{shown}` is not absolute"));
    };
    if value.len() > PATH_BYTES_MAX {
        let bytes = value.len();
        return refuse(format!("{path}: {bytes} bytes are more than {PATH_BYTES_MAX}"));
    }
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= PATH_PART_BYTES_MAX
            && !part.contains('\0')
    };
    if !rest.split('/').all(plain) {
        return refuse(format!(
            "{path}: `{shown}` is not a file's path without empty parts, `.` and `..`"
        ));
    }
    let first = rest.split('/').next().unwrap_or_default();
    if RESERVED.contains(&first) {
        return refuse(format!(
            "{path}: `{shown}` is below /{first}, where no file can be written"
        ));
    }
    Ok(())
}

/// Checks where the content comes from; returns how many bytes of it are in the configuration.
fn source(path: &str, file: &FileConfig) -> Result<usize, Failure> {
    match (&file.raw_value, &file.secret_name, &file.image_config) {
        (Some(raw), None, None) => match BASE64.decode(raw) {
            Ok(bytes) => Ok(bytes.len()),
            Err(error) => refuse(format!("{path}.raw_value: is not base64: {error}")),
        },
        (None, Some(name), None) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if (1..=SECRET_NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain) {
                return Ok(0);
            }
            let shown: String = name.chars().take(80).collect();
            let rule = format!("1 to {SECRET_NAME_BYTES_MAX} letters, digits and underscores");
            refuse(format!("{path}.secret_name: `{shown}` is not {rule}"))
        }
        (None, None, Some(image)) => match image.parse::<Reference>() {
            Ok(_) => Ok(0),
            Err(error) => refuse(format!("{path}.image_config: {error}")),
        },
        _ => refuse(format!(
            "{path}: exactly one of raw_value, secret_name and image_config is needed"
        )),
    }
}
