//! The waiters of this process, and which of them a release wakes.
//!
//! A message about a release wakes one waiter. A waiter that leaves after it was woken passes the
//! wakeup on, unless it has taken the lock and will release it. So each release leads to a request
//! while any caller waits. If several permits become free at once, each waiter that takes its own
//! wakes the next one, and a waiter that needs more than are free wakes one that needs fewer. A waiter, its
//! channel and its wakeup end with its [`Registration`].
//!
//! A release of this process gives the lock to a waiter of this process, in the same request, and publishes
//! nothing. Waiters of other processes get their message after at most [`MAX_GIVEN`] such releases. A waiter
//! knows from then on that it may hold the lock, also if the reply to that request is lost. As long as a copy
//! of the request may arrive, it asks from time to time: no message comes if the request gives it the lock.

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/waiters.rs"]
mod model;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::lock::given::{Given, GivenLock};
use crate::lock::io::{MAX_DELAY_IN_FLIGHT, NextWaiter, Waiter};
use crate::process::current::Process;
use crate::protocol::lock::acquire::WakeFilter;
use crate::protocol::lock::lease::NextHolder;
use crate::protocol::retry::Backoff;
use crate::sync::shim::{Arc, Mutex, lock};

/// Time for which a channel stays subscribed without a waiter: waiters come and go.
const UNSUBSCRIBE_DELAY: Duration = Duration::from_millis(200);

/// Time for which the listener stays connected without a waiter.
pub(crate) const LISTENER_IDLE: Duration = Duration::from_secs(5);
/// Time without a message after which the listener checks its connection by PING.
pub(crate) const LISTENER_QUIET: Duration = Duration::from_secs(2);
/// Maximum delay between two attempts of the listener to connect.
pub(crate) const LISTENER_PAUSE: Duration = Duration::from_millis(250);

/// The delays between attempts of the listener to connect.
pub(crate) fn listener_pauses() -> Backoff {
    Backoff::new(LISTENER_PAUSE / 32, LISTENER_PAUSE)
}

/// Maximum delay until a waiter notices that a release may have given it the lock, and between its requests as
/// long as one may: the release may have no reply, or its task may not be polled.
const GIVEN_PAUSE: Duration = Duration::from_millis(500);

/// Maximum number of successive releases that give the lock to a waiter of the same process.
pub(crate) const MAX_GIVEN: u32 = 16;

/// How a waiting caller is notified.
pub(crate) trait Notifier: Default + Send + Sync {
    /// Ends the caller's wait, or its next one: its flags have changed.
    fn notify(&self);

    /// Waits until [`Flags::take_reason`] returns true, or until `until`; false: it did not. Dropped
    /// before its end, it has taken no reason.
    fn wait(&self, flags: &Mutex<Flags>, until: Instant) -> impl Future<Output = bool> + Send;
}

/// The waiters of all locks, by channel.
pub(crate) struct Waiters<N> {
    channels: Mutex<HashMap<String, Channel<N>>>,
    process: Process,
}

struct Channel<N> {
    queue: VecDeque<Arc<LockWaiter<N>>>,
    /// The channel is subscribed.
    live: bool,
    /// Time since which the channel has no waiter.
    idle: Option<Instant>,
    /// Number of releases that gave the lock to a waiter here since the last one that did not.
    given: u32,
}

struct LockWaiter<N> {
    /// In a forked child a mutex may stay locked, and the waiter belongs to the parent.
    process: Process,
    owner_token: String,
    /// How a release may give it the lock.
    next_holder: Option<NextHolder>,
    flags: Mutex<Flags>,
    notifier: N,
}

/// The reasons of a waiter to send a request.
#[derive(Default)]
pub(crate) struct Flags {
    /// A release woke the waiter, which has not noticed yet.
    pending: bool,
    /// The waiter has noticed, and no request of it has had a reply since.
    consumed: bool,
    /// The waiter has to send a request, although no release is known.
    recheck: bool,
    /// The waiter waits, and sends no request.
    waits: bool,
    /// A release is under way that is to give it the lock.
    giving: bool,
    /// Instant until which a copy of a release without a reply may arrive and give it the lock.
    late_until: Option<Instant>,
    given: Option<GivenLock>,
}

