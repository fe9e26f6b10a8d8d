//! The shared state of a session manager's locks: connections, the two threads, the waiters.
//!
//! The threads end with the last lock, guard and session manager.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::any::Error;
use crate::lock::client::{ScriptClient, Via};
use crate::lock::lease::LockLease;
use crate::lock::renewal::LeaseRenewer;
use crate::lock::waiters::Waiters;
use crate::lock::wakeups::ReleaseListener;
use crate::pool::router::Router;
use crate::protocol::lock::lease::release;
use crate::protocol::lock::script::ScriptCall;
use crate::settings::settings::Settings;
use crate::status::locks::{LockCounters, LockStatus};
use crate::sync::now::now;

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

    /// Returns the deadline of a call that begins now.
    pub(crate) fn call_deadline(&self) -> Instant {
        Instant::now() + self.settings.checkout_timeout + self.settings.response_timeout
    }

    /// Stops all acquisitions. A waiting call is woken and fails at once.
    pub(crate) fn close(&self) {
        self.client.close();
        self.listener.close();
    }

    pub(crate) fn status(&self) -> LockStatus {
        LockStatus {
            waiting: self.waiters.waiting(),
            subscriptions: self.waiters.subscriptions(),
            permits: self.waiters.wakeups(),
            ..self.counters.status()
        }
    }

    /// Releases a lock whose lease has ended here, by `limit` at the latest. If that fails, the
    /// release continues in the background. The call may be repeated if a log panicked during it.
    /// Returns whether the lock was still held.
    pub(crate) fn release(
        &self,
        lock_lease: &Arc<LockLease>,
        limit: Instant,
    ) -> Result<bool, Error> {
        let answered = self.renewer.take_answered(&lock_lease.names.holders);
        let call = self.release_call(lock_lease, answered);
        let reply = now(self.client.ask_one("release", &call, Via::OwnConnection, limit));
        let repeated = reply.as_ref().is_ok_and(|reply| reply.repeated);
        let was_held = reply.and_then(|reply| reply.was_held("release"));
        if was_held.is_err() {
            self.release_in_background(lock_lease);
        } else if !lock_lease.maybe_in_flight && !repeated {
            // No copy of a request is in flight that needs the same reply.
            self.renewer.answered(lock_lease.names.done(&lock_lease.owner_token));
        }
        // This comes last: a closed session manager ends its connections with the last lease.
        self.renewer.forget(lock_lease);
        was_held
    }

    /// Releases a lock in the background, and logs nothing.
    pub(crate) fn release_in_background(&self, lock_lease: &Arc<LockLease>) {
        lock_lease.end();
        let call = self.release_call(lock_lease, Vec::new());
        // The lease has ended by then.
        self.renewer.pending_release(call, Instant::now() + lock_lease.lease);
        self.renewer.forget(lock_lease);
    }

    fn release_call(&self, lock_lease: &LockLease, answered: Vec<String>) -> ScriptCall {
        let remember = self.remember(lock_lease.lease, lock_lease.maybe_in_flight);
        release(&lock_lease.names, &lock_lease.owner_token, remember, answered)
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
