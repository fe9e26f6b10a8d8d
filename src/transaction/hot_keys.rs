//! Limits how many blocks attempt at a time on a key that many blocks change, in the order of
//! arrival.
//!
//! On a hot key all attempts but one end in a conflict, so more blocks at a time waste more
//! attempts. The blocks of one process that watch the same key are therefore admitted a few at a
//! time. The limit grows while nearly every attempt commits, and shrinks while most end in a
//! conflict. The data is protected by WATCH; this limit only saves attempts. A block waits for a part
//! of its policy's time at most, and then attempts without a permit. A block inside another block on
//! the same thread, or in the same task, does not wait, because it might wait for the outer one.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::pool::semaphore::FairSemaphore;
use crate::process::current::Process;
use crate::transaction::merge::MergeTable;

/// Number of buckets. Keys with the same hash share one, which costs some of them a wait, and
/// nothing else.
const BUCKETS: usize = 1024;

/// Maximum number of keys of a block that waits; a block with more keys is admitted at once.
const MAX_KEYS: usize = 8;

/// Number of blocks admitted at a time: initial, minimum (a single block leaves the server idle for
/// its client's round trips), and maximum.
const INITIAL_LIMIT: u32 = 4;
const MIN_LIMIT: u32 = 2;
const MAX_LIMIT: u32 = 64;

/// Number of failed attempts after which a block runs alone on its key.
const ATTEMPTS_BEFORE_EXCLUSION: u32 = 4;

/// Number of commits after which the limit is adapted.
const WINDOW: u32 = 32;

/// Permits that are granted in the order of arrival. Each side waits for one in its own way.
pub(crate) trait TurnSemaphore: Send + Sync + 'static {
    fn new(permits: usize) -> Self;

    /// Returns a permit, or adds one.
    fn give(&self, permit: usize);

    /// The holder of a permit attempts. `withheld`: further permits that it keeps from others. Returns
    /// false if the permit was taken back, and given to others with what was withheld until then.
    fn attempts(&self, _permit: usize, _withheld: u32) -> bool {
        true
    }

    /// The holder of a permit ends. Returns false if the permit was taken back before.
    fn end(&self, _permit: usize) -> bool {
        true
    }
}

/// The permits for which threads wait.
pub(crate) type ThreadTurns = FairSemaphore<(), ()>;

impl TurnSemaphore for ThreadTurns {
    fn new(permits: usize) -> Self {
        Self::new(permits)
    }

    fn give(&self, permit: usize) {
        self.release(permit);
    }
}

/// The limits of all keys.
pub(crate) struct ContentionLimiter<S = ThreadTurns> {
    buckets: Box<[OnceLock<Box<Bucket<S>>>]>,
    process: Process,
    pub(crate) merges: Arc<MergeTable>,
}

/// Shows no buckets, because there are many.
impl<S> fmt::Debug for ContentionLimiter<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentionLimiter").finish_non_exhaustive()
    }
}

/// The keys with the same hash.
struct Bucket<S> {
    semaphore: S,
    limit: AtomicU32,
    /// Number of permits to withdraw when they are returned.
    excess: AtomicU32,
    tries: AtomicU32,
    commits: AtomicU32,
}

thread_local! {
    /// Whether the thread has a permit: a block inside a block must not wait for the outer one.
    static HOLDS_TURN: Cell<bool> = const { Cell::new(false) };
}

/// Marks that this thread is inside a block that may have a permit, until it is dropped.
pub(crate) struct OuterBlock {
    /// The mark is the thread's, so it stays there.
    of_thread: PhantomData<*const ()>,
}

impl OuterBlock {
    /// `None`: the thread is inside another block.
    pub(crate) fn enter() -> Option<Self> {
        let nested = HOLDS_TURN.try_with(|inside| inside.replace(true)).unwrap_or(true);
        (!nested).then(|| Self { of_thread: PhantomData })
    }
}

impl Drop for OuterBlock {
    fn drop(&mut self) {
        let _: Result<(), _> = HOLDS_TURN.try_with(|inside| inside.set(false));
    }
}

/// Returns the buckets of these keys, in the order in which every block enters them.
pub(crate) fn buckets(hashes: impl Iterator<Item = u64>) -> Vec<u16> {
    let mut buckets: Vec<_> = hashes.map(|hash| (hash % BUCKETS as u64) as u16).collect();
    buckets.sort_unstable();
    buckets.dedup();
    buckets
}

impl<S: TurnSemaphore> ContentionLimiter<S> {
    pub(crate) fn new() -> Self {
        let buckets = (0..BUCKETS).map(|_| OnceLock::new()).collect();
        Self { buckets, process: Process::here(), merges: Arc::new(MergeTable::new()) }
    }