/// The changes that the listener has to make.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) subscribe: Vec<String>,
    pub(crate) unsubscribe: Vec<String>,
}

impl Flags {
    /// Returns whether a release may give the waiter the lock, or may have done so.
    fn may_be_given(&self) -> bool {
        self.giving || self.late_until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes the lock that a release has given to the waiter.
    fn take_given(&mut self) -> Given {
        match self.given.take() {
            Some(given) => Given::Yes(given),
            None if self.may_be_given() => Given::Maybe,
            None => Given::No,
        }
    }

    /// Returns whether there is a reason to send a request, and takes it.
    pub(crate) fn take_reason(&mut self) -> bool {
        if self.given.is_some() {
            return true;
        }
        if std::mem::take(&mut self.pending) {
            (self.consumed, self.recheck) = (true, false);
            return true;
        }
        std::mem::take(&mut self.recheck)
    }
}

#[cfg(test)]
impl<N> Default for Waiters<N> {
    fn default() -> Self {
        Self::new(Process::here())
    }
}

impl<N> Waiters<N> {
    /// The waiters of a session manager that this process made.
    pub(crate) fn new(process: Process) -> Self {
        Self { channels: Mutex::default(), process }
    }
}

impl<N: Notifier> Waiters<N> {
    /// Queues a waiter for the messages on `channel`.
    pub(crate) fn join(
        this: &Arc<Self>,
        channel: &str,
        owner_token: &str,
        next_holder: Option<NextHolder>,
    ) -> Registration<N> {
        let mut channels = lock(&this.channels);
        let entered = channels.entry(channel.to_owned()).or_default();
        Self::enter(this, entered, channel, (owner_token, next_holder))
    }

    /// The same, if the channel is already subscribed.
    pub(crate) fn join_live(
        this: &Arc<Self>,
        channel: &str,
        owner_token: &str,
        next_holder: Option<NextHolder>,
    ) -> Option<Registration<N>> {
        let mut channels = lock(&this.channels);
        let live = channels.get_mut(channel).filter(|channel| channel.live)?;
        Some(Self::enter(this, live, channel, (owner_token, next_holder)))
    }

    fn enter(
        this: &Arc<Self>,
        channel: &mut Channel<N>,
        name: &str,
        (owner_token, next_holder): (&str, Option<NextHolder>),
    ) -> Registration<N> {
        // Releases since the caller's last request woke other waiters.
        let flags = Flags { recheck: channel.live, ..Flags::default() };
        let waiter = Arc::new(LockWaiter {
            process: this.process.clone(),
            owner_token: owner_token.to_owned(),
            next_holder,
            flags: Mutex::new(flags),
            notifier: N::default(),
        });
        channel.idle = None;
        channel.queue.push_back(Arc::clone(&waiter));
        let waiters = Arc::clone(this);
        Registration { waiters, channel: name.to_owned(), waiter, has_lock: false }
    }

    /// Selects the waiter to which a release is to give the lock. `None`: the release is published.
    pub(crate) fn next_holder(&self, channel: &str) -> Option<Giving<N>> {
        let mut channels = lock(&self.channels);
        let channel = channels.get_mut(channel)?;
        if channel.given >= MAX_GIVEN {
            channel.given = 0;
            return None;
        }
        let giving = channel.queue.iter().find_map(LockWaiter::choose)?;
        channel.given += 1;
        Some(giving)
    }

    /// Wakes the waiter that a published release names, or else the first one.
    pub(crate) fn released(&self, channel: &str, to: &str) {
        let mut channels = lock(&self.channels);
        let fits = |waiter: &LockWaiter<N>| to.is_empty() || waiter.owner_token == to;
        let woken = channels.get_mut(channel).and_then(|channel| {
            channel.given = 0;
            channel.wake(fits)
        });
        drop(channels);
        notify(woken);
    }

