//! Names of images: digests, references and the runtime part of an image's configuration.
//!
//! Never asks a registry and never hashes: a digest here is a checked text, whoever reads bytes
//! compares. Grammar: OCI distribution specification (repository, tag) and Docker's short names.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The platform's own registry as it is named in image references. Each host maps the name to the
/// endpoint at which it reaches that registry.
pub const PLATFORM_REGISTRY: &str = "registry.internal";
/// The registry of references that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of references that have neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// The longest registry, repository and tag together with their separators and a digest.
pub const REFERENCE_BYTES_MAX: usize = 1024;
/// The longest registry (host and port).
pub const REGISTRY_BYTES_MAX: usize = 261;
/// The longest repository.
pub const REPOSITORY_BYTES_MAX: usize = 255;
/// The longest tag.
pub const TAG_BYTES_MAX: usize = 128;

const DIGEST_PREFIX: &str = "sha256:";
const DIGEST_HEX_BYTES: usize = 64;
const INVALID_TEXT_CHARS_MAX: usize = 120;

/// A text that is no image reference, or a part of one that is not of its shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {kind}: {rule}")]
pub struct InvalidReference {
    /// What was expected, with its article.
    pub kind: &'static str,
    /// The rule that did not hold.
    pub rule: &'static str,
    /// The text as it came, cut to 120 characters.
    pub value: String,
}

impl InvalidReference {
    fn new(kind: &'static str, rule: &'static str, value: &str) -> Self {
        Self { kind, rule, value: value.chars().take(INVALID_TEXT_CHARS_MAX).collect() }
    }
}

/// A content digest, always `sha256:` and 64 lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Returns the digest of a finished SHA-256.
    #[must_use]
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(DIGEST_PREFIX.len() + DIGEST_HEX_BYTES);
        text.push_str(DIGEST_PREFIX);
        for byte in hash {
            // Writing to a String has no way to go wrong.
            let _infallible = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Returns the whole text, `sha256:…`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the 64 hexadecimal digits, fit for a file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.strip_prefix(DIGEST_PREFIX).unwrap_or_default()
    }
}

impl FromStr for Digest {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let well_formed = text.strip_prefix(DIGEST_PREFIX).is_some_and(|hex| {
            hex.len() == DIGEST_HEX_BYTES
                && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidReference::new(
                "a digest",
                "`sha256:` and 64 lowercase hexadecimal digits",
                text,
            ))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an image is: registry, repository and a tag, a digest or both.
///
/// Parsing fills in what Docker's short names leave out (`redis` is
/// `docker.io/library/redis:latest`); [`fmt::Display`] writes the full form, which parses to the
/// same value. With both a tag and a digest the digest decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Returns the host, with its port if it has one: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository: `library/redis`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Tells whether it is in the platform's own registry.
    #[must_use]
    pub fn is_platform(&self) -> bool {
        self.registry == PLATFORM_REGISTRY
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |rule| InvalidReference::new("an image reference", rule, text);
        if text.is_empty() || text.len() > REFERENCE_BYTES_MAX {
            return Err(invalid("1 to 1024 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to the port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (check_registry(first)?, rest.to_owned())
            }
            _ => (DEFAULT_REGISTRY.to_owned(), name.to_owned()),
        };
        let (registry, repository) = docker_names(registry, repository);
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry, repository: check_repository(&repository)?, tag, digest })
    }
}

impl TryFrom<String> for Reference {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Applies Docker Hub's two habits: its older host name, and `library/` for official images.
fn docker_names(registry: String, repository: String) -> (String, String) {
    let hub = matches!(registry.as_str(), "docker.io" | "index.docker.io" | "registry-1.docker.io");
    if !hub {
        return (registry, repository);
    }
    let repository =
        if repository.contains('/') { repository } else { format!("library/{repository}") };
    (DEFAULT_REGISTRY.to_owned(), repository)
}

fn check_registry(text: &str) -> Result<String, InvalidReference> {
    let invalid = |rule| InvalidReference::new("a registry", rule, text);
    if text.len() > REGISTRY_BYTES_MAX {
        return Err(invalid("at most 261 bytes"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return Err(invalid("a port from 1 to 65535 after the colon"));
    }
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let well_formed = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    if well_formed {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(invalid("a host name or address, and an optional port"))
    }
}

/// Checks a repository name against the distribution specification.
///
/// # Errors
/// When it is not of that shape or longer than [`REPOSITORY_BYTES_MAX`].
pub fn check_repository(text: &str) -> Result<String, InvalidReference> {
    if text.len() > REPOSITORY_BYTES_MAX {
        return Err(InvalidReference::new("a repository", "at most 255 bytes", text));
    }
    if text.split('/').all(is_path_component) {
        Ok(text.to_owned())
    } else {
        Err(InvalidReference::new(
            "a repository",
            "lowercase letters and digits, separated by `.`, `_`, `__`, dashes or `/`",
            text,
        ))
    }
}

/// Checks a tag against the distribution specification.
///
/// # Errors
/// When it is not of that shape or longer than [`TAG_BYTES_MAX`].
pub fn check_tag(text: &str) -> Result<(), InvalidReference> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let well_formed = text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if well_formed {
        Ok(())
    } else {
        Err(InvalidReference::new(
            "a tag",
            "1 to 128 letters, digits, `_`, `.` and `-`, neither `.` nor `-` first",
            text,
        ))
    }
}

fn is_path_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().copied().is_some_and(letter) || !bytes.last().copied().is_some_and(letter) {
        return false;
    }
    // Between letters stands one dot, one or two underscores, or any number of dashes.
    bytes.split(|b| letter(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

/// The image that a machine runs, as answered (contract 1.3, `image_ref`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageRef {
    /// The registry's name.
    #[serde(default)]
    pub registry: String,
    /// The repository; in the platform's registry the app's name.
    #[serde(default)]
    pub repository: String,
    /// The tag; empty when the reference had none.
    #[serde(default)]
    pub tag: String,
    /// The manifest's digest; absent until a host resolved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The image's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl From<&Reference> for ImageRef {
    fn from(reference: &Reference) -> Self {
        Self {
            registry: reference.registry.clone(),
            repository: reference.repository.clone(),
            tag: reference.tag.clone().unwrap_or_default(),
            digest: reference.digest.clone(),
            labels: BTreeMap::new(),
        }
    }
}

/// What an image says about how its program is run (OCI image specification, `config`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// The environment; a later duplicate wins.
    pub env: BTreeMap<String, String>,
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// The default arguments, or the program when there is no entrypoint.
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group` or empty for root; as the image has it, not yet looked up.
    pub user: String,
    /// The working folder; empty means `/`.
    pub working_dir: String,
    /// Ports that the image names; a hint, nothing is opened by it.
    pub exposed_ports: Vec<ExposedPort>,
    /// The signal that asks the program to end, as the image has it (`SIGTERM`, `15`).
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A port that an image names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExposedPort {
    /// The number.
    pub port: u16,
    /// The transport.
    pub transport: Transport,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

#[cfg(test)]
mod tests;
