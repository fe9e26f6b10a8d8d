//! Turns on hot keys: blocks of one process that change the same key attempt one after another, in the
//! order of arrival.
//!
//! If several blocks change a key at once, all attempts but one end in a conflict. A key is hot from the
//! first such conflict on, until a run of commits has not changed it. The blocks that watch it meanwhile
//! take turns. A block that waits for its turn leaves its WATCH, which is sent behind the EXEC of the
//! block before it; see [`key_turn`](crate::pool::key_turn). The data is protected by WATCH; turns only
//! save attempts. A block waits for a part of its policy's time at most, and then attempts without a
//! turn. A block of a thread or task that is inside another block, or has a connection, does not wait: it
//! might wait for that.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::pool::checkout::ThreadKeyQueue;
use crate::pool::early_watch::WatchOffer;
use crate::pool::key_turn::{KeyTurn, TurnQueue, TurnWait, Turns};
use crate::process::current::Process;
use crate::sync::boxed::boxed;
use crate::transaction::merge::MergeTable;

/// Number of buckets. Keys with the same hash share one, which costs some of them a wait, and
/// nothing else.
const BUCKETS: usize = 1024;

/// Maximum number of keys of a block that waits; a block with more keys attempts at once.
const MAX_KEYS: usize = 8;

/// Number of commits in a row, in turns, that do not change a key, after which its blocks take no turns.
const COOLING: u32 = 32;

/// The turns on all keys.
pub(crate) struct HotKeys<Q = ThreadKeyQueue> {
    buckets: Box<[OnceLock<Box<Bucket<Q>>>]>,
    process: Process,
    closed: AtomicBool,
    pub(crate) merges: Arc<MergeTable>,
}

/// Shows no buckets, because there are many.
impl<Q> fmt::Debug for HotKeys<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HotKeys").finish_non_exhaustive()
    }
}

/// The keys with the same hash.
struct Bucket<Q> {
    queue: Arc<Q>,
    /// Number of commits without a write after which the bucket is not hot; 0: it is not hot.
    cooling: AtomicU32,
}

