//! The waiters of this process, and which of them a release wakes.
//!
//! A message about a release wakes one waiter. A waiter that leaves after it was woken passes the
//! wakeup on, unless it has taken the lock and will release it. So each release leads to a request
//! while any caller waits. A waiter, its channel and its wakeup end with its [`Registration`].

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/waiters.rs"]
mod model;

use std::collections::{HashMap, VecDeque};
use std::future::ready;
use std::time::{Duration, Instant};

use crate::lock::io::Waiter;
use crate::sync::shim::{Arc, Condvar, Mutex, PoisonError, lock};

/// Time for which a channel stays subscribed without a waiter: waiters come and go.
const UNSUBSCRIBE_DELAY: Duration = Duration::from_millis(200);

/// The waiters of all locks, by channel.
#[derive(Default)]
pub(crate) struct Waiters {
    channels: Mutex<HashMap<String, Channel>>,
}

#[derive(Default)]
struct Channel {
    queue: VecDeque<Arc<LockWaiter>>,
    /// The channel is subscribed.
    live: bool,
    /// Time since which the channel has no waiter.
    idle: Option<Instant>,
}

struct LockWaiter {
    owner_token: String,
    signal: Mutex<Signal>,
    ready: Condvar,
}

#[derive(Default)]
struct Signal {
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

impl Waiters {
    /// Queues a waiter for the messages on `channel`.
    pub(crate) fn join(&self, channel: &str, owner_token: &str) -> Registration<'_> {
        let mut channels = lock(&self.channels);
        self.enter(channels.entry(channel.to_owned()).or_default(), channel, owner_token)
    }

    /// The same, if the channel is already subscribed.
    pub(crate) fn join_live(&self, channel: &str, owner_token: &str) -> Option<Registration<'_>> {
        let mut channels = lock(&self.channels);
        let live = channels.get_mut(channel).filter(|channel| channel.live)?;
        Some(self.enter(live, channel, owner_token))
    }

    fn enter(&self, channel: &mut Channel, name: &str, owner_token: &str) -> Registration<'_> {
        // Releases since the caller's last request woke other waiters.
        let signal = Signal { recheck: channel.live, ..Signal::default() };
        let waiter = Arc::new(LockWaiter {
            owner_token: owner_token.to_owned(),
            signal: Mutex::new(signal),
            ready: Condvar::new(),
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
        let out = |waiter: &Arc<LockWaiter>| {
            let signal = lock(&waiter.signal);
            usize::from(signal.pending) + usize::from(signal.consumed)
        };
        waiters.map(out).sum()
    }
}

impl Channel {
    /// Wakes the first matching waiter that has not been woken since its last request. If all have
    /// been woken, each of them will still send a request.
    fn wake(&self, fits: impl Fn(&LockWaiter) -> bool) {
        for waiter in self.queue.iter().filter(|waiter| fits(waiter)) {
            let mut signal = lock(&waiter.signal);
            if !signal.pending {
                signal.pending = true;
                waiter.ready.notify_one();
                return;
            }
        }
    }

    fn recheck(&self) {
        for waiter in &self.queue {
            lock(&waiter.signal).recheck = true;
            waiter.ready.notify_one();
        }
    }
}

/// A place among the waiters. Its drop leaves it and passes an unused wakeup on.
pub(crate) struct Registration<'w> {
    waiters: &'w Waiters,
    channel: String,
    waiter: Arc<LockWaiter>,
    has_lock: bool,
}

impl Waiter for Registration<'_> {
    fn is_live(&self) -> bool {
        lock(&self.waiters.channels).get(&self.channel).is_some_and(|channel| channel.live)
    }

    fn checked(&self) {
        lock(&self.waiter.signal).recheck = false;
    }

    fn wait(
        &self,
        until: Instant,
        wake_compatible: Option<fn(&str) -> bool>,
    ) -> impl Future<Output = bool> + Send {
        ready(Self::wait(self, until, wake_compatible))
    }

    fn acquired(mut self, shared: bool) {
        self.has_lock = !shared;
    }
}

impl Registration<'_> {
    /// See [`Waiter::wait`].
    pub(crate) fn wait(&self, until: Instant, wake_compatible: Option<fn(&str) -> bool>) -> bool {
        let had = std::mem::take(&mut lock(&self.waiter.signal).consumed);
        if had && let Some(fits) = wake_compatible {
            self.pass_on(fits);
        }
        let mut signal = lock(&self.waiter.signal);
        loop {
            if std::mem::take(&mut signal.pending) {
                (signal.consumed, signal.recheck) = (true, false);
                return true;
            }
            if std::mem::take(&mut signal.recheck) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.waiter.ready.wait_timeout(signal, left);
            signal = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn pass_on(&self, fits: fn(&str) -> bool) {
        if let Some(channel) = lock(&self.waiters.channels).get(&self.channel) {
            channel.wake(|waiter| fits(&waiter.owner_token));
        }
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let mut channels = lock(&self.waiters.channels);
        let Some(channel) = channels.get_mut(&self.channel) else { return };
        channel.queue.retain(|queued| !Arc::ptr_eq(queued, &self.waiter));
        if channel.queue.is_empty() {
            channel.idle = Some(Instant::now());
        }
        // Under the same mutex as a message: the message found this waiter in the queue, or did
        // not.
        let signal = std::mem::take(&mut *lock(&self.waiter.signal));
        if signal.pending || (signal.consumed && !self.has_lock) {
            channel.wake(|_| true);
        }
    }
}
