//! Times that were written down by a clock that was ahead: they are not believed.
//!
//! Never reads a clock: time comes in. Pure.

use std::time::Duration;

use perch_types::Timestamp;
use perch_types::certificate_docs::{AcmeAccount, CertificateOrder, Leaf};

use super::{RATE_LIMIT_PAUSE_MAX, RENEWAL_ASKED, renew_at};

/// How far the clocks of servers may differ.
const AHEAD_MAX: Duration = Duration::from_secs(5 * 60);
/// How long an order is left that a clock which was ahead wrote down. Where the clocks of two
/// servers differ for good, they do not undo each other's pauses without one.
pub(super) const AHEAD_PAUSE: Duration = Duration::from_secs(5);
/// The longest that an issuer is believed about a pause of the whole account.
pub const ACCOUNT_PAUSE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns whether an order was written down by a clock that was ahead: what it waits for may be
/// as far away as that clock was.
#[must_use]
pub fn is_ahead(order: &CertificateOrder, now: Timestamp) -> bool {
    order.written.is_some_and(|written| written > now.plus(AHEAD_MAX))
}

/// Returns whether a moment, in seconds since 1970, cannot be one at which something happened:
/// a clock that was ahead noted it, and it would count for as long as that clock was ahead.
pub(super) fn has_not_come(unix_s: i64, now: Timestamp) -> bool {
    unix_s > now.plus(AHEAD_MAX).unix_s()
}

/// Returns until when the issuer wants no order; nothing when it wants one now. Longer than it is
/// ever believed it cannot have said.
pub(super) fn limited_until(
    order: &CertificateOrder,
    account: Option<&AcmeAccount>,
    now: Timestamp,
) -> Option<Timestamp> {
    let of_order = order.rate_limited_until.filter(|_| !is_ahead(order, now));
    let of_account = account.and_then(|account| account.rate_limited_until);
    let told = [(of_order, RATE_LIMIT_PAUSE_MAX), (of_account, ACCOUNT_PAUSE_MAX)];
    let believed = told.into_iter().filter_map(|(until, longest)| {
        until.filter(|until| *until > now && *until <= now.plus(longest).plus(AHEAD_MAX))
    });
    believed.max()
}

/// Forgets what an order was to wait for by a clock that was ahead.
pub(super) fn forget_waits(order: &mut CertificateOrder, now: Timestamp) {
    if is_ahead(order, now) {
        order.rate_limited_until = None;
        order.ask_again = order.ask_again.map(|ask| ask.min(now.plus(RENEWAL_ASKED)));
    }
}

/// Finds out anew when a certificate is renewed; one that is not there is had now.
pub(super) fn reckon(
    order: &mut CertificateOrder,
    leaf: Option<&Leaf>,
    now: Timestamp,
    random: u64,
) {
    order.due = leaf.map_or(now, |leaf| renew_at(leaf, random));
}
