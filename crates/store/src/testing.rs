//! The test-suite of the contract, for any backend.
//!
//! Never looks behind the trait: what a backend needs to be restarted, or to have time pass, its
//! [`Subject`] does.
//!
//! ```ignore
//! testing::suite(&mut subject).await.unwrap();
//! ```

mod documents;
mod keys;
mod leases;
mod watches;
mod writers;

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use perch_types::error::chain;

use crate::{Entry, Error, Event, Store, Watch};

/// How long anything that has to happen may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A backend under test. It begins empty.
pub trait Subject {
    /// Returns the store.
    fn store(&self) -> Arc<dyn Store>;

    /// Ends the server of the store and starts it again on what it kept. Nothing the suite got
    /// from [`Subject::store`] is alive then.
    fn restart(&mut self) -> impl Future<Output = ()>;

    /// Lets time pass on the clock of leases.
    fn advance(&mut self, time: Duration) -> impl Future<Output = ()>;

    /// Makes the store forget all history but the newest, through writes of its own under
    /// `compact/` if it must.
    fn compact(&mut self) -> impl Future<Output = ()>;
}

/// What a backend got wrong.
#[derive(Debug, thiserror::Error)]
#[error("{check}: {reason}")]
pub struct Broken {
    /// Which check.
    pub check: &'static str,
    /// What was found, and what had to be.
    pub reason: String,
}

type Checked = Result<(), String>;

/// Puts a backend through every check; returns how many there are.
///
/// # Errors
/// The first that it does not pass.
pub async fn suite<S: Subject>(subject: &mut S) -> Result<usize, Broken> {
    let mut count = 0;
    macro_rules! check {
        ($($module:ident :: $name:ident,)*) => {
            $(
                let checked = $module::$name(subject).await;
                checked.map_err(|reason| Broken { check: stringify!($name), reason })?;
                count += 1;
            )*
        };
    }
    check![
        keys::a_key_is_written_read_and_deleted,
        keys::a_write_that_expects_another_state_is_refused,
        keys::revisions_count_changes_of_anything,
        keys::a_list_is_ordered_and_exact,
        keys::limits_are_kept,
        keys::values_are_any_bytes,
        keys::a_transaction_happens_whole_or_not_at_all,
        keys::a_freeing_transaction_makes_nothing_but_what_ends_or_tells,
        keys::everything_is_there_after_a_restart,
        writers::many_writers_on_one_key_lose_no_update,
        writers::a_watcher_sees_every_write_of_many_writers_in_order,
        watches::a_watch_begins_at_its_revision,
        watches::a_watch_sees_its_prefix_only,
        watches::a_watch_sees_a_transaction_at_one_revision,
        watches::a_watch_goes_on_after_a_restart,
        watches::history_that_is_gone_is_said_to_be_gone,
        leases::a_lease_that_is_not_kept_alive_takes_its_keys_along,
        leases::a_lease_that_is_kept_alive_stays,
        leases::a_revoked_lease_ends_at_once,
        leases::a_plain_write_unties_a_key,
        leases::a_restart_ends_no_lease,
        documents::typed_documents_are_compared_and_set,
        documents::a_document_that_does_not_parse_hides_no_other,
        documents::keys_of_another_depth_are_not_documents,
    ];
    Ok(count)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Checked {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what} is {found:?}, expected {expected:?}"))
}

fn refused<T>(what: &str, result: Result<T, Error>, is_right: fn(&Error) -> bool) -> Checked {
    match result {
        Ok(_) => Err(format!("{what} was accepted")),
        Err(error) if is_right(&error) => Ok(()),
        Err(error) => Err(format!("{what} was refused with {error:?}")),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err passes")]
fn fault(error: Error) -> String {
    chain(&error)
}

fn text(entry: Option<&Entry>) -> Option<String> {
    entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned())
}

/// Waits for the next event of a watch.
async fn next(watch: &mut Watch) -> Result<Event, String> {
    match tokio::time::timeout(PATIENCE, watch.next()).await {
        Err(_) => Err("no event came".to_owned()),
        Ok(None) => Err("the watch ended without an error".to_owned()),
        Ok(Some(event)) => event.map_err(fault),
    }
}

/// An event as `key=value@revision`, with `-` for a deletion.
fn shown(event: &Event) -> String {
    let value = event.value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
    format!("{}={}@{}", event.key, value.as_deref().unwrap_or("-"), event.revision)
}
