//! Manifests, indexes and image configurations: parsed strictly and held against the limits.
//!
//! Never fetches. Media type confusion is refused (security list R3): what the answer's header,
//! the body's `mediaType` and the body's shape say must agree. Shapes: OCI image specification and
//! Docker's schema 2.

use std::collections::BTreeMap;

use perch_types::image::{Digest, ExposedPort, ImageConfig, Transport};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::limits::{CONFIG_BYTES_MAX, INDEX_ENTRIES_MAX, Limits};
use crate::unpack::Packing;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What a client accepts, as a header's value.
pub const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// Why a manifest or configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A rule that does not hold.
    #[error("{0}")]
    Invalid(String),
    /// A limit.
    #[error("{what} is over the limit of {limit}")]
    OverLimit {
        /// What there is too much of.
        what: String,
        /// The limit.
        limit: u64,
    },
}

/// A blob as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the bytes are.
    pub media_type: String,
    /// Their digest.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
    /// For which machine, inside an index.
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

/// A machine that an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// The processor, as Go names it.
    pub architecture: String,
    /// The operating system, as Go names it.
    pub os: String,
    /// The processor's variant.
    #[serde(default)]
    pub variant: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<IgnoredAny>,
}

/// A parsed manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image for each of several platforms.
    Index(Vec<Descriptor>),
    /// One image.
    Image {
        /// Its configuration.
        config: Descriptor,
        /// Its layers, the lowest first.
        layers: Vec<Descriptor>,
    },
}

/// Parses a manifest or index that came with this `Content-Type`.
///
/// # Errors
/// When the three sources of its type disagree, or a rule or limit does not hold.
pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, Refusal> {
    let invalid = |text: &str| Refusal::Invalid(text.to_owned());
    let body: Body = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::Invalid(format!("its manifest does not parse: {error}")))?;
    if body.fs_layers.is_some() || body.schema_version != 2 {
        return Err(invalid("its manifest is not of schema version 2"));
    }
    let header = content_type
        .map(|text| text.split(';').next().unwrap_or_default().trim())
        .filter(|text| text.starts_with("application/vnd."));
    if let (Some(header), Some(inside)) = (header, body.media_type.as_deref())
        && header != inside
    {
        return Err(invalid("its manifest's media type differs from the answer's"));
    }
    let media_type = body.media_type.as_deref().or(header);
    let says_index = match media_type {
        Some(OCI_INDEX | DOCKER_LIST) => Some(true),
        Some(OCI_MANIFEST | DOCKER_MANIFEST) => Some(false),
        Some(other) => {
            return Err(Refusal::Invalid(format!("its manifest's media type is `{other}`")));
        }
        None => None,
    };
    match (body.manifests, body.config, body.layers) {
        (Some(entries), None, None) if says_index != Some(false) => {
            if entries.len() > INDEX_ENTRIES_MAX {
                let limit = INDEX_ENTRIES_MAX as u64;
                return Err(Refusal::OverLimit { what: "its index's entries".to_owned(), limit });
            }
            Ok(Manifest::Index(entries))
        }
        (None, Some(config), Some(layers)) if says_index != Some(true) => {
            Ok(Manifest::Image { config, layers })
        }
        _ => Err(invalid("its manifest is both or neither of an image and an index")),
    }
}

/// Returns the entry of an index for this machine's processor and Linux.
///
/// # Errors
/// When there is none.
pub fn pick(entries: &[Descriptor]) -> Result<&Descriptor, Refusal> {
    let (architecture, variant) = local_architecture();
    let fits = |entry: &&Descriptor| {
        entry.platform.as_ref().is_some_and(|platform| {
            platform.os == "linux"
                && platform.architecture == architecture
                && platform.variant.as_deref().is_none_or(|text| text.is_empty() || text == variant)
        })
    };
    entries.iter().find(fits).ok_or_else(|| {
        let there: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .take(12)
            .map(|platform| format!("{}/{}", platform.os, platform.architecture))
            .collect();
        Refusal::Invalid(format!("it is not for linux/{architecture} but {}", there.join(", ")))
    })
}