    /// Records that the channel is subscribed: every waiter sends one request, because it may have
    /// missed a message. Returns whether the channel is still wanted.
    pub(crate) fn live(&self, channel: &str) -> bool {
        let mut channels = lock(&self.channels);
        let Some(channel) = channels.get_mut(channel) else { return false };
        channel.live = true;
        let woken = channel.recheck();
        drop(channels);
        notify(woken);
        true
    }

    /// Records that no message arrives any more.
    pub(crate) fn down(&self) {
        let mut channels = lock(&self.channels);
        channels.retain(|_, channel| !channel.queue.is_empty());
        let mut woken = Vec::new();
        for channel in channels.values_mut() {
            if std::mem::take(&mut channel.live) {
                woken.extend(channel.recheck());
            }
        }
        drop(channels);
        notify(woken);
    }

    /// Returns the channels to subscribe to, and to unsubscribe from.
    pub(crate) fn changes(&self) -> Changes {
        let mut channels = lock(&self.channels);
        let mut changes = Changes::default();
        let now = Instant::now();
        channels.retain(|name, channel| {
            let over = channel.idle.is_some_and(|since| now - since >= UNSUBSCRIBE_DELAY);
            if over && channel.live {
                changes.unsubscribe.push(name.clone());
            } else if !over && !channel.live {
                changes.subscribe.push(name.clone());
            }
            !over
        });
        changes
    }

    /// Returns when the first subscribed channel without a waiter is to be unsubscribed from.
    #[cfg(feature = "tokio")]
    pub(crate) fn next_unsubscribe(&self) -> Option<Instant> {
        let channels = lock(&self.channels);
        channels
            .values()
            .filter_map(|channel| channel.idle)
            .min()
            .map(|idle| idle + UNSUBSCRIBE_DELAY)
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.channels).is_empty()
    }

    pub(crate) fn waiting(&self) -> usize {
        lock(&self.channels).values().map(|channel| channel.queue.len()).sum()
    }

    /// Returns the number of subscribed channels.
    pub(crate) fn subscriptions(&self) -> usize {
        lock(&self.channels).values().filter(|channel| channel.live).count()
    }

    /// Returns the number of wakeups that a waiter has received and not acted on.
    pub(crate) fn wakeups(&self) -> usize {
        let channels = lock(&self.channels);
        let waiters = channels.values().flat_map(|channel| &channel.queue);
        let out = |waiter: &Arc<LockWaiter<N>>| {
            let flags = lock(&waiter.flags);
            usize::from(flags.pending) + usize::from(flags.consumed)
        };
        waiters.map(out).sum()
    }
}

impl<N> Default for Channel<N> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), live: false, idle: None, given: 0 }
    }
}

impl<N: Notifier> Channel<N> {
    /// Wakes the first matching waiter that has not been woken since its last request, and returns it
    /// for [`notify`]. If all have been woken, each of them will still send a request.
    fn wake(&self, fits: impl Fn(&LockWaiter<N>) -> bool) -> Option<Arc<LockWaiter<N>>> {
        let asleep = |waiter: &&Arc<LockWaiter<N>>| {
            fits(waiter) && !std::mem::replace(&mut lock(&waiter.flags).pending, true)
        };
        self.queue.iter().find(asleep).cloned()
    }

    /// Has all waiters send a request, and returns them for [`notify`].
    fn recheck(&self) -> Vec<Arc<LockWaiter<N>>> {
        self.queue.iter().for_each(|waiter| lock(&waiter.flags).recheck = true);
        self.queue.iter().cloned().collect()
    }
}

/// Notifies waiters whose flags have changed. No mutex is locked: a notification may run other code.
fn notify<N: Notifier>(woken: impl IntoIterator<Item = Arc<LockWaiter<N>>>) {
    woken.into_iter().for_each(|waiter| waiter.notifier.notify());
}

impl<N> LockWaiter<N> {
    /// Has a release give it the lock, unless it is about to send a request.
    fn choose(self: &Arc<Self>) -> Option<Giving<N>>
    where
        N: Notifier,
    {
        let next_holder = self.next_holder.as_ref()?;
        let mut flags = lock(&self.flags);
        let asks = !flags.waits || flags.pending || flags.recheck;
        if asks || flags.giving || flags.given.is_some() {
            return None;
        }
        flags.giving = true;
        Some(Giving { waiter: Arc::clone(self), next_holder: next_holder.clone() })
    }
}

