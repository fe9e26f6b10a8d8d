//! The delay before a redirect is followed.

use std::time::Instant;

use crate::connection::io::Io;
use crate::protocol::cluster::route::{Redirect, RedirectBudget};

/// Pauses as long as the redirect needs. Returns false if no time is left to follow it, or the wait was
/// cancelled.
pub(crate) async fn try_next<I: Io>(budget: &mut RedirectBudget, redirect: &Redirect) -> bool {
    let Some(delay) = budget.next_delay(redirect, Instant::now()) else { return false };
    I::pause(delay).await;
    !I::is_cancelled()
}
