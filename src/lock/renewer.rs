//! The thread that extends leases: one for all locks of a session manager, while there are any.
//!
//! A guard's loss is reported in time, even while the thread waits. A panic in the user's log ends
//! no work.

use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use scopeguard::guard;

use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::lock::client::ScriptClient;
use crate::lock::io::Renewals;
use crate::lock::lease::LockLease;
use crate::lock::renewal::{Due, IDLE, RenewalState, forget};
use crate::process::worker::{BackgroundWorker, Locked, Next, Shared, Work};
use crate::protocol::lock::script::ScriptCall;
use crate::sync::now::now;

/// The thread that extends leases, if it runs.
pub(crate) struct LeaseRenewer {
    client: ScriptClient,
    worker: BackgroundWorker<RenewalState>,
}

impl Renewals for LeaseRenewer {
    fn begin_acquisition(&self) -> Result<impl Drop + Send, Error> {
        let mut state = self.worker.lock();
        if !state.extends() {
            return Err(CheckoutError::Closed.into());
        }
        let no_thread = "the system started no thread to extend the lease";
        self.start(&mut state).map_err(|_| Error::lock_refused("thread", no_thread))?;
        state.begin_acquisition();
        Ok(guard((), |()| {
            // In a forked child the mutex may stay locked.
            if self.client.own().settings().is_forked_child() {
                return;
            }
            let mut state = self.worker.lock();
            state.end_acquisition();
            self.wake_if_closing(&state);
        }))
    }

    fn watch(&self, lock_lease: &Arc<LockLease>) {
        let mut state = self.worker.lock();
        let next = state.watch(lock_lease);
        self.wake_by(state, next);
    }

    fn forget(&self, lock_lease: &Arc<LockLease>) {
        let mut state = self.worker.lock();
        let forgotten = state.forget(lock_lease);
        self.wake_if_closing(&state);
        drop(state);
        drop(forgotten);
    }

    fn pending_release(&self, call: ScriptCall, until: Instant) {
        let mut state = self.worker.lock();
        if let Some(next) = state.add_release(call, until) {
            self.wake_by(state, next);
        }
    }

    fn answered(&self, key: String) {
        let mut state = self.worker.lock();
        if let Some(at) = state.add_answered(key) {
            self.wake_by(state, at);
        }
    }

    fn take_answered(&self, holders: &str) -> Vec<String> {
        self.worker.lock().take_answered(holders, self.client.is_in_cluster())
    }

    fn extends(&self) -> bool {
        self.worker.lock().extends()
    }
}

impl LeaseRenewer {
    pub(crate) fn new(client: ScriptClient) -> Self {
        Self { client, worker: BackgroundWorker::new("rediscope-leases", RenewalState::default()) }
    }

    /// Waits until no guard lives and no release is pending, or until `deadline`. From then on no
    /// lease is extended. Returns the number of held locks; their guards can still release them.
    pub(crate) fn end_renewals(&self, deadline: Instant) -> usize {
        let mut state = self.worker.lock();
        while !state.is_idle() && Instant::now() < deadline {
            // Releases by other threads send no notification here.
            let pause = Instant::now() + Duration::from_millis(1);
            state = self.worker.wait(state, deadline.min(pause));
        }
        let (held, answered, finishes) = state.end_renewals();
        self.worker.wake();
        if finishes {
            drop(state);
        } else {
            // The thread notices when the last lease is gone.
            self.wake_by(state, Instant::now());
        }
        now(forget(answered, None, &self.client));
        if finishes {
            finish(&self.client);
        }
        held
    }

    /// Returns the number of releases that have no reply yet.
    pub(crate) fn releasing(&self) -> usize {
        self.worker.lock().releasing()
    }

    /// Wakes the thread by `next` at the latest.
    fn wake_by(&self, mut state: MutexGuard<'_, Locked<RenewalState>>, next: Instant) {
        let started = self.start(&mut state);
        self.worker.wake_by(&state, next);
        drop(state);
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to extend leases; they end unextended");
        }
    }

    /// After the close, the thread ends the connections when the last lock is gone.
    fn wake_if_closing(&self, state: &RenewalState) {
        if !state.extends() {
            self.worker.wake();
        }
    }

    fn start(&self, state: &mut Locked<RenewalState>) -> std::io::Result<()> {
        self.worker.start(state, || Renewal { client: self.client.clone() })
    }
}

/// Closes the connections for renewals and releases; nothing is sent any more.
fn finish(client: &ScriptClient) {
    let own = client.own();
    own.close();
    own.drain(Instant::now());
    own.stop_connecting();
}

/// The thread's work.
struct Renewal {
    client: ScriptClient,
}

impl Work for Renewal {
    type State = RenewalState;
    type Job = Due;
    const IDLE: Duration = IDLE;

    fn next(&mut self, state: &mut RenewalState, now: Instant) -> Next<Due> {
        state.next(now)
    }

    fn run(&mut self, shared: &Shared<RenewalState>, due: Due) {
        let finishes = due.finishes;
        now(due.run(&self.client, |releases| {
            shared.lock().end_releases(&releases);
            shared.wake();
        }));
        if finishes {
            finish(&self.client);
        }
    }
}
