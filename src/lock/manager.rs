//! The shared state of a session manager's locks: connections, the two threads, the waiters.
//!
//! The threads end with the last lock, guard and session manager.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::any::Error;
use crate::error::lock::{LockError, LostReason};
use crate::lock::client::{ScriptClient, Via};
use crate::lock::lease::LockLease;
use crate::lock::renewal::LeaseRenewer;
use crate::lock::waiters::Waiters;
use crate::lock::wakeups::ReleaseListener;
use crate::pool::router::Router;
use crate::protocol::lock::keys::LockKeys;
use crate::protocol::lock::lease::release;
use crate::settings::settings::Settings;
use crate::status::locks::{LockCounters, LockStatus};

/// Maximum time after which bytes sent on a lost connection can still arrive.
pub(crate) const MAX_DELAY_IN_FLIGHT: Duration = Duration::from_secs(60);

/// The shared state of a session manager's locks.
pub(crate) struct LockManager {
    pub(crate) client: ScriptClient,
    pub(crate) settings: Arc<Settings>,
    pub(crate) counters: Arc<LockCounters>,
    pub(crate) renewer: LeaseRenewer,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) listener: ReleaseListener,
}

impl LockManager {
    /// `own` has at most one connection to each master, for renewals and releases.
    pub(crate) fn new(pooled: Router, own: Router) -> Self {
        let settings = Arc::clone(pooled.settings());
        let waiters = Arc::<Waiters>::default();
        let listener = ReleaseListener::new(pooled.clone(), Arc::clone(&waiters));
        let client = ScriptClient::new(pooled, own);
        let renewer = LeaseRenewer::new(client.clone());
        Self { client, settings, counters: Arc::default(), renewer, waiters, listener }
    }

    /// Stops all acquisitions. A waiting call is woken and fails at once.
    pub(crate) fn close(&self) {
        self.client.close();
        self.listener.close();
    }

    /// Waits until `deadline` for the guards to end and for the pending releases. From then on no
    /// lease is extended. Returns the number of held locks; their guards can still release them.
    pub(crate) fn end_renewals(&self, deadline: Instant) -> usize {
        self.renewer.end_renewals(deadline)
    }

    pub(crate) fn status(&self) -> LockStatus {
        self.counters.status(
            self.waiters.waiting(),
            self.waiters.subscriptions(),
            self.waiters.wakeups(),
        )
    }

    /// Releases a lock, by `limit` at the latest. If that fails, the release continues in the
    /// background. The call may be repeated if a log panicked during it. The result is for
    /// [`Released::log`].
    pub(crate) fn release(
        &self,
        lock_lease: &Arc<LockLease>,
        maybe_in_flight: bool,
        limit: Instant,
    ) -> Released {
        // From here on no renewal extends the lease.
        let before = lock_lease.end();
        let LockKeys { holders, .. } = &*lock_lease.names;
        let answered = self.renewer.take_answered(holders);
        let call = release(
            &lock_lease.names,
            &lock_lease.owner_token,
            self.remember(lock_lease.lease, maybe_in_flight),
            answered,
        );
        let reply = self.client.ask_one("release", &call, Via::OwnConnection, limit);
        let repeated = reply.as_ref().is_ok_and(|reply| reply.repeated);
        let released = match reply.and_then(|reply| reply.was_held("release")) {
            Ok(true) => Ok(()),
            Ok(false) => Err(LockError::lost(LostReason::Gone)),
            Err(error) => Err(error),
        };
        let is_answered = matches!(released, Ok(()) | Err(Error::Lock(LockError::Lost { .. })));
        if !is_answered {
            self.release_in_background(lock_lease, maybe_in_flight);
        } else if !maybe_in_flight && !repeated {
            // No copy of a request is in flight that needs the same reply.
            self.renewer.answered(lock_lease.names.done(&lock_lease.owner_token));
        }
        // This comes last: a closed session manager ends its connections with the last lease.
        self.renewer.forget(lock_lease);
        if let (Err(Error::Lock(LockError::Lost { .. })), None) = (&released, before) {
            self.counters.lost.add();
        }
        Released { released, before }
    }

    /// Releases a lock in the background, and logs nothing.
    pub(crate) fn release_in_background(&self, lock_lease: &Arc<LockLease>, maybe_in_flight: bool) {
        lock_lease.end();
        let remember = self.remember(lock_lease.lease, maybe_in_flight);
        let call = release(&lock_lease.names, &lock_lease.owner_token, remember, Vec::new());
        // The lease has ended by then.
        self.renewer.pending_release(call, Instant::now() + lock_lease.lease);
        self.renewer.forget(lock_lease);
    }

    /// Returns the time for which the server remembers a release: as long as the release may be
    /// repeated, or a request for the lock may still arrive.
    pub(crate) fn remember(&self, lease: Duration, maybe_in_flight: bool) -> Duration {
        let settings = &self.settings;
        match maybe_in_flight {
            true => MAX_DELAY_IN_FLIGHT.max(lease),
            false => settings.checkout_timeout + 2 * settings.response_timeout,
        }
    }
}

/// The result of a release.
pub(crate) struct Released {
    released: Result<(), Error>,
    /// The loss of the lock, if it was known before.
    before: Option<LostReason>,
}

impl Released {
    /// Logs the result, after all other work is done.
    pub(crate) fn log(self) -> Result<(), Error> {
        match (&self.released, self.before) {
            (Ok(()), None) => tracing::debug!("lock released"),
            (Err(Error::Lock(LockError::Lost { why })), None) => tracing::warn!(%why, "lock lost"),
            (Err(_), None) => {}
            (_, Some(why)) => return Err(LockError::lost(why)),
        }
        self.released
    }
}
