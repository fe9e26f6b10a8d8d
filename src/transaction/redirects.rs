//! The next node of a block after a redirect, and the time that it may take.

use std::time::{Duration, Instant};

use crate::commit::side::Side;
use crate::commit::wait_limit::WaitLimit;
use crate::connection::deadline;
use crate::connection::io::Io;
use crate::error::any::{CommitError, Error};
use crate::error::checkout::CheckoutError;
use crate::pool::redirect_pause;
use crate::pool::router::Router;
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route};
use crate::settings::settings::Settings;

/// Why a transaction may have to be sent to another node.
#[derive(Clone, Copy)]
pub(crate) enum RedirectCause<'e> {
    /// The server refused a command.
    Refused { code: &'e str, text: &'e str },
    /// No connection to the server was available.
    Unreachable(&'e CheckoutError),
}

impl<'e> RedirectCause<'e> {
    pub(crate) fn of(error: &'e Error) -> Option<Self> {
        match error {
            Error::Command { error, .. } => {
                Some(Self::Refused { code: error.code(), text: error.message() })
            }
            Error::Checkout(error) => Some(Self::Unreachable(error)),
            Error::Commit(error) => Self::of_commit(error),
            _ => None,
        }
    }

    pub(crate) fn of_commit(error: &'e CommitError) -> Option<Self> {
        match error {
            CommitError::Rejected { code, message, .. } => {
                Some(Self::Refused { code, text: message })
            }
            CommitError::NotSent { source } => Self::of(source),
            _ => None,
        }
    }

    /// Returns the next step, if the server does not serve the slot, or if none was reached. In the
    /// second case the slot map is refreshed by `deadline`.
    pub(crate) async fn redirect<P: Side>(
        self,
        router: &Router<P>,
        route: &Route,
        deadline: Instant,
    ) -> Option<Redirect> {
        match self {
            Self::Refused { code, text } => router.redirect_for(route, code, text).await,
            Self::Unreachable(error) => router.on_unreachable(route, error, deadline).await,
        }
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
    wait: WaitLimit,
    budget: Option<RedirectBudget>,
}

impl CheckoutBudget {
    pub(crate) fn new(settings: &Settings, wait: WaitLimit) -> Self {
        let limit = wait.timeout(settings);
        let min_after_redirect = limit.min(settings.connect_timeout + settings.response_timeout);
        let deadline = wait.deadline(settings);
        Self { limit, min_after_redirect, deadline, wait, budget: None }
    }

    /// Waits for as long as the redirect needs, and returns its route. `None`: there is no redirect,
    /// or no time is left.
    ///
    /// The time until a server redirected the block does not count as a wait for a node.
    pub(crate) async fn follow<I: Io>(&mut self, redirect: Option<Redirect>) -> Option<Route> {
        let redirect = redirect?;
        let unreachable = matches!(redirect, Redirect::Unreachable(_));
        let (limit, deadline) = (self.limit, self.deadline);
        let budget = self.budget.get_or_insert_with(|| {
            RedirectBudget::until(if unreachable {
                deadline
            } else {
                self.wait.cap(deadline::after(limit))
            })
        });
        if !redirect_pause::try_next::<I>(budget, &redirect).await {
            return None;
        }
        self.deadline = self.wait.cap(match unreachable {
            true => budget.deadline(),
            false => budget.deadline().max(deadline::after(self.min_after_redirect)),
        });
        Some(redirect.route())
    }

    pub(crate) fn restart(&mut self) {
        self.deadline = self.wait.cap(deadline::after(self.limit));
    }

    /// Adds the time that a closure ran: it does not count as a wait for a connection.
    pub(crate) fn extend(&mut self, ran: Option<Duration>) {
        let Some(ran) = ran else { return };
        self.deadline = self.wait.cap(deadline::later(self.deadline, ran));
    }
}
