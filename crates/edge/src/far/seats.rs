//! Whose connections of clients are whose, of apps without a machine on this host.
//!
//! Never a limit of its own: it only finds the one number that all loops count an app's in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::live::AppKey;
use crate::metrics::AppMetrics;

/// How many apps are remembered before those are forgotten that have no connection.
const APPS_MAX: usize = 4_096;

/// What is counted of such apps, by app; shown to nobody, as the edges there count their requests.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<HashMap<AppKey, Arc<AppMetrics>>>);

impl Seats {
    /// Returns what an app's connections are counted in.
    pub(super) fn of(&self, app: &AppKey) -> Arc<AppMetrics> {
        let mut apps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = apps.get(app) {
            return Arc::clone(known);
        }
        if apps.len() >= APPS_MAX {
            // What somebody has holds connections.
            apps.retain(|_, metrics| Arc::strong_count(metrics) > 1);
        }
        Arc::clone(apps.entry(app.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crowd::AppSeat;

    fn app(name: &str) -> AppKey {
        AppKey { org: "personal".parse().unwrap(), name: name.parse().unwrap() }
    }

    #[test]
    fn e5_connections_to_an_app_of_other_hosts_are_one_number_and_outlive_what_is_forgotten() {
        let seats = Seats::default();
        let held = AppSeat::take(&seats.of(&app("web")), 1).unwrap();
        assert!(AppSeat::take(&seats.of(&app("web")), 1).is_none());
        assert!(AppSeat::take(&seats.of(&app("other")), 1).is_some());
        for number in 0..2 * APPS_MAX {
            seats.of(&app(&format!("app-{number}")));
        }
        assert!(seats.0.lock().unwrap().len() <= APPS_MAX);
        assert!(AppSeat::take(&seats.of(&app("web")), 1).is_none(), "it is not forgotten");
        drop(held);
        assert!(AppSeat::take(&seats.of(&app("web")), 1).is_some());
    }
}
