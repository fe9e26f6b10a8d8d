//! The shared state of a session manager's locks: connections, the two threads, the waiters.
//!
//! The threads end with the last lock, guard and session manager.

use std::future::ready;
use std::sync::Arc;
use std::time::Instant;

use crate::lock::client::ScriptClient;
use crate::lock::io::LockIo;
use crate::lock::renewer::LeaseRenewer;
use crate::lock::thread_waiters::{NextThread, ThreadRegistration, ThreadWaiters};
use crate::lock::wakeups::ReleaseListener;
use crate::pool::pool::Pool;
use crate::pool::router::Router;
use crate::protocol::lock::acquire::LockRequest;
use crate::settings::settings::Settings;
use crate::status::locks::{LockCounters, LockStatus};
use crate::sync::binary_semaphore::BinarySemaphore;
use crate::sync::cancel;
use crate::sync::now::now;

/// The shared state of a session manager's locks.
pub(crate) struct LockManager {
    pub(crate) client: ScriptClient,
    pub(crate) settings: Arc<Settings>,
    pub(crate) counters: Arc<LockCounters>,
    pub(crate) renewer: LeaseRenewer,
    pub(crate) waiters: Arc<ThreadWaiters>,
    pub(crate) listener: ReleaseListener,
}

impl LockManager {
    /// `own` has at most one connection to each master, for renewals and releases.
    pub(crate) fn new(pooled: Router, own: Router) -> Self {
        let settings = Arc::clone(pooled.settings());
        let waiters = Arc::new(ThreadWaiters::new(settings.process.clone()));
        let listener = ReleaseListener::new(pooled.clone(), Arc::clone(&waiters));
        let counters = LockCounters::named_after(&own.counters().metrics);
        let client = ScriptClient::new(pooled, own);
        let renewer = LeaseRenewer::new(client.clone());
        Self { client, settings, counters, renewer, waiters, listener }
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
            releasing: self.renewer.releasing(),
            ..self.counters.status()
        }
    }
}

impl LockIo for LockManager {
    type Pool = Pool;
    type Renewals = LeaseRenewer;
    type Waiter = ThreadRegistration;
    type NextWaiter = NextThread;
    type Changes = BinarySemaphore;

    fn client(&self) -> &ScriptClient {
        &self.client
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn counters(&self) -> &Arc<LockCounters> {
        &self.counters
    }

    fn renewals(&self) -> &LeaseRenewer {
        &self.renewer
    }

    fn join(&self, request: &LockRequest, owner_token: &str) -> ThreadRegistration {
        let next_holder = request.next_holder(owner_token);
        ThreadWaiters::join(&self.waiters, &request.names.wake, owner_token, next_holder)
    }

    fn join_live(&self, request: &LockRequest, owner_token: &str) -> Option<ThreadRegistration> {
        let next_holder = request.next_holder(owner_token);
        ThreadWaiters::join_live(&self.waiters, &request.names.wake, owner_token, next_holder)
    }

    fn next_waiter(&self, channel: &str) -> Option<NextThread> {
        self.waiters.next_holder(channel)
    }

    fn listen(&self, limit: Instant) -> impl Future<Output = ()> + Send {
        self.listener.listen(&self.client, limit);
        ready(())
    }

    fn settle(
        changes: &BinarySemaphore,
        by: Instant,
    ) -> impl Future<Output = Option<impl Send>> + Send {
        ready(changes.acquire(by))
    }

    fn clean_up(&self, rest: impl Future<Output = ()> + Send + 'static) {
        cancel::suspended(|| now(rest));
    }

    fn finish<T: Send>(rest: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
        ready(cancel::suspended(|| now(rest)))
    }
}
