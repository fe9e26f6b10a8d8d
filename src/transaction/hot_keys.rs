//! Who may try on a key that many want to change, first come first served.
//!
//! A hot key undoes all tries but one; the more there are at a time, the more are wasted. So the
//! blocks of one process that watch the same key are let in a few at a time: more while nearly
//! every try commits, fewer while most are undone. It is manners, not protection: that is WATCH's.
//!
//! Never: instead of WATCH. Never: a wait past the caller's deadline, or for oneself.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::pool::semaphore::Gate;
use crate::process::Process;

/// Keys share a lane where their hashes do: that costs some of them a wait, and nothing else.
const LANES: usize = 1024;

/// A block that watches more keys than this is not kept waiting for any of them.
const MOST_KEYS: usize = 8;

/// How many may try at a time: at first, at least (one alone leaves the server waiting for its
/// client's round trips), and at most.
const FIRST: u32 = 4;
const LEAST: u32 = 2;
const MOST: u32 = 64;

/// Who has tried so often in vain is left alone with the key.
const PATIENCE: u32 = 4;

/// After so many commits it is decided anew.
const WINDOW: u32 = 32;

/// Who may try on which key.
pub(crate) struct Admission {
    lanes: Box<[OnceLock<Box<Lane>>]>,
    process: Process,
}

/// Not the lanes, of which there are many.
impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

/// The keys that share a hash.
#[derive(Debug)]
struct Lane {
    gate: Gate<(), ()>,
    limit: AtomicU32,
    /// Permits that are to go when they come back.
    surplus: AtomicU32,
    tries: AtomicU32,
    commits: AtomicU32,
}

thread_local! {
    /// A block inside a block must not wait for the outer one.
    static ADMITTED: Cell<bool> = const { Cell::new(false) };
}

impl Admission {
    pub(crate) fn new() -> Self {
        Self { lanes: (0..LANES).map(|_| OnceLock::new()).collect(), process: Process::here() }
    }

    /// The lanes of some keys, in the one order in which they are entered.
    pub(crate) fn lanes(hashes: impl Iterator<Item = u64>) -> Vec<u16> {
        let mut lanes: Vec<_> = hashes.map(|hash| (hash % LANES as u64) as u16).collect();
        lanes.sort_unstable();
        lanes.dedup();
        lanes
    }

    /// Waits until the caller may try, or until `deadline`: then he may as well.
    pub(crate) fn enter(&self, lanes: &[u16], deadline: Instant) -> Admitted<'_> {
        let process = &self.process;
        let mut admitted = Admitted { lanes: Vec::new(), tries: 0, outermost: false, process };
        let nested = ADMITTED.try_with(|inside| inside.replace(true)).unwrap_or(true);
        if nested || lanes.len() > MOST_KEYS {
            admitted.outermost = !nested;
            return admitted;
        }
        admitted.outermost = true;
        for lane in lanes {
            let Some(lane) = self.lanes.get(usize::from(*lane)) else { continue };
            let lane = lane.get_or_init(|| Box::new(Lane::new()));
            let slot = match lane.gate.try_acquire() {
                Some(slot) => Ok(slot),
                None => lane.gate.acquire(deadline, |_| Ok::<(), ()>(())),
            };
            if let Ok(slot) = slot {
                admitted.lanes.push(Entered { lane, slot, kept_out: 0 });
            }
        }
        admitted
    }
}

impl Lane {
    fn new() -> Self {
        Self {
            gate: Gate::new(FIRST as usize),
            limit: AtomicU32::new(FIRST),
            surplus: AtomicU32::new(0),
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
        if tries > WINDOW * 7 / 4 && limit > LEAST {
            self.limit.store(limit - 1, Ordering::Relaxed);
            self.surplus.fetch_add(1, Ordering::Relaxed);
        } else if tries < WINDOW * 5 / 4 && limit < MOST {
            self.limit.store(limit + 1, Ordering::Relaxed);
            // The slot's number means nothing here.
            self.leave(limit as usize);
        }
    }

    /// Lets nobody else in, and says how many that are.
    fn keep_out(&self) -> u32 {
        let others = self.limit.load(Ordering::Relaxed) - 1;
        self.surplus.fetch_add(others, Ordering::Relaxed);
        others
    }

    fn leave(&self, slot: usize) {
        let less = |surplus: u32| surplus.checked_sub(1);
        let gone = self.surplus.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if gone.is_err() {
            self.gate.release(slot);
        }
    }
}

/// The right to try, until it is dropped.
#[derive(Debug)]
pub(crate) struct Admitted<'a> {
    lanes: Vec<Entered<'a>>,
    tries: u32,
    outermost: bool,
    process: &'a Process,
}

