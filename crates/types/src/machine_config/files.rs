//! `config.files`: files that are written into the machine before its program starts.
//!
//! Never holds a secret: only the name of one.

use serde::{Deserialize, Serialize};

use super::{Other, null_is_default};

/// The permissions of a file when nothing else was said.
pub const FILE_MODE_DEFAULT: u32 = 0o644;

/// One of `config.files`; exactly one of its three sources is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileConfig {
    /// Where it is written, absolute.
    #[serde(default, deserialize_with = "null_is_default")]
    pub guest_path: String,
    /// Its content in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_value: Option<String>,
    /// The secret whose value is its content in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// The image whose configuration, as JSON, is its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_config: Option<String>,
    /// Its permissions, as `chmod` takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl FileConfig {
    /// Returns its permissions with the default; zero is how clients write "nothing said".
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.mode.filter(|mode| *mode != 0).unwrap_or(FILE_MODE_DEFAULT)
    }
}