thread_local! {
    /// Whether the thread is inside a block that may have a turn: a block inside it must not wait for it.
    static INSIDE_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Marks that this thread is inside a block that may have a turn, until it is dropped.
pub(crate) struct OuterBlock {
    /// The mark is the thread's, so it stays there.
    of_thread: PhantomData<*const ()>,
}

impl OuterBlock {
    /// `None`: the thread is inside another block.
    pub(crate) fn enter() -> Option<Self> {
        let nested = INSIDE_BLOCK.try_with(|inside| inside.replace(true)).unwrap_or(true);
        (!nested).then(|| Self { of_thread: PhantomData })
    }
}

impl Drop for OuterBlock {
    fn drop(&mut self) {
        let _: Result<(), _> = INSIDE_BLOCK.try_with(|inside| inside.set(false));
    }
}

/// Returns the bucket of a key's hash.
pub(crate) fn bucket(hash: u64) -> u16 {
    (hash % BUCKETS as u64) as u16
}

/// Returns the buckets of these keys, in the order in which every block enters them.
pub(crate) fn buckets(hashes: impl Iterator<Item = u64>) -> Vec<u16> {
    let mut buckets: Vec<_> = hashes.map(bucket).collect();
    buckets.sort_unstable();
    buckets.dedup();
    buckets
}

impl<Q: TurnQueue> HotKeys<Q> {
    pub(crate) fn new() -> Self {
        let buckets = (0..BUCKETS).map(|_| OnceLock::new()).collect();
        let (process, closed) = (Process::here(), AtomicBool::new(false));
        Self { buckets, process, closed, merges: Arc::new(MergeTable::new()) }
    }

    /// Ends all waits for turns. The callers find their pool closed.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.buckets.iter().filter_map(OnceLock::get).for_each(|bucket| bucket.queue.close());
    }

    /// The turn in a bucket, if it was ever hot.
    fn queue(&self, bucket: u16) -> Option<&Arc<Q>> {
        self.known(bucket).map(|bucket| &bucket.queue)
    }

    /// The bucket, if it was ever hot.
    fn known(&self, bucket: u16) -> Option<&Bucket<Q>> {
        self.buckets.get(usize::from(bucket))?.get().map(|bucket| &**bucket)
    }

    pub(crate) fn is_hot(&self, bucket: u16) -> bool {
        self.known(bucket).is_some_and(|known| known.cooling.load(Ordering::Relaxed) > 0)
    }

    /// The buckets in which a block waits for its turn.
    pub(crate) fn hot(&self, buckets: &[u16]) -> Vec<u16> {
        if buckets.len() > MAX_KEYS {
            return Vec::new();
        }
        buckets.iter().copied().filter(|bucket| self.is_hot(*bucket)).collect()
    }

    /// Whether one of these buckets is hot.
    pub(crate) fn is_any_hot(&self, buckets: &[u16]) -> bool {
        buckets.iter().any(|bucket| self.is_hot(*bucket))
    }

    /// A turn in no bucket yet. `is_nested`: the caller is inside another block, so it waits for none.
    fn turn(self: &Arc<Self>, is_nested: bool) -> Turn<Q> {
        Turn { hot_keys: Arc::clone(self), entered: Vec::new(), key: None, is_nested }
    }

    /// Waits for the turn in these buckets. `is_nested`: the caller is inside another block. `offer`: its
    /// WATCH, which may be sent by the caller before it. Dropped before its end, the future has no turn.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        buckets: &[u16],
        is_nested: bool,
        wait: TurnWait,
        offer: Option<WatchOffer<'_, KeyTurn<Q>>>,
    ) -> Turn<Q> {
        let mut turn = self.turn(is_nested);
        let hot = if is_nested { Vec::new() } else { self.hot(buckets) };
        let mut passed = None;
        for bucket in &hot {
            let Some(queue) = self.queue(*bucket) else { continue };
            if let Some(free) = queue.try_take() {
                turn.entered.push((*bucket, free));
                continue;
            }
            // With the turn in the first bucket the caller may get the others.
            let watch = offer.filter(|_| !turn.is_held()).and_then(|offer| offer.early_watch());
            let watch = watch.map(|watch| (watch, &*hot));
            let taking = queue.take(wait, watch, |turns| self.release(turns));
            let Some((taken, with)) = boxed(taking).await else { break };
            turn.entered.push((*bucket, taken));
            if let Some(with) = with {
                let others = with.others.iter().filter(|(bucket, other)| {
                    self.queue(*bucket).is_some_and(|queue| queue.attempts(other))
                });
                turn.entered.extend(others.cloned());
                passed = Some(with);
                break;
            }
        }
        turn.leave_cold();
        if !hot.is_empty() {
            let queue = |(bucket, _): &(u16, Q::Turn)| self.queue(*bucket).map(Arc::clone);
            let queues = turn.entered.iter().filter_map(queue).collect();
            let watch = offer.map_or(&[][..], |offer| offer.watch);
            let key = KeyTurn::new(queues, watch, &turn.entered, passed);
            if offer.is_none() || turn.entered.len() < hot.len() {
                key.keep();
            }
            turn.key = Some(Arc::new(key));
        }
        turn
    }

    fn release(&self, turns: &Turns<Q::Turn>) {
        for (bucket, turn) in turns {
            if let Some(queue) = self.queue(*bucket) {
                queue.release(turn);
            }
        }
    }

    /// An attempt that has changed the keys of these buckets has ended in a conflict.
    fn on_conflict(&self, written: &[u16]) {
        for bucket in written {
            if let Some(bucket) = self.buckets.get(usize::from(*bucket)) {
                let bucket = bucket.get_or_init(|| Box::new(Bucket::new()));
                if self.closed.load(Ordering::SeqCst) {
                    bucket.queue.close();
                }
                bucket.cooling.store(COOLING, Ordering::Relaxed);
            }
        }
    }

    /// A block commits in its turn in `bucket`. Returns whether the bucket is hot on.
    fn on_commit(&self, bucket: u16, written: &[u16]) -> bool {
        let Some(known) = self.known(bucket) else { return false };
        if written.contains(&bucket) {
            known.cooling.store(COOLING, Ordering::Relaxed);
            return true;
        }
        let less = |left: u32| left.checked_sub(1);
        let before = known.cooling.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        before.is_ok_and(|left| left > 1)
    }
}

