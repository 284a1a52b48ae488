//! Connections between edges over which connections at raw ports are carried: each is one app's.
//!
//! Never shared by apps: a side that has too much small unread ends such a connection, and all that
//! it carries with it. How much of that there is, is for an app and its clients to say.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::time::Instant;

use super::links::Links;
use crate::live::AppKey;

/// How many connections one of them carries; for more there is another. So many may leave all that
/// can be under way unread, in pieces of 32 bytes and more, and none is ended; by smaller ones no
/// more than so many are.
const CARRIED_MAX: usize = 8;

/// Connections of one loop, by app.
#[derive(Debug, Default)]
pub(super) struct Carriers(RefCell<HashMap<AppKey, Rc<Links>>>);

impl Carriers {
    /// Returns those of an app.
    pub(super) fn of(&self, app: &AppKey) -> Rc<Links> {
        let Self(apps) = self;
        let mut apps = apps.borrow_mut();
        if let Some(links) = apps.get(app) {
            return Rc::clone(links);
        }
        let links = Rc::new(Links::of(CARRIED_MAX));
        apps.insert(app.clone(), Rc::clone(&links));
        links
    }

    /// Ends those that nobody uses any more.
    pub(super) fn sweep(&self, now: Instant) {
        let Self(apps) = self;
        apps.borrow_mut().retain(|_, links| links.sweep(now) || Rc::strong_count(links) > 1);
    }
}

#[cfg(test)]
mod tests {
    use perch_types::OrgSlug;

    use super::*;

    #[test]
    fn e5_each_app_has_its_own_and_nothing_stays_of_those_that_nobody_uses() {
        let carriers = Carriers::default();
        let of = |name: &str| {
            carriers.of(&AppKey { org: OrgSlug::personal(), name: name.parse().unwrap() })
        };
        let web = of("web");
        assert!(Rc::ptr_eq(&web, &of("web")));
        assert!(!Rc::ptr_eq(&web, &of("other")));
        let count = || carriers.0.borrow().len();
        assert_eq!(count(), 2);
        carriers.sweep(Instant::now());
        assert_eq!(count(), 1, "somebody may be about to use one");
        drop(web);
        carriers.sweep(Instant::now());
        assert_eq!(count(), 0);
    }
}