#[derive(Debug)]
struct Entered<'a> {
    lane: &'a Lane,
    slot: usize,
    kept_out: u32,
}

impl Admitted<'_> {
    /// Whether others are kept waiting meanwhile.
    pub(crate) fn in_turn(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// One try was made.
    pub(crate) fn tried(&mut self) {
        self.tries += 1;
        for entered in &mut self.lanes {
            entered.lane.tries.fetch_add(1, Ordering::Relaxed);
            if self.tries == PATIENCE {
                entered.kept_out = entered.lane.keep_out();
            }
        }
    }

    /// And it committed.
    pub(crate) fn committed(&self) {
        self.lanes.iter().for_each(|entered| entered.lane.committed());
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if self.process.is_left() {
            self.lanes.clear();
        }
        for Entered { lane, slot, kept_out } in self.lanes.drain(..) {
            // Each of them may come in again; a slot's number means nothing here.
            (0..=kept_out).for_each(|_| lane.leave(slot));
        }
        if self.outermost {
            let _: Result<(), _> = ADMITTED.try_with(|inside| inside.set(false));
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
    fn lane(admission: &Admission) -> &Lane {
        admission.lanes.get(7).and_then(|lane| lane.get()).unwrap()
    }

    fn limit(admission: &Admission) -> u32 {
        lane(admission).limit.load(Ordering::Relaxed)
    }

    #[test]
    fn tries_that_are_undone_let_fewer_in_and_tries_that_commit_let_more_in() {
        let admission = Admission::new();
        let run = |tries| {
            let mut admitted = admission.enter(&[7], soon());
            (0..tries).for_each(|_| admitted.tried());
            admitted.committed();
        };
        (0..WINDOW).for_each(|_| run(3));
        assert_eq!(limit(&admission), FIRST - 1);
        (0..10 * WINDOW).for_each(|_| run(3));
        assert_eq!(limit(&admission), LEAST);
        (0..5 * WINDOW).for_each(|_| run(1));
        assert_eq!(limit(&admission), LEAST + 5);
        let free = lane(&admission).gate.free();
        assert_eq!(free, (LEAST + 5) as usize, "as many permits as the limit says");
    }

    #[test]
    fn who_tries_in_vain_is_left_alone_and_then_everybody_comes_in_again() {
        let admission = Admission::new();
        let other = || {
            ADMITTED.set(false);
            admission.enter(&[7], Instant::now())
        };
        let (mut unlucky, lucky) = (other(), other());
        (0..PATIENCE).for_each(|_| unlucky.tried());
        drop(lucky);
        assert_eq!(lane(&admission).gate.free(), FIRST as usize - 2);
        let more: Vec<_> = (0..FIRST).map(|_| other()).collect();
        drop(more);
        assert!(other().lanes.is_empty(), "nobody comes in beside him");
        drop(unlucky);
        assert_eq!(lane(&admission).gate.free(), FIRST as usize);
    }

    #[test]
    fn nobody_waits_past_his_deadline_and_nobody_for_himself() {
        let admission = Admission::new();
        let _inside = admission.enter(&[7], soon());
        let begun = Instant::now();
        let nested: Vec<_> = (0..9).map(|_| admission.enter(&[7], soon())).collect();
        assert!(nested.iter().all(|nested| nested.lanes.is_empty()));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let others: Vec<_> = (0..FIRST)
                    .map(|_| {
                        ADMITTED.set(false);
                        admission.enter(&[7], soon())
                    })
                    .collect();
                let admitted = others.iter().filter(|other| !other.lanes.is_empty()).count();
                assert_eq!(admitted, FIRST as usize - 1, "one is inside already");
            });
        });
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn lanes_are_entered_in_one_order_and_once_each() {
        assert_eq!(Admission::lanes([5, 3, 5, 3 + LANES as u64].into_iter()), [3, 5]);
    }
}
