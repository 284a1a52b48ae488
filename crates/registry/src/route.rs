//! Paths under `/v2/`: parsed from the right, as repository names have slashes of their own.
//!
//! Never decodes percent signs: no name, tag, digest or id needs one.

use perch_types::image::{Digest, check_repository, check_tag};

use crate::reply::Fault;

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`.
    Base,
    /// `<name>/blobs/<digest>`.
    Blob(String, Digest),
    /// `<name>/blobs/uploads/`.
    Uploads(String),
    /// `<name>/blobs/uploads/<id>`.
    Upload(String, String),
    /// `<name>/manifests/<tag or digest>`.
    Manifest(String, Name),
    /// `<name>/tags/list`.
    Tags(String),
    /// `<name>/referrers/<digest>`.
    Referrers(String, Digest),
}

/// By what a manifest is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Tag(String),
    Digest(Digest),
}

impl Route {
    /// Returns the repository; empty for the base.
    pub(crate) fn repository(&self) -> &str {
        match self {
            Self::Base => "",
            Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Manifest(name, _)
            | Self::Tags(name)
            | Self::Referrers(name, _) => name,
        }
    }
}

/// Parses a request's path.
pub(crate) fn parse(path: &str) -> Result<Route, Fault> {
    let nothing = || Fault::not_found("there is no such path");
    let rest = path.strip_prefix("/v2").ok_or_else(nothing)?;
    if rest.is_empty() || rest == "/" {
        return Ok(Route::Base);
    }
    let rest = rest.strip_prefix('/').ok_or_else(nothing)?;
    if let Some(name) =
        rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads"))
    {
        return Ok(Route::Uploads(repository(name)?));
    }
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Ok(Route::Tags(repository(name)?));
    }
    let (before, last) = rest.rsplit_once('/').ok_or_else(nothing)?;
    if let Some(name) = before.strip_suffix("/blobs/uploads") {
        let well_formed = last.len() == 32 && last.bytes().all(|b| b.is_ascii_hexdigit());
        let unknown = || Fault::upload_unknown("there is no such upload");
        let id = well_formed.then(|| last.to_owned()).ok_or_else(unknown)?;
        return Ok(Route::Upload(repository(name)?, id));
    }
    if let Some(name) = before.strip_suffix("/blobs") {
        return Ok(Route::Blob(repository(name)?, digest(last)?));
    }
    if let Some(name) = before.strip_suffix("/referrers") {
        return Ok(Route::Referrers(repository(name)?, digest(last)?));
    }
    let name = before.strip_suffix("/manifests").ok_or_else(nothing)?;
    let reference = if last.contains(':') {
        Name::Digest(digest(last)?)
    } else {
        check_tag(last).map_err(|e| Fault::manifest_invalid(e.to_string()))?;
        Name::Tag(last.to_owned())
    };
    Ok(Route::Manifest(repository(name)?, reference))
}

pub(crate) fn repository(name: &str) -> Result<String, Fault> {
    check_repository(name).map_err(|error| Fault::name_invalid(error.to_string()))
}

pub(crate) fn digest(text: &str) -> Result<Digest, Fault> {
    text.parse().map_err(|_| Fault::digest_invalid("only lowercase sha256 digests are kept here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn paths() {
        let digest: Digest = D.parse().expect("digest");
        let id = "0".repeat(32);
        let table = [
            ("/v2".to_owned(), Route::Base),
            ("/v2/".to_owned(), Route::Base),
            ("/v2/a/blobs/uploads/".to_owned(), Route::Uploads("a".to_owned())),
            (format!("/v2/a/b/blobs/uploads/{id}"), Route::Upload("a/b".to_owned(), id)),
            (format!("/v2/a/blobs/{D}"), Route::Blob("a".to_owned(), digest.clone())),
            (
                format!("/v2/a/blobs/b/blobs/{D}"),
                Route::Blob("a/blobs/b".to_owned(), digest.clone()),
            ),
            (
                "/v2/a/manifests/latest".to_owned(),
                Route::Manifest("a".to_owned(), Name::Tag("latest".to_owned())),
            ),
            ("/v2/a/tags/list".to_owned(), Route::Tags("a".to_owned())),
            (format!("/v2/a/referrers/{D}"), Route::Referrers("a".to_owned(), digest)),
        ];
        for (path, route) in table {
            assert_eq!(parse(&path).ok(), Some(route), "{path}");
        }
    }

    #[test]
    fn paths_that_lead_nowhere() {
        for path in [
            "/",
            "/v1/",
            "/v2x",
            "/v2/a",
            "/v2/a/manifests/..",
            "/v2/../manifests/x",
            "/v2/A/tags/list",
            "/v2/a/../b/tags/list",
            "/v2//tags/list",
            "/v2/_x/tags/list",
            "/v2/a/blobs/sha256:00",
            "/v2/a/blobs/uploads/../../x",
            "/v2/a%2fb/tags/list",
        ] {
            assert!(parse(path).is_err(), "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_name_leaves_its_folder(path in "[a-zA-Z0-9_./:%-]{0,60}") {
            if let Ok(route) = parse(&format!("/v2/{path}")) {
                let name = route.repository();
                proptest::prop_assert!(!name.split('/').any(|c| c == ".." || c.starts_with('_')));
                proptest::prop_assert!(!name.starts_with('/'));
            }
        }
    }
}
