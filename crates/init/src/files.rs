//! The few files of a machine that the platform writes.
//!
//! Never follows a link that the image put there: a new file takes the old one's place.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use perch_types::guest::GuestStart;

/// Writes `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` as far as texts were given.
pub(crate) fn prepare(root: &Path, start: &GuestStart) {
    let texts = [
        ("hostname", &start.hostname),
        ("hosts", &start.hosts),
        ("resolv.conf", &start.resolv_conf),
    ];
    let etc = root.join("etc");
    for (name, text) in texts {
        if let Some(text) = text
            && let Err(error) = replace(&etc, name, text)
        {
            // A program can do without; one that cannot finds out why here.
            complain(&format!("perch: could not write /etc/{name}: {error}"));
        }
    }
}

fn replace(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let new = dir.join(format!(".perch-{name}"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::write(&new, text)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
    fs::rename(&new, dir.join(name))
}

/// Says something in the machine's own log.
pub(crate) fn complain(text: &str) {
    // Nobody is left to tell if even that fails.
    rustix::io::write(rustix::stdio::stderr(), format!("{text}\n").as_bytes()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::write(&outside, "mine").unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(&outside, root.path().join("etc/hosts")).unwrap();
        let start =
            GuestStart { hosts: Some("::1 localhost\n".to_owned()), ..GuestStart::default() };
        prepare(root.path(), &start);
        assert_eq!(fs::read_to_string(outside).unwrap(), "mine");
        let written = fs::read_to_string(root.path().join("etc/hosts")).unwrap();
        assert_eq!(written, "::1 localhost\n");
        assert!(!root.path().join("etc/resolv.conf").exists());
    }
}