impl<Q: TurnQueue> Bucket<Q> {
    fn new() -> Self {
        Self { queue: Arc::new(Q::single()), cooling: AtomicU32::new(0) }
    }
}

/// The turn to attempt, until it is dropped. It may be one in no bucket.
pub(crate) struct Turn<Q: TurnQueue = ThreadKeyQueue> {
    hot_keys: Arc<HotKeys<Q>>,
    /// The buckets, with the turn in each.
    entered: Vec<(u16, Q::Turn)>,
    /// `None`: it is not passed on with a connection.
    pub(crate) key: Option<Arc<KeyTurn<Q>>>,
    is_nested: bool,
}

impl<Q: TurnQueue> Turn<Q> {
    /// Leaves the buckets that are not hot any more, so that those that wait there go on too.
    fn leave_cold(&mut self) {
        let Self { hot_keys, entered, .. } = self;
        entered.retain(|(bucket, turn)| {
            let is_hot = hot_keys.is_hot(*bucket);
            if !is_hot && let Some(queue) = hot_keys.queue(*bucket) {
                queue.release(turn);
            }
            is_hot
        });
    }

    /// Whether other blocks wait meanwhile.
    pub(crate) fn is_held(&self) -> bool {
        !self.entered.is_empty() && !self.is_over()
    }

    /// Whether it is over, and another caller may have it now.
    pub(crate) fn is_over(&self) -> bool {
        self.key.as_ref().is_some_and(|key| key.is_over())
    }

    /// Whether it is held in each of these buckets that is hot.
    pub(crate) fn is_held_in(&self, buckets: &[u16]) -> bool {
        let has = |bucket: &u16| self.entered.iter().any(|(entered, _)| entered == bucket);
        self.is_held() && self.hot_keys.hot(buckets).iter().all(has)
    }

    /// Whether a block that watches these buckets waits for its turn when they are hot.
    pub(crate) fn waits(&self, buckets: &[u16]) -> bool {
        !self.is_nested && buckets.len() <= MAX_KEYS
    }

    /// Records that an attempt begins.
    pub(crate) fn attempted(&mut self) {
        let Self { hot_keys, entered, .. } = self;
        entered.retain(|(bucket, turn)| {
            hot_keys.queue(*bucket).is_some_and(|queue| queue.attempts(turn))
        });
    }

    /// Records a conflict of a block that has changed the keys of the buckets `written`.
    pub(crate) fn on_conflict(&self, written: &[u16]) {
        self.hot_keys.on_conflict(written);
    }

    /// The block commits, and changes the keys of the buckets `written`. If a bucket is not hot any more,
    /// the turn is not passed on, so that those that wait find out at once.
    pub(crate) fn on_commit(&self, written: impl FnOnce() -> Vec<u16>) {
        if !self.is_held() {
            return;
        }
        let (written, mut is_hot) = (written(), true);
        for (bucket, _) in &self.entered {
            is_hot &= self.hot_keys.on_commit(*bucket, &written);
        }
        if let Some(key) = self.key.as_ref().filter(|_| !is_hot) {
            key.keep();
        }
    }
}

impl<Q: TurnQueue> Drop for Turn<Q> {
    fn drop(&mut self) {
        if self.hot_keys.process.is_forked_child() {
            return;
        }
        // A scope that outlives its run passes no turn on.
        if self.key.as_ref().is_some_and(|key| !key.end()) {
            return;
        }
        self.hot_keys.release(&self.entered);
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
#[path = "../../tests/unit/hot_keys.rs"]
mod tests;
