//! `config.statics`: files of the image that the edge serves in the program's place.
//!
//! Never opens one.

use serde::{Deserialize, Serialize};

use super::{Other, null_is_default};

/// One of `config.statics`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StaticConfig {
    /// The folder of the image, absolute.
    #[serde(default, deserialize_with = "null_is_default")]
    pub guest_path: String,
    /// What the paths of requests begin with.
    #[serde(default, deserialize_with = "null_is_default")]
    pub url_prefix: String,
    /// The file that stands for its folder.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub index_document: String,
    /// Every other key, kept.
    #[serde(flatten)]
    pub other: Other,
}

impl StaticConfig {
    /// Returns what follows the prefix in the path of a request; nothing when it is not one of these.
    #[must_use]
    pub fn rest_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        let prefix = self.url_prefix.trim_end_matches('/');
        let rest = path.strip_prefix(prefix)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_of_whole_parts() {
        for (prefix, path, want) in [
            ("/static", "/static/a/b.css", Some("a/b.css")),
            ("/static/", "/static/a.css", Some("a.css")),
            ("/static/", "/static", Some("")),
            ("/static", "/static/", Some("")),
            ("/static", "/statics/a", None),
            ("/static", "/", None),
            ("/", "/a.css", Some("a.css")),
            ("/", "/", Some("")),
        ] {
            let one = StaticConfig { url_prefix: prefix.to_owned(), ..StaticConfig::default() };
            assert_eq!(one.rest_of(path), want, "{prefix} {path}");
        }
    }
}
