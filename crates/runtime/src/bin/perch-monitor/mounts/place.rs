//! Where in its own mount namespace the monitor builds the root tree.
//!
//! Never hides a path that the monitor still needs.

use std::path::{Path, PathBuf};

use perch_runtime::Error;

/// Folders that every server has and that everybody may pass through: the machine's first process
/// walks the path with ids that own nothing on the host, so the run folder itself will not do.
const CANDIDATES: [&str; 5] = ["/mnt", "/media", "/srv", "/opt", "/tmp"];

/// Returns the first of [`CANDIDATES`] that holds none of `needed`.
pub(super) fn choose(needed: &[&Path]) -> Result<PathBuf, Error> {
    CANDIDATES
        .iter()
        .map(Path::new)
        .find(|one| one.is_dir() && !needed.iter().any(|path| path.starts_with(one)))
        .map(Path::to_owned)
        .ok_or_else(|| Error::Spec("no folder is free to build the root tree on".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_the_machines_files_is_not_chosen() {
        let chosen = choose(&[Path::new("/mnt/perch/machines/1"), Path::new("/run/x")]).unwrap();
        assert_ne!(chosen, Path::new("/mnt"));
    }
}