    /// Returns the semaphore of a bucket.
    pub(crate) fn semaphore(&self, bucket: u16) -> Option<&S> {
        self.bucket(bucket).map(|bucket| &bucket.semaphore)
    }

    fn bucket(&self, bucket: u16) -> Option<&Bucket<S>> {
        let bucket = self.buckets.get(usize::from(bucket))?;
        Some(bucket.get_or_init(|| Box::new(Bucket::new())))
    }

    /// Returns a turn without a permit yet, and the buckets whose permits it needs. `is_nested`: the
    /// caller is inside another block, so it waits for none.
    pub(crate) fn turn<'b>(
        self: &Arc<Self>,
        buckets: &'b [u16],
        is_nested: bool,
    ) -> (Turn<S>, &'b [u16]) {
        let turn = Turn { limiter: Arc::clone(self), buckets: Vec::new(), tries: 0 };
        let waits = !is_nested && buckets.len() <= MAX_KEYS;
        (turn, if waits { buckets } else { &[] })
    }
}

impl ContentionLimiter {
    /// Waits for a permit until `deadline`; then the caller attempts without one. `outer` is the
    /// thread's [`OuterBlock`], if the caller is not inside another block.
    pub(crate) fn enter(
        self: &Arc<Self>,
        buckets: &[u16],
        outer: Option<&OuterBlock>,
        deadline: Instant,
    ) -> Turn {
        let (mut turn, buckets) = self.turn(buckets, outer.is_none());
        for bucket in buckets {
            let Some(semaphore) = self.semaphore(*bucket) else { continue };
            let permit = match semaphore.try_acquire() {
                Some(permit) => Ok(permit),
                None => semaphore.acquire(deadline, |_| Ok::<(), ()>(())),
            };
            if let Ok(permit) = permit {
                turn.entered(*bucket, permit);
            }
        }
        turn
    }
}

impl<S: TurnSemaphore> Bucket<S> {
    fn new() -> Self {
        Self {
            semaphore: S::new(INITIAL_LIMIT as usize),
            limit: AtomicU32::new(INITIAL_LIMIT),
            excess: AtomicU32::new(0),
            tries: AtomicU32::new(0),
            commits: AtomicU32::new(0),
        }
    }

    fn committed(&self) {
        let commits = self.commits.fetch_add(1, Ordering::Relaxed) + 1;
        if !commits.is_multiple_of(WINDOW) {
            return;
        }
        let tries = self.tries.swap(0, Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        if tries > WINDOW * 7 / 4 && limit > MIN_LIMIT {
            self.limit.store(limit - 1, Ordering::Relaxed);
            self.excess.fetch_add(1, Ordering::Relaxed);
        } else if tries < WINDOW * 5 / 4 && limit < MAX_LIMIT {
            self.limit.store(limit + 1, Ordering::Relaxed);
            // Any number serves: the permit's number has no meaning here.
            self.leave(limit as usize);
        }
    }

    /// Admits no other block, and returns the number of permits that this takes.
    fn exclude_others(&self) -> u32 {
        let others = self.limit.load(Ordering::Relaxed) - 1;
        self.excess.fetch_add(others, Ordering::Relaxed);
        others
    }

    fn leave(&self, permit: usize) {
        let less = |excess: u32| excess.checked_sub(1);
        let gone = self.excess.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if gone.is_err() {
            self.semaphore.give(permit);
        }
    }
}

/// The permit to attempt, until it is dropped.
pub(crate) struct Turn<S: TurnSemaphore = ThreadTurns> {
    limiter: Arc<ContentionLimiter<S>>,
    buckets: Vec<BucketTurn>,
    tries: u32,
}

struct BucketTurn {
    bucket: u16,
    permit: usize,
    /// Number of permits that are withheld from others for this one.
    excluded: u32,
}

impl<S: TurnSemaphore> Turn<S> {
    /// Takes over a permit of the bucket.
    pub(crate) fn entered(&mut self, bucket: u16, permit: usize) {
        self.buckets.push(BucketTurn { bucket, permit, excluded: 0 });
    }

    /// Returns whether other blocks wait meanwhile.
    pub(crate) fn queued(&self) -> bool {
        !self.buckets.is_empty()
    }

