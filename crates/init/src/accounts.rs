//! Users and groups of the image: who the program runs as.
//!
//! Never believes a number that does not fit the machine's ids.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// How much of `/etc/passwd` and `/etc/group` is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// The ids of a machine are 0 up to this, exclusive; the last is nobody's.
const IDS: u32 = 65_535;
/// How many further groups a user may be in: the kernel's own limit is larger.
const GROUPS_MAX: usize = 1024;

/// Whom a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// A line of `/etc/passwd` that matters.
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Finds the account of `name`, `uid`, `uid:gid`, `name:group` or nothing (root).
pub(crate) fn resolve(root: &Path, user: &str) -> Result<Account, String> {
    let passwd = text(&root.join("etc/passwd"));
    let group = text(&root.join("etc/group"));
    resolve_in(&passwd, &group, user)
}

fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    // An image without accounts is common; numbers still work in it.
    if let Ok(file) = File::open(path)
        && file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).is_err()
    {
        bytes.clear();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok().filter(|id| *id < IDS) } else { None }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(User { name, uid, gid, home })
    })
}

/// Groups as name, id and members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = id(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn resolve_in(passwd: &str, group: &str, user: &str) -> Result<Account, String> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group_name)) => (name, Some(group_name).filter(|text| !text.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    // A name goes before a number, as everywhere.
    let found = users(passwd)
        .find(|one| one.name == name)
        .or_else(|| users(passwd).find(|one| Some(one.uid) == id(name)));
    let uid = match (&found, id(name)) {
        (Some(user), _) => user.uid,
        (None, Some(uid)) => uid,
        (None, None) if is_number(name) => {
            return Err(format!("the user id {name} is not below {IDS}"));
        }
        (None, None) => return Err(format!("the image has no user `{name}`")),
    };
    let home = found.as_ref().map(|user| user.home).filter(|home| !home.is_empty());
    let home = home.unwrap_or(if uid == 0 { "/root" } else { "/" }).to_owned();
    if let Some(group_name) = group_name {
        let gid = group_id(group, group_name)?;
        return Ok(Account { uid, gid, groups: vec![gid], home });
    }
    let gid = found.as_ref().map_or(0, |user| user.gid);
    let mut all = vec![gid];
    if let Some(user) = found {
        let of_user = groups(group)
            .filter(|(_, _, members)| members.split(',').any(|member| member == user.name))
            .map(|(_, gid, _)| gid);
        all.extend(of_user.take(GROUPS_MAX));
        all.sort_unstable();
        all.dedup();
    }
    Ok(Account { uid, gid, groups: all, home })
}

fn group_id(group: &str, name: &str) -> Result<u32, String> {
    groups(group)
        .find(|(one, _, _)| *one == name)
        .map(|(_, gid, _)| gid)
        .or_else(|| id(name))
        .ok_or_else(|| {
            if is_number(name) {
                format!("the group id {name} is not below {IDS}")
            } else {
                format!("the image has no group `{name}`")
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n\
        web:x:33:33:www:/srv/web:/bin/false\n1000:x:55:55::/odd:/bin/sh\n\
        huge:x:4294967296:0::/:/bin/sh\nfar:x:70000:0::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nadm:x:4:web,other\nssl:x:99:other,web\n";

    fn found(user: &str) -> (u32, u32, Vec<u32>, String) {
        let account = resolve_in(PASSWD, GROUP, user).unwrap();
        (account.uid, account.gid, account.groups, account.home)
    }

    #[test]
    fn every_form_of_a_user_is_understood() {
        assert_eq!(found(""), (0, 0, vec![0], "/root".to_owned()));
        assert_eq!(found("web"), (33, 33, vec![4, 33, 99], "/srv/web".to_owned()));
        assert_eq!(found("33"), (33, 33, vec![4, 33, 99], "/srv/web".to_owned()));
        assert_eq!(found("web:adm"), (33, 4, vec![4], "/srv/web".to_owned()));
        assert_eq!(found("1234"), (1234, 0, vec![0], "/".to_owned()));
        assert_eq!(found("1234:5678"), (1234, 5678, vec![5678], "/".to_owned()));
        assert_eq!(found("1000"), (55, 55, vec![55], "/odd".to_owned()));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_never_becomes_root() {
        let all = ["nobody", "huge", "far", "65535", "4294967296", "-1", "+0", "web:none", "0x0"];
        for user in all {
            assert!(resolve_in(PASSWD, GROUP, user).is_err(), "{user}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_files_and_any_user_give_ids_of_the_machine_or_an_error(
            passwd: String, group: String, user: String,
        ) {
            if let Ok(account) = resolve_in(&passwd, &group, &user) {
                proptest::prop_assert!(account.uid < IDS && account.gid < IDS);
                proptest::prop_assert!(account.groups.iter().all(|gid| *gid < IDS));
            }
        }
    }
}