/// A release that gives the lock to a waiter. Dropped without an outcome, it has the waiter send a
/// request: the server knows whether it holds the lock.
pub(crate) struct Giving<N: Notifier> {
    waiter: Arc<LockWaiter<N>>,
    next_holder: NextHolder,
}

impl<N: Notifier> NextWaiter for Giving<N> {
    fn next_holder(&self) -> &NextHolder {
        &self.next_holder
    }

    fn give(self, given: GivenLock) {
        // The drop notifies the waiter. A waiter that has left releases the lock.
        let mut flags = lock(&self.waiter.flags);
        (flags.giving, flags.given) = (false, Some(given));
    }

    fn not_given(self) {
        let mut flags = lock(&self.waiter.flags);
        (flags.giving, flags.recheck) = (false, true);
    }
}

impl<N: Notifier> Drop for Giving<N> {
    fn drop(&mut self) {
        if self.waiter.process.is_forked_child() {
            return;
        }
        let mut flags = lock(&self.waiter.flags);
        if std::mem::take(&mut flags.giving) {
            flags.recheck = true;
            flags.late_until = Some(Instant::now() + MAX_DELAY_IN_FLIGHT);
        }
        drop(flags);
        self.waiter.notifier.notify();
    }
}

/// A place among the waiters. Its drop leaves it and passes an unused wakeup on.
pub(crate) struct Registration<N: Notifier> {
    waiters: Arc<Waiters<N>>,
    channel: String,
    waiter: Arc<LockWaiter<N>>,
    has_lock: bool,
}

impl<N: Notifier> Waiter for Registration<N> {
    fn is_live(&self) -> bool {
        lock(&self.waiters.channels).get(&self.channel).is_some_and(|channel| channel.live)
    }

    fn checked(&self) {
        lock(&self.waiter.flags).recheck = false;
    }

    fn busy(&self, wake_filter: Option<WakeFilter>) {
        let had = std::mem::take(&mut lock(&self.waiter.flags).consumed);
        if had && let Some(filter) = wake_filter {
            self.pass_on(filter);
        }
    }

    async fn wait(&self, until: Instant) -> bool {
        let flags = &self.waiter.flags;
        lock(flags).waits = true;
        let woken = loop {
            let next_look = match self.waiter.next_holder {
                Some(_) => until.min(Instant::now() + GIVEN_PAUSE),
                None => until,
            };
            let woken = self.waiter.notifier.wait(flags, next_look).await;
            let now = Instant::now();
            // Before the look: the wait was cancelled.
            if woken || now < next_look || now >= until {
                break woken;
            }
            if lock(flags).may_be_given() {
                break true;
            }
        };
        lock(flags).waits = false;
        woken
    }

    fn take_given(&self) -> Given {
        lock(&self.waiter.flags).take_given()
    }

    fn acquired(mut self, shared: bool) {
        self.has_lock = !shared;
    }

    fn leave(mut self) -> bool {
        self.leave_queue() != Given::No
    }
}

impl<N: Notifier> Registration<N> {
    fn pass_on(&self, filter: WakeFilter) {
        let channels = lock(&self.waiters.channels);
        let woken = channels
            .get(&self.channel)
            .and_then(|channel| channel.wake(|waiter| filter.fits(&waiter.owner_token)));
        drop(channels);
        notify(woken);
    }
}

impl<N: Notifier> Drop for Registration<N> {
    fn drop(&mut self) {
        let _: Given = self.leave_queue();
    }
}

