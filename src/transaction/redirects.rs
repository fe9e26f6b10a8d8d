//! The next node of a block after a redirect, and the time that it may take.

use std::time::{Duration, Instant};

use crate::connection::deadline;
use crate::connection::threads::Threads;
use crate::error::any::{CommitError, Error};
use crate::pool::redirect_pause;
use crate::pool::router::Router;
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route};
use crate::settings::settings::Settings;
use crate::sync::now::now;

/// Returns the next step after a server rejected a transaction whose slot it does not serve.
///
/// If no server was reached, the slot map is refreshed by `deadline`.
pub(crate) fn redirect_for(
    router: &Router,
    route: &Route,
    error: &CommitError,
    deadline: Instant,
) -> Option<Redirect> {
    match error {
        CommitError::Rejected { code, message, .. } => {
            now(router.redirect_for(route, code, message))
        }
        CommitError::NotSent { source } => redirect_after(router, route, source, deadline),
        _ => None,
    }
}

pub(crate) fn redirect_after(
    router: &Router,
    route: &Route,
    error: &Error,
    deadline: Instant,
) -> Option<Redirect> {
    match error {
        Error::Command { error, .. } => {
            now(router.redirect_for(route, error.code(), error.message()))
        }
        Error::Checkout(error) => now(router.on_unreachable(route, error, deadline)),
        Error::Commit(error) => redirect_for(router, route, error, deadline),
        _ => None,
    }
}

/// Time for which a block waits for a connection and for a cluster that is changing. It is one
/// `checkout_timeout`, shared by all attempts that were redirected or reached no node. An attempt
/// after a conflict or a lost connection has a `checkout_timeout` of its own.
pub(crate) struct CheckoutBudget {
    pub(crate) limit: Duration,
    /// Minimum time of an attempt after a redirect, so that its own result is reported, and not
    /// that no time was left.
    min_after_redirect: Duration,
    /// Deadline of the next checkout.
    pub(crate) deadline: Instant,
    budget: Option<RedirectBudget>,
}

impl CheckoutBudget {
    pub(crate) fn new(settings: &Settings) -> Self {
        let limit = settings.checkout_timeout;
        let min_after_redirect = limit.min(settings.connect_timeout + settings.response_timeout);
        Self { limit, min_after_redirect, deadline: deadline::after(limit), budget: None }
    }

    /// Waits for as long as the redirect needs, and returns its route. `None`: there is no redirect,
    /// or no time is left.
    ///
    /// The time until a server redirected the block does not count as a wait for a node.
    pub(crate) fn follow(&mut self, redirect: Option<Redirect>) -> Option<Route> {
        let redirect = redirect?;
        let unreachable = matches!(redirect, Redirect::Unreachable(_));
        let (limit, deadline) = (self.limit, self.deadline);
        let budget = self.budget.get_or_insert_with(|| {
            RedirectBudget::until(if unreachable { deadline } else { deadline::after(limit) })
        });
        if !now(redirect_pause::try_next::<Threads>(budget, &redirect)) {
            return None;
        }
        self.deadline = match unreachable {
            true => budget.deadline(),
            false => budget.deadline().max(deadline::after(self.min_after_redirect)),
        };
        Some(redirect.route())
    }

    pub(crate) fn restart(&mut self) {
        self.deadline = deadline::after(self.limit);
    }

    /// Adds the time that a closure ran: it does not count as a wait for a connection.
    pub(crate) fn extend(&mut self, ran: Option<Duration>) {
        let Some(ran) = ran else { return };
        self.deadline = deadline::later(self.deadline, ran);
    }
}