    /// Counts one attempt.
    pub(crate) fn attempted(&mut self) {
        self.tries += 1;
        for entered in &mut self.buckets {
            let Some(bucket) = self.limiter.bucket(entered.bucket) else { continue };
            bucket.tries.fetch_add(1, Ordering::Relaxed);
            let excluded = match self.tries == ATTEMPTS_BEFORE_EXCLUSION {
                true => bucket.exclude_others(),
                false => 0,
            };
            if bucket.semaphore.attempts(entered.permit, excluded) {
                entered.excluded += excluded;
            } else {
                (0..excluded).for_each(|_| bucket.leave(entered.permit));
            }
        }
    }

    /// Counts a commit.
    pub(crate) fn committed(&self) {
        for entered in &self.buckets {
            if let Some(bucket) = self.limiter.bucket(entered.bucket) {
                bucket.committed();
            }
        }
    }
}

impl<S: TurnSemaphore> Drop for Turn<S> {
    fn drop(&mut self) {
        if self.limiter.process.is_forked_child() {
            self.buckets.clear();
        }
        for BucketTurn { bucket, permit, excluded } in self.buckets.drain(..) {
            if let Some(bucket) = self.limiter.bucket(bucket)
                && bucket.semaphore.end(permit)
            {
                // Each of them may be admitted again; the permit's number has no meaning here.
                (0..=excluded).for_each(|_| bucket.leave(permit));
            }
        }
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[expect(clippy::unwrap_used, reason = "test code, which clippy sees in #[test] only")]
    fn bucket(limiter: &ContentionLimiter) -> &Bucket<ThreadTurns> {
        limiter.buckets.get(7).and_then(|bucket| bucket.get()).unwrap()
    }

    /// Enters as a block that is not inside another one.
    fn enter(limiter: &Arc<ContentionLimiter>, deadline: Instant) -> Turn {
        let outer = OuterBlock { of_thread: PhantomData };
        limiter.enter(&[7], Some(&outer), deadline)
    }

    fn limit(limiter: &ContentionLimiter) -> u32 {
        bucket(limiter).limit.load(Ordering::Relaxed)
    }

    #[test]
    fn tries_that_are_undone_let_fewer_in_and_tries_that_commit_let_more_in() {
        let limiter = Arc::new(ContentionLimiter::new());
        let run = |tries| {
            let mut turn = enter(&limiter, soon());
            (0..tries).for_each(|_| turn.attempted());
            turn.committed();
        };
        (0..WINDOW).for_each(|_| run(3));
        assert_eq!(limit(&limiter), INITIAL_LIMIT - 1);
        (0..10 * WINDOW).for_each(|_| run(3));
        assert_eq!(limit(&limiter), MIN_LIMIT);
        (0..5 * WINDOW).for_each(|_| run(1));
        assert_eq!(limit(&limiter), MIN_LIMIT + 5);
        let free = bucket(&limiter).semaphore.free();
        assert_eq!(free, (MIN_LIMIT + 5) as usize, "as many permits as the limit says");
    }

    #[test]
    fn a_block_that_tries_in_vain_runs_alone_and_then_all_are_admitted_again() {
        let limiter = Arc::new(ContentionLimiter::new());
        let other = || enter(&limiter, Instant::now());
        let (mut unlucky, lucky) = (other(), other());
        (0..ATTEMPTS_BEFORE_EXCLUSION).for_each(|_| unlucky.attempted());
        drop(lucky);
        assert_eq!(bucket(&limiter).semaphore.free(), INITIAL_LIMIT as usize - 2);
        let more: Vec<_> = (0..INITIAL_LIMIT).map(|_| other()).collect();
        drop(more);
        assert!(other().buckets.is_empty(), "no other block is admitted beside it");
        drop(unlucky);
        assert_eq!(bucket(&limiter).semaphore.free(), INITIAL_LIMIT as usize);
    }

    #[test]
    fn no_caller_waits_past_its_deadline_or_for_itself() {
        let limiter = Arc::new(ContentionLimiter::new());
        let outer = OuterBlock::enter();
        let _inside = limiter.enter(&[7], outer.as_ref(), soon());
        let begun = Instant::now();
        let nested = (0..9).map(|_| limiter.enter(&[7], OuterBlock::enter().as_ref(), soon()));
        let nested: Vec<_> = nested.collect();
        assert!(nested.iter().all(|nested| nested.buckets.is_empty()));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let others: Vec<_> = (0..INITIAL_LIMIT).map(|_| enter(&limiter, soon())).collect();
                let holding = others.iter().filter(|other| !other.buckets.is_empty()).count();
                assert_eq!(holding, INITIAL_LIMIT as usize - 1, "one is inside already");
            });
        });
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn buckets_are_entered_in_one_order_and_once_each() {
        assert_eq!(buckets([5, 3, 5, 3 + BUCKETS as u64].into_iter()), [3, 5]);
    }
}
