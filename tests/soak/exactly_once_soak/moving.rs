//! The same soak on a cluster whose slots move between masters, with their keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::fixture::Target;
use super::operations::{SETS, tag};
use super::report::Report;
use super::resolvers::{Rule, take};
use super::soak::{self, Phase, THREADS, Variant};
use super::worker::Shared;
use rediscope_testing::cluster::Cluster;

const MASTERS: usize = 3;
/// Each moves one slot at a time.
const MOVERS: u64 = 4;
/// A node leaves its host out; see `target`.
const ARGUMENTS: &[&str] = &["--cluster-preferred-endpoint-type", "unknown-endpoint"];
/// Between two steps of a move, in microseconds.
const PAUSE: u64 = 6_000;

pub(crate) fn run(seed: u64, cuts: u64) -> Report {
    let begun = Instant::now();
    let phase = phase("three masters, slots moving", Rule::WatchedRegister, cuts, seed);
    let command = format!("REDISCOPE_MOVING_CUTS={cuts}");
    Report { seed, command, phases: vec![phase], took: begun.elapsed() }
}

/// The negative controls: the same transactions, cuts and moves, with doubts resolved by a rule
/// that looks as safe.
pub(crate) fn control(rule: Rule, seed: u64, cuts: u64) -> Phase {
    phase("three masters, slots moving", rule, cuts, seed)
}

fn phase(name: &'static str, rule: Rule, cuts: u64, seed: u64) -> Phase {
    let begun = Instant::now();
    let target = Target::Many(Cluster::with(MASTERS, 0, ARGUMENTS));
    let variant = Variant::moving(name);
    let shared = Arc::new(soak::shared(target, variant, rule, cuts));
    let (over, moved) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let mut results = thread::scope(|scope| {
        // Also where this panics: the movers would go on for ever.
        scopeguard::defer! { over.store(true, Ordering::Relaxed) }
        for number in 0..MOVERS {
            let (shared, over, moved) = (&shared, &over, &moved);
            let random = Rng::with_seed(seed ^ (number + 1).wrapping_mul(0x2545_f491_4f6c_dd1d));
            scope.spawn(move || Mover { shared, number, random, moved }.work(over));
        }
        soak::work(&shared, seed)
    });
    if rule == Rule::OldOwner {
        for operation in &mut results.operations {
            let doubt = operation.doubt.iter();
            operation.answers.extend(doubt.map(|doubt| take(rule, doubt, operation.plan, &shared)));
        }
    }
    let mut phase = soak::close(&shared, variant, cuts, results, begun);
    phase.moved = moved.map(AtomicU64::into_inner);
    phase
}

struct Mover<'a> {
    shared: &'a Shared,
    number: u64,
    random: Rng,
    moved: &'a [AtomicU64; 2],
}

impl Mover<'_> {
    fn work(mut self, over: &AtomicBool) {
        let Target::Many(cluster) = &self.shared.target else { return };
        let mine: Vec<(usize, u16)> = (0..THREADS * SETS)
            .filter(|place| place % MOVERS == self.number)
            .map(|place| (place as usize, cluster.slot(&tag(place / SETS, place % SETS))))
            .collect();
        while !over.load(Ordering::Relaxed) {
            let (place, slot) = mine[self.random.usize(..mine.len())];
            let step = || self.shared.steps[place].fetch_add(1, Ordering::Relaxed);
            step();
            self.shift(cluster, slot);
            step();
            self.pause();
        }
    }

    /// To another master: in one go, or in steps.
    fn shift(&mut self, cluster: &Cluster, slot: u16) {
        let from = cluster.owner(slot).expect("one master serves the slot");
        let to = (from + self.random.usize(1..MASTERS)) % MASTERS;
        let mut keys = 0;
        cluster.begin_migration(slot, to);
        if self.random.u8(..3) > 0 {
            for _ in 0..self.random.u32(0..4) {
                self.pause();
                keys += cluster.move_keys(slot, from, to, self.random.u32(1..40));
            }
            self.pause();
        }
        if self.random.bool() {
            // All of them are there, and the slot is not yet.
            loop {
                let more = cluster.move_keys(slot, from, to, 50);
                keys += more;
                if more == 0 {
                    break;
                }
            }
            self.pause();
        }
        cluster.end_migration(slot, from, to);
        self.moved[0].fetch_add(1, Ordering::Relaxed);
        self.moved[1].fetch_add(keys as u64, Ordering::Relaxed);
    }

    /// So that the others meet each step.
    fn pause(&mut self) {
        thread::sleep(Duration::from_micros(self.random.u64(..PAUSE)));
    }
}
