//! What the decisions of locks wait for, as threads and tasks do it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::any::Error;
use crate::lock::client::ScriptClient;
use crate::lock::given::{Given, GivenLock};
use crate::lock::lease::LockLease;
use crate::pool::server_pool::ServerPool;
use crate::protocol::lock::acquire::{LockRequest, WakeFilter};
use crate::protocol::lock::lease::NextHolder;
use crate::protocol::lock::script::ScriptCall;
use crate::settings::settings::Settings;
use crate::status::locks::LockCounters;

/// Maximum time after which bytes sent on a lost connection can still arrive.
pub(crate) const MAX_DELAY_IN_FLIGHT: Duration = Duration::from_secs(60);

/// The locks of a session manager.
pub(crate) trait LockIo: Sized + Send + Sync + 'static {
    type Pool: ServerPool;
    type Renewals: Renewals;
    type Waiter: Waiter;
    type NextWaiter: NextWaiter;
    /// The order of the changes of a semaphore's number of permits.
    type Changes: Default + Send + Sync;

    fn client(&self) -> &ScriptClient<Self::Pool>;

    fn settings(&self) -> &Settings;

    fn counters(&self) -> &Arc<LockCounters>;

    fn renewals(&self) -> &Self::Renewals;

    /// Queues a waiter for the messages about releases of the lock.
    fn join(&self, request: &LockRequest, owner_token: &str) -> Self::Waiter;

    /// The same, if its channel is already subscribed.
    fn join_live(&self, request: &LockRequest, owner_token: &str) -> Option<Self::Waiter>;

    /// Selects the waiter here to which a release of the lock is to give it.
    fn next_waiter(&self, channel: &str) -> Option<Self::NextWaiter>;

    /// Has the channel of a new waiter subscribed soon; it may be subscribed even if the future is
    /// dropped.
    fn listen(&self, limit: Instant) -> impl Future<Output = ()> + Send;

    /// Waits until no other caller changes the number of permits. No caller changes it until the result is
    /// dropped, on tasks for ten seconds. `None`: `by` is over, or the thread was cancelled. A future that is dropped before its end
    /// keeps no caller waiting.
    fn settle(
        changes: &Self::Changes,
        by: Instant,
    ) -> impl Future<Output = Option<impl Send>> + Send;

    /// Runs the rest of a call that ended without a lock, or the release of a dropped guard. Threads
    /// wait for its end. Tasks have it run in the background, and drop it if no runtime runs it; its
    /// drop then records what is left to send.
    fn clean_up(&self, rest: impl Future<Output = ()> + Send + 'static);

    /// Runs the rest of a call, for which the caller waits. A cancellation does not end it.
    fn finish<T: Send>(rest: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
        rest
    }

    /// Returns the deadline of a call that begins now.
    fn call_deadline(&self) -> Instant {
        let settings = self.settings();
        Instant::now() + settings.checkout_timeout + settings.response_timeout
    }

    /// Returns the time for which the server remembers a release: as long as the release may be
    /// repeated, or a request for the lock may still arrive.
    fn remember(&self, lease: Duration, maybe_in_flight: bool) -> Duration {
        let settings = self.settings();
        match maybe_in_flight {
            true => MAX_DELAY_IN_FLIGHT.max(lease),
            false => settings.checkout_timeout + 2 * settings.response_timeout,
        }
    }
}

/// A place among the waiters for a lock. Its drop leaves it and passes an unused wakeup on.
pub(crate) trait Waiter: Send + Sync {
    /// Returns whether a message about a release would arrive.
    fn is_live(&self) -> bool;

    /// Records that the caller has sent a request after it joined.
    fn checked(&self);

    /// Records the reply to a request: others have the lock, one of which will release it. With a `wake_filter`
    /// the wakeup is passed to waiters that can still use it, such as readers behind a writer.
    fn busy(&self, wake_filter: Option<WakeFilter>);

    /// Waits until there is a reason to send a request, or until `until`; false: there is none.
    ///
    /// A waiter to which a release may have given the lock has a reason from time to time.
    ///
    /// After a request that failed, the wakeup for it is kept. If the future is dropped, the place stays until
    /// the waiter is dropped.
    fn wait(&self, until: Instant) -> impl Future<Output = bool> + Send;

    /// Returns whether a release has given it the lock. Until it waits again, none will.
    fn take_given(&self) -> Given;

    /// Leaves with the lock. If the lock is `shared`, the next waiter may be able to join.
    fn acquired(self, shared: bool);

    /// Leaves without it, and returns whether a release may have given it.
    fn leave(self) -> bool;
}

/// A waiter to which a release is to give the lock. Without an outcome it sends a request.
pub(crate) trait NextWaiter: Send {
    fn next_holder(&self) -> &NextHolder;

    /// The release has given it the lock.
    fn give(self, given: GivenLock);

    /// The release has given it nothing, and no copy of it will.
    fn not_given(self);
}

/// The renewal of leases in the background. No method waits for a server.
pub(crate) trait Renewals: Send + Sync {
    /// Starts the renewal before there is a lease that needs it. The drop of the result ends the
    /// acquisition.
    fn begin_acquisition(&self) -> Result<impl Drop + Send, Error>;

    /// Extends the lease until [`forget`](Self::forget).
    fn watch(&self, lock_lease: &Arc<LockLease>);

    /// Ends the renewal of the lease: nothing of it is left on the server.
    fn forget(&self, lock_lease: &Arc<LockLease>);

    /// Sends `call` in the background until a reply arrives, or until the call makes no difference.
    fn pending_release(&self, call: ScriptCall, until: Instant);

    /// Records that the reply to a release has arrived; the server remembers that release by `key`.
    fn answered(&self, key: String);

    /// Returns keys of answered releases that a release of `holders` deletes too; in a cluster only
    /// keys of its slot.
    fn take_answered(&self, holders: &str) -> Vec<String>;

    /// Returns whether leases are extended.
    fn extends(&self) -> bool;
}