impl<N: Notifier> Registration<N> {
    /// Leaves the queue, and returns whether a release has given the waiter the lock.
    fn leave_queue(&mut self) -> Given {
        if self.waiter.process.is_forked_child() {
            return Given::No;
        }
        let mut channels = lock(&self.waiters.channels);
        let Some(channel) = channels.get_mut(&self.channel) else { return Given::No };
        channel.queue.retain(|queued| !Arc::ptr_eq(queued, &self.waiter));
        if channel.queue.is_empty() {
            channel.idle = Some(Instant::now());
        }
        // Under the same mutex as a message: the message found this waiter in the queue, or did
        // not.
        let mut flags = std::mem::take(&mut *lock(&self.waiter.flags));
        let passes_on = flags.pending || (flags.consumed && !self.has_lock);
        let woken = if passes_on { channel.wake(|_| true) } else { None };
        drop(channels);
        notify(woken);
        flags.take_given()
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::protocol::lock::lease::Timing;

    /// A waiter that is polled by the test.
    #[derive(Default)]
    struct Polled;

    impl Notifier for Polled {
        fn notify(&self) {}

        async fn wait(&self, flags: &Mutex<Flags>, until: Instant) -> bool {
            poll_fn(|_| match lock(flags).take_reason() {
                true => Poll::Ready(true),
                false if Instant::now() >= until => Poll::Ready(false),
                false => Poll::Pending,
            })
            .await
        }
    }

    /// Returns whether the waiter waits on.
    fn waits(waiter: &Registration<Polled>) -> bool {
        let wait = pin!(waiter.wait(Instant::now() + Duration::from_secs(60)));
        wait.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    fn joined(waiters: &Arc<Waiters<Polled>>) -> Registration<Polled> {
        let lease = Duration::from_secs(1);
        let next_holder = NextHolder { owner_token: "x".to_owned(), lease, label: None };
        Waiters::join(waiters, "wake", "x", Some(next_holder))
    }

    #[test]
    fn a_waiter_that_a_failed_release_did_not_reach_is_given_the_lock_by_the_next_one() {
        let waiters = Arc::default();
        let waiter = joined(&waiters);
        assert!(waits(&waiter));
        let release = waiters.next_holder("wake").unwrap();
        assert!(waiters.next_holder("wake").is_none(), "one release at a time gives it the lock");
        drop(release);
        assert!(!waits(&waiter), "it asks");
        assert_eq!(waiter.take_given(), Given::Maybe);
        assert!(waits(&waiter));
        let timing = Timing { sent: Instant::now(), took: Duration::ZERO };
        let given = GivenLock { fencing: 1, timing, repeated: false };
        waiters.next_holder("wake").unwrap().give(given);
        assert!(!waits(&waiter));
        assert_eq!(waiter.take_given(), Given::Yes(given));
        assert_eq!(waiter.take_given(), Given::Maybe, "the first release may still arrive");
        assert!(waiter.leave());
    }

    #[test]
    fn a_waiter_keeps_its_wakeup_until_its_request_has_a_reply() {
        for has_reply in [false, true] {
            let waiters = Arc::default();
            let (first, second) = (joined(&waiters), joined(&waiters));
            assert!(waits(&first) && waits(&second));
            waiters.released("wake", "");
            assert!(!waits(&first) && waits(&second), "one asks");
            if has_reply {
                first.busy(None);
            }
            assert!(waits(&first), "until it asks again");
            drop(first);
            assert_eq!(waits(&second), has_reply);
        }
    }

    #[test]
    fn a_forked_childs_drops_lock_nothing() {
        let waiters = Arc::new(Waiters::new(Process::another()));
        let waiter = joined(&waiters);
        assert!(waits(&waiter));
        let giving = waiters.next_holder("wake").unwrap();
        // As they are if another thread of the parent had locked them.
        let (kept, channels) = (Arc::clone(&waiter.waiter), lock(&waiters.channels));
        let flags = lock(&kept.flags);
        std::thread::scope(|scope| {
            let child = scope.spawn(|| {
                drop(giving);
                drop(waiter);
            });
            let begun = Instant::now();
            while !child.is_finished() && begun.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
            assert!(child.is_finished(), "a drop waits for a mutex");
        });
        drop((flags, channels));
    }

    #[test]
    fn a_waiter_that_a_release_did_not_choose_holds_nothing() {
        let waiters = Arc::default();
        let waiter = joined(&waiters);
        assert!(waits(&waiter));
        waiters.next_holder("wake").unwrap().not_given();
        assert!(!waits(&waiter), "it asks");
        assert_eq!(waiter.take_given(), Given::No);
        assert!(!waiter.leave());
    }
}
