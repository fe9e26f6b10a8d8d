//! The waiters of this process, and which of them a release wakes.
//!
//! A message about a release wakes one waiter. A waiter that leaves after it was woken passes the
//! wakeup on, unless it has taken the lock and will release it. So each release leads to a request
//! while any caller waits. A waiter, its channel and its wakeup end with its [`Registration`].

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/waiters.rs"]
mod model;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::lock::io::Waiter;
use crate::sync::shim::{Arc, Mutex, lock};

/// Time for which a channel stays subscribed without a waiter: waiters come and go.
const UNSUBSCRIBE_DELAY: Duration = Duration::from_millis(200);

/// How a waiting caller is notified.
pub(crate) trait Notifier: Default + Send + Sync {
    /// Ends the caller's wait, or its next one: its flags have changed.
    fn notify(&self);

    /// Waits until [`Flags::take_reason`] returns true, or until `until`; false: it did not. Dropped
    /// before its end, it has taken no reason.
    fn wait(&self, flags: &Mutex<Flags>, until: Instant) -> impl Future<Output = bool> + Send;
}

/// The waiters of all locks, by channel.
#[derive(Default)]
pub(crate) struct Waiters<N> {
    channels: Mutex<HashMap<String, Channel<N>>>,
}

struct Channel<N> {
    queue: VecDeque<Arc<LockWaiter<N>>>,
    /// The channel is subscribed.
    live: bool,
    /// Time since which the channel has no waiter.
    idle: Option<Instant>,
}

struct LockWaiter<N> {
    owner_token: String,
    flags: Mutex<Flags>,
    notifier: N,
}

/// The reasons of a waiter to send a request.
#[derive(Default)]
pub(crate) struct Flags {
    /// A release woke the waiter, which has not noticed yet.
    pending: bool,
    /// The waiter has noticed, and is sending a request.
    consumed: bool,
    /// The waiter has to send a request, although no release is known.
    recheck: bool,
}

/// The changes that the listener has to make.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) subscribe: Vec<String>,
    pub(crate) unsubscribe: Vec<String>,
}

impl Flags {
    /// Returns whether there is a reason to send a request, and takes it.
    pub(crate) fn take_reason(&mut self) -> bool {
        if std::mem::take(&mut self.pending) {
            (self.consumed, self.recheck) = (true, false);
            return true;
        }
        std::mem::take(&mut self.recheck)
    }
}

impl<N: Notifier> Waiters<N> {
    /// Queues a waiter for the messages on `channel`.
    pub(crate) fn join(&self, channel: &str, owner_token: &str) -> Registration<'_, N> {
        let mut channels = lock(&self.channels);
        self.enter(channels.entry(channel.to_owned()).or_default(), channel, owner_token)
    }

    /// The same, if the channel is already subscribed.
    pub(crate) fn join_live(
        &self,
        channel: &str,
        owner_token: &str,
    ) -> Option<Registration<'_, N>> {
        let mut channels = lock(&self.channels);
        let live = channels.get_mut(channel).filter(|channel| channel.live)?;
        Some(self.enter(live, channel, owner_token))
    }

    fn enter(
        &self,
        channel: &mut Channel<N>,
        name: &str,
        owner_token: &str,
    ) -> Registration<'_, N> {
        // Releases since the caller's last request woke other waiters.
        let flags = Flags { recheck: channel.live, ..Flags::default() };
        let waiter = Arc::new(LockWaiter {
            owner_token: owner_token.to_owned(),
            flags: Mutex::new(flags),
            notifier: N::default(),
        });
        channel.idle = None;
        channel.queue.push_back(Arc::clone(&waiter));
        Registration { waiters: self, channel: name.to_owned(), waiter, has_lock: false }
    }

    /// Wakes the waiter that a published release names, or else the first one.
    pub(crate) fn released(&self, channel: &str, to: &str) {
        if let Some(channel) = lock(&self.channels).get(channel) {
            channel.wake(|waiter| to.is_empty() || waiter.owner_token == to);
        }
    }

    /// Records that the channel is subscribed: every waiter sends one request, because it may have
    /// missed a message.
    pub(crate) fn live(&self, channel: &str) {
        if let Some(channel) = lock(&self.channels).get_mut(channel) {
            channel.live = true;
            channel.recheck();
        }
    }

    /// Records that no message arrives any more.
    pub(crate) fn down(&self) {
        let mut channels = lock(&self.channels);
        channels.retain(|_, channel| !channel.queue.is_empty());
        for channel in channels.values_mut() {
            if std::mem::take(&mut channel.live) {
                channel.recheck();
            }
        }
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
        Self { queue: VecDeque::new(), live: false, idle: None }
    }
}

impl<N: Notifier> Channel<N> {
    /// Wakes the first matching waiter that has not been woken since its last request. If all have
    /// been woken, each of them will still send a request.
    fn wake(&self, fits: impl Fn(&LockWaiter<N>) -> bool) {
        for waiter in self.queue.iter().filter(|waiter| fits(waiter)) {
            let mut flags = lock(&waiter.flags);
            if !flags.pending {
                flags.pending = true;
                waiter.notifier.notify();
                return;
            }
        }
    }

    fn recheck(&self) {
        for waiter in &self.queue {
            lock(&waiter.flags).recheck = true;
            waiter.notifier.notify();
        }
    }
}

/// A place among the waiters. Its drop leaves it and passes an unused wakeup on.
pub(crate) struct Registration<'w, N: Notifier> {
    waiters: &'w Waiters<N>,
    channel: String,
    waiter: Arc<LockWaiter<N>>,
    has_lock: bool,
}

impl<N: Notifier> Waiter for Registration<'_, N> {
    fn is_live(&self) -> bool {
        lock(&self.waiters.channels).get(&self.channel).is_some_and(|channel| channel.live)
    }

    fn checked(&self) {
        lock(&self.waiter.flags).recheck = false;
    }

    async fn wait(&self, until: Instant, wake_compatible: Option<fn(&str) -> bool>) -> bool {
        let had = std::mem::take(&mut lock(&self.waiter.flags).consumed);
        if had && let Some(fits) = wake_compatible {
            self.pass_on(fits);
        }
        self.waiter.notifier.wait(&self.waiter.flags, until).await
    }

    fn acquired(mut self, shared: bool) {
        self.has_lock = !shared;
    }
}

impl<N: Notifier> Registration<'_, N> {
    fn pass_on(&self, fits: fn(&str) -> bool) {
        if let Some(channel) = lock(&self.waiters.channels).get(&self.channel) {
            channel.wake(|waiter| fits(&waiter.owner_token));
        }
    }
}

impl<N: Notifier> Drop for Registration<'_, N> {
    fn drop(&mut self) {
        let mut channels = lock(&self.waiters.channels);
        let Some(channel) = channels.get_mut(&self.channel) else { return };
        channel.queue.retain(|queued| !Arc::ptr_eq(queued, &self.waiter));
        if channel.queue.is_empty() {
            channel.idle = Some(Instant::now());
        }
        // Under the same mutex as a message: the message found this waiter in the queue, or did
        // not.
        let flags = std::mem::take(&mut *lock(&self.waiter.flags));
        if flags.pending || (flags.consumed && !self.has_lock) {
            channel.wake(|_| true);
        }
    }
}
