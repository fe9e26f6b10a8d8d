//! What all locks of a session manager share: connections, the two threads, the waiters.
//!
//! Never: a thread that outlives the last lock, guard and session manager.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use super::courier::{Courier, refused};
use super::hold::{Hold, release};
use super::keeper::Keeper;
use super::subscriber::Subscriber;
use super::waiters::Waiters;
use crate::config::Settings;
use crate::connection::nodes::Nodes;
use crate::error::{LinkError, LockError, LostBecause};
use crate::observe::{LockCounters, LockStatus};

/// What was sent on a connection that was lost arrives within this time, or not at all.
pub(crate) const LATE: Duration = Duration::from_secs(60);

/// What all locks of a session manager share.
pub(crate) struct Hub {
    pub(crate) courier: Courier,
    pub(crate) settings: Arc<Settings>,
    pub(crate) counters: Arc<LockCounters>,
    pub(crate) keeper: Keeper,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) subscriber: Subscriber,
}

impl Drop for Hub {
    fn drop(&mut self) {
        if self.settings.is_left() {
            return;
        }
        self.close();
        self.keeper.close();
    }
}

impl Hub {
    pub(crate) fn new(nodes: Nodes) -> Self {
        let settings = Arc::clone(nodes.settings());
        let waiters = Arc::<Waiters>::default();
        // Not a secret: two managers with the same one would only wake each other.
        let random = fastrand::u128(..);
        let subscriber =
            Subscriber::new(nodes.clone(), Arc::clone(&settings), Arc::clone(&waiters), random);
        Self {
            courier: Courier::new(nodes),
            settings,
            counters: Arc::default(),
            keeper: Keeper::new(),
            waiters,
            subscriber,
        }
    }

    /// Nobody is woken any more. Whoever waits notices that the pool is closed.
    pub(crate) fn close(&self) {
        self.subscriber.close();
    }

    pub(crate) fn status(&self) -> LockStatus {
        self.counters.status(
            self.waiters.waiting(),
            self.waiters.subscriptions(),
            self.waiters.wake_ups(),
        )
    }

    /// Gives a hold back, by `limit` at the latest; what could not be given back by then is given
    /// back later.
    pub(crate) fn release(
        &self,
        hold: &Arc<Hold>,
        doubtful: bool,
        limit: Instant,
    ) -> Result<(), LockError> {
        self.keeper.forget(hold);
        let before = hold.end();
        // For as long as it may be repeated; or as a request for it may still arrive.
        let settings = &self.settings;
        let remember = match doubtful {
            true => LATE.max(hold.lease),
            false => settings.checkout_timeout + 2 * settings.response_timeout,
        };
        let call = release(&hold.names, &hold.member, remember);
        let released = match self.courier.ask(std::slice::from_ref(&call), None, limit) {
            Ok(answers) => match answers.values.first() {
                Some(Value::Int(1)) => Ok(()),
                Some(Value::Int(_)) => Err(LockError::Lost { why: LostBecause::Gone }),
                Some(Value::ServerError(error)) => Err(refused("release", error)),
                _ => Err(strange("release")),
            },
            Err(failed) => Err(failed.told("release")),
        };
        match (&released, before) {
            (Ok(()), None) => {
                tracing::debug!("lock released");
                return Ok(());
            }
            (Ok(()) | Err(LockError::Lost { .. }), Some(why)) => {
                return Err(LockError::Lost { why });
            }
            (Err(LockError::Lost { .. }), None) => {
                self.counters.lost.add();
                tracing::warn!(why = %LostBecause::Gone, "lock lost");
            }
            (Err(_), _) => {
                // Longer than that it does not live.
                let until = Instant::now() + hold.lease;
                self.keeper.chore(call, until, &self.courier);
            }
        }
        released
    }
}

/// An answer that none of our scripts gives.
pub(crate) fn strange(during: &'static str) -> LockError {
    LockError::Connection { during, source: LinkError::unexpected("an answer of another kind") }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.settings.is_left() {
            return f.write_str("Hub of another process");
        }
        f.debug_struct("Hub")
            .field("keeper", &self.keeper)
            .field("subscriber", &self.subscriber)
            .finish_non_exhaustive()
    }
}
