//! The delay before a redirect is followed.

use std::time::{Duration, Instant};

use crate::protocol::cluster::route::{Redirect, RedirectBudget};

/// Sleeps as long as the redirect needs. Returns false if no time is left to follow it.
pub(crate) fn try_next(budget: &mut RedirectBudget, redirect: &Redirect) -> bool {
    let Some(delay) = budget.next_delay(redirect, Instant::now()) else { return false };
    if delay > Duration::ZERO {
        std::thread::sleep(delay);
    }
    true
}
