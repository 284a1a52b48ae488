//! Names of tar entries: cleaned, bounded and told apart from whiteouts.
//!
//! Never looks at a file system. Rules: OCI image specification (layer), security list R4 and R5.

use super::Fault;
use crate::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// A place inside the tree; `parent` is empty for the tree itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) parent: Vec<u8>,
    pub(super) name: Vec<u8>,
}

/// What an entry's name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// The tree's root.
    Root,
    /// A file, folder or link.
    Place(Place),
    /// The name is removed from the layers below.
    Whiteout(Place),
    /// All that layers below have in this folder is removed.
    Opaque(Vec<u8>),
    /// A name that another tool reserved for itself.
    Reserved,
}

/// Returns the components joined by single slashes, without a leading one.
pub(super) fn clean(path: &[u8], depth_max: usize) -> Result<Vec<u8>, Fault> {
    let shown = || String::from_utf8_lossy(path.get(..path.len().min(120)).unwrap_or(path));
    if path.len() > PATH_BYTES_MAX {
        return Err(Fault::over("the length of a path", PATH_BYTES_MAX as u64));
    }
    if path.contains(&0) {
        return Err(Fault::Invalid(format!("the name {:?} has a NUL in it", shown())));
    }
    let mut cleaned = Vec::with_capacity(path.len());
    let mut depth = 0;
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => {
                return Err(Fault::Invalid(format!("the name {:?} has `..` in it", shown())));
            }
            _ if component.len() > NAME_BYTES_MAX => {
                return Err(Fault::over("the length of a name", NAME_BYTES_MAX as u64));
            }
            _ => {}
        }
        depth += 1;
        if depth > depth_max {
            return Err(Fault::over("the depth of a path", depth_max as u64));
        }
        if !cleaned.is_empty() {
            cleaned.push(b'/');
        }
        cleaned.extend_from_slice(component);
    }
    Ok(cleaned)
}

/// Splits a cleaned path; an empty one is the root and gives nothing.
pub(super) fn split(cleaned: &[u8]) -> Option<Place> {
    if cleaned.is_empty() {
        return None;
    }
    Some(match cleaned.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Place {
            parent: cleaned.get(..slash).unwrap_or_default().to_vec(),
            name: cleaned.get(slash + 1..).unwrap_or_default().to_vec(),
        },
        None => Place { parent: Vec::new(), name: cleaned.to_vec() },
    })
}

/// Returns what an entry's name means.
pub(super) fn classify(path: &[u8], depth_max: usize) -> Result<Target, Fault> {
    let cleaned = clean(path, depth_max)?;
    // A whiteout's name hides what it stands for, so no folder may have such a name either.
    let Some(place) = split(&cleaned) else {
        return Ok(Target::Root);
    };
    if place.parent.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT)) {
        return Ok(Target::Reserved);
    }
    if place.name == OPAQUE {
        return Ok(Target::Opaque(place.parent));
    }
    if place.name.starts_with(RESERVED) {
        return Ok(Target::Reserved);
    }
    let Some(name) = place.name.strip_prefix(WHITEOUT) else {
        return Ok(Target::Place(place));
    };
    if matches!(name, b"" | b"." | b"..") {
        return Err(Fault::Invalid("a whiteout names no file".to_owned()));
    }
    Ok(Target::Whiteout(Place { name: name.to_vec(), parent: place.parent }))
}