fn local_architecture() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", "v1"),
        "aarch64" => ("arm64", "v8"),
        other => (other, ""),
    }
}

/// Checks an image's descriptors against the limits and returns how each layer is packed.
///
/// # Errors
/// When a media type is not one of an image's, or a limit does not hold.
pub fn check(
    config: &Descriptor,
    layers: &[Descriptor],
    limits: &Limits,
) -> Result<Vec<Packing>, Refusal> {
    let over = |what: &str, limit: u64| Err(Refusal::OverLimit { what: what.to_owned(), limit });
    if !CONFIGS.contains(&config.media_type.as_str()) {
        let text = format!("its configuration's media type is `{}`", config.media_type);
        return Err(Refusal::Invalid(text));
    }
    if config.size > CONFIG_BYTES_MAX {
        return over("its configuration", CONFIG_BYTES_MAX);
    }
    if layers.len() > limits.layers_max {
        return over("the number of layers", limits.layers_max as u64);
    }
    let total = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
    if total > limits.compressed_bytes_max {
        return over("the packed size", limits.compressed_bytes_max);
    }
    layers.iter().map(packing).collect()
}

fn packing(layer: &Descriptor) -> Result<Packing, Refusal> {
    let foreign = layer.urls.as_ref().is_some_and(|urls| !urls.is_empty());
    match layer.media_type.as_str() {
        _ if foreign => Err(Refusal::Invalid("a layer lies outside the registry".to_owned())),
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Packing::Plain),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Packing::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Packing::Zstd),
        other => Err(Refusal::Invalid(format!("a layer's media type is `{other}`"))),
    }
}

#[derive(Debug, Deserialize)]
struct ConfigFile {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    config: Option<ConfigBody>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ConfigBody {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

/// Parses an image's configuration; returns its runtime part and its layers' unpacked digests.
///
/// # Errors
/// When it does not parse, or is for another machine, or names another number of layers.
pub fn parse_config(bytes: &[u8], layers: usize) -> Result<(ImageConfig, Vec<Digest>), Refusal> {
    let file: ConfigFile = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::Invalid(format!("its configuration does not parse: {error}")))?;
    let diff_ids = file.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != layers {
        let text = format!("it has {layers} layers and names {} unpacked ones", diff_ids.len());
        return Err(Refusal::Invalid(text));
    }
    let os = file.os.as_deref().filter(|os| !os.is_empty()).unwrap_or("linux");
    let (here, _) = local_architecture();
    let architecture = file.architecture.as_deref().filter(|text| !text.is_empty()).unwrap_or(here);
    if os != "linux" || architecture != here {
        return Err(Refusal::Invalid(format!("it is for {os}/{architecture}, not linux/{here}")));
    }
    let body = file.config.unwrap_or_default();
    let env = body.env.unwrap_or_default();
    if env.iter().any(|pair| pair.contains('\0')) {
        return Err(Refusal::Invalid("its environment has a NUL in it".to_owned()));
    }
    let pairs = env.iter().filter_map(|pair| pair.split_once('='));
    let config = ImageConfig {
        env: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        entrypoint: body.entrypoint.unwrap_or_default(),
        cmd: body.cmd.unwrap_or_default(),
        user: body.user.unwrap_or_default(),
        working_dir: body.working_dir.unwrap_or_default(),
        exposed_ports: body
            .exposed_ports
            .unwrap_or_default()
            .keys()
            .filter_map(|text| exposed_port(text))
            .collect(),
        stop_signal: body.stop_signal.filter(|text| !text.is_empty()),
        labels: body.labels.unwrap_or_default(),
    };
    Ok((config, diff_ids))
}

/// Parses `8080`, `8080/tcp` or `53/udp`; anything else is no hint and is passed over.
fn exposed_port(text: &str) -> Option<ExposedPort> {
    let (port, transport) = match text.split_once('/') {
        Some((port, "udp")) => (port, Transport::Udp),
        Some((port, "tcp")) => (port, Transport::Tcp),
        Some(_) => return None,
        None => (text, Transport::Tcp),
    };
    port.parse().ok().filter(|port| *port != 0).map(|port| ExposedPort { port, transport })
}

#[cfg(test)]
mod tests;
