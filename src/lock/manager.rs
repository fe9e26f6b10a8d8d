//! What all locks of a session manager share: connections, the two threads, the waiters.
//!
//! Never: a thread that outlives the last lock, guard and session manager.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use crate::error::connection::ConnectionError;
use crate::error::lock::{LockError, LostReason};
use crate::lock::client::{Courier, Over, refused};
use crate::lock::lease::{Hold, release};
use crate::lock::renewal::Keeper;
use crate::lock::waiters::Waiters;
use crate::lock::wakeups::Subscriber;
use crate::pool::router::Nodes;
use crate::protocol::lock::keys::Names;
use crate::settings::Settings;
use crate::status::{LockCounters, LockStatus};

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
    /// `own` has at most one connection to each master, for renewals and releases.
    pub(crate) fn new(pooled: Nodes, own: Nodes) -> Self {
        let settings = Arc::clone(pooled.settings());
        let waiters = Arc::<Waiters>::default();
        // Not a secret: two managers with the same one would only wake each other.
        let random = fastrand::u128(..);
        let subscriber =
            Subscriber::new(pooled.clone(), Arc::clone(&settings), Arc::clone(&waiters), random);
        Self {
            courier: Courier::new(pooled, own),
            settings,
            counters: Arc::default(),
            keeper: Keeper::new(),
            waiters,
            subscriber,
        }
    }

    /// Nothing is acquired any more. A call that waits notices it when it asks again, at once.
    pub(crate) fn close(&self) {
        self.courier.close();
        self.subscriber.close();
    }

    /// Waits until `deadline` for guards to go, and for what is to be given back. From then on no
    /// lease is extended. Returns how many locks are held: their guards can still release them.
    pub(crate) fn cease(&self, deadline: Instant) -> usize {
        self.keeper.cease(deadline, &self.courier)
    }

    pub(crate) fn status(&self) -> LockStatus {
        self.counters.status(
            self.waiters.waiting(),
            self.waiters.subscriptions(),
            self.waiters.wake_ups(),
        )
    }

    /// Gives a hold back, by `limit` at the latest; what could not be given back by then is given
    /// back later. It may be called again where a log panicked under it. What is to be made of it:
    /// [`Released::log`].
    pub(crate) fn release(&self, hold: &Arc<Hold>, doubtful: bool, limit: Instant) -> Released {
        // From here on nothing extends it.
        let before = hold.end();
        let Names { holders, .. } = &*hold.names;
        let answered = self.keeper.take_answered(holders, self.courier.is_in_cluster());
        let call =
            release(&hold.names, &hold.member, self.remember(hold.lease, doubtful), answered);
        let mut repeated = false;
        let checkout = Instant::now() + self.settings.checkout_timeout;
        let calls = std::slice::from_ref(&call);
        let released = match self.courier.ask_by(calls, Over::Own, checkout, limit) {
            Ok(answers) => {
                repeated = answers.repeated;
                match answers.values.first() {
                    Some(Value::Int(1)) => Ok(()),
                    Some(Value::Int(_)) => Err(LockError::Lost { why: LostReason::Gone }),
                    Some(Value::ServerError(error)) => Err(refused("release", error)),
                    _ => Err(strange("release")),
                }
            }
            Err(failed) => Err(failed.told("release")),
        };
        let is_answered = matches!(released, Ok(()) | Err(LockError::Lost { .. }));
        if !is_answered {
            self.give_back_later(hold, doubtful);
        } else if !doubtful && !repeated {
            // No copy of a request is under way that would have to be answered the same.
            self.keeper.answered(hold.names.done(&hold.member), &self.courier);
        }
        // Last: a closed session manager ends its connections when the last hold is forgotten.
        self.keeper.forget(hold);
        if let (Err(LockError::Lost { .. }), None) = (&released, before) {
            self.counters.lost.add();
        }
        Released { released, before }
    }

    /// Has a hold given back in the background, and logs nothing.
    pub(crate) fn give_back_later(&self, hold: &Arc<Hold>, doubtful: bool) {
        hold.end();
        let remember = self.remember(hold.lease, doubtful);
        let call = release(&hold.names, &hold.member, remember, Vec::new());
        // It is over by then.
        self.keeper.chore(call, Instant::now() + hold.lease, &self.courier);
        self.keeper.forget(hold);
    }

    /// For how long the server remembers a release: as long as it may be repeated, or as a request
    /// for the lock may still arrive.
    pub(crate) fn remember(&self, lease: Duration, doubtful: bool) -> Duration {
        let settings = &self.settings;
        match doubtful {
            true => LATE.max(lease),
            false => settings.checkout_timeout + 2 * settings.response_timeout,
        }
    }
}

/// What came of a release.
pub(crate) struct Released {
    released: Result<(), LockError>,
    /// The lock was known to be lost.
    before: Option<LostReason>,
}

impl Released {
    /// Logs it, once nothing is left to be done.
    pub(crate) fn log(self) -> Result<(), LockError> {
        match (&self.released, self.before) {
            (Ok(()), None) => tracing::debug!("lock released"),
            (Err(LockError::Lost { why }), None) => tracing::warn!(%why, "lock lost"),
            (Err(_), None) => {}
            (_, Some(why)) => return Err(LockError::Lost { why }),
        }
        self.released
    }
}

/// An answer that none of our scripts gives.
pub(crate) fn strange(during: &'static str) -> LockError {
    LockError::Connection {
        during,
        source: ConnectionError::unexpected("an answer of another kind"),
    }
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
