//! Exactly-once blocks on a cluster whose slots move, of which a fifth is dropped at a random poll, while connections are
//! killed. What each call returned, or its token proves, is compared with the cluster in the end.
//!
//! The control sends a plain block again if its reply is lost or its future was dropped: the comparison must find
//! blocks that were applied twice.
//!
//! Guarantee: exactly-once, clusters

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rediscope::aio::SessionManager;
use rediscope::error::{Applied, Resolution};
use rediscope::prelude::*;
use rediscope::{CommitError, Error, TransactionOptions};

use super::dropped::DropAfter;
use super::{LANES, MAX_SIZE, number, runtime};
use crate::SOON;
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;

const MASTERS: usize = 3;
const CALLERS: u64 = 64;
/// Number of slots that are written to, of which each moves.
const SLOTS: usize = 24;
/// Maximum delay between two steps of a move, in microseconds.
const PAUSE: u64 = 6_000;
/// Maximum delay between two kills of all connections to a node, in milliseconds.
const KILL_PAUSE: u64 = 60;

/// What a caller does about a block of which it has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// The block is sent exactly once, and its token is resolved.
    ExactlyOnce,
    /// The control: a plain block is sent again.
    Again,
}

/// What is known of a block: whether it was applied, or nothing.
#[derive(Default)]
struct Ledger {
    known: Mutex<Vec<(String, bool)>>,
    dropped: AtomicU64,
    unsent: AtomicU64,
    doubts: AtomicU64,
    unknown: AtomicU64,
}

impl Ledger {
    fn add(&self, id: String, resolution: &Resolution) {
        match resolution {
            Resolution::Committed => self.known.lock().unwrap().push((id, true)),
            Resolution::NotCommitted => self.known.lock().unwrap().push((id, false)),
            other => {
                println!("{id}: {other:?}");
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Caller {
    sessions: SessionManager,
    keys: Arc<Vec<String>>,
    ledger: Arc<Ledger>,
    random: Rng,
}

impl Caller {
    async fn call(mut self, protocol: Protocol, nth: u64, blocks: u64) {
        for block in 0..blocks {
            let id = format!("{nth}:{block}");
            let key = self.keys[self.random.usize(..self.keys.len())].clone();
            let resolution = match protocol {
                Protocol::ExactlyOnce => self.send(&id, &key).await,
                Protocol::Again => self.send_until_known(&id, &key).await,
            };
            self.ledger.add(id, &resolution);
        }
    }

    async fn send(&mut self, id: &str, key: &str) -> Resolution {
        let once = self.sessions.transactional().with(TransactionOptions::new().exactly_once());
        let sent = once.submit(|tx| Ok(queue(tx, id, key))).unwrap();
        let token = sent.token();
        match self.dropping(sent).await {
            Some(Ok(_)) => Resolution::Committed,
            Some(Err(Error::Commit(CommitError::InDoubt(doubt)))) => {
                count(&self.ledger.doubts);
                self.sessions.resolve(doubt.token().expect("exactly once"), SOON).await
            }
            Some(Err(error)) => match error.applied() {
                Applied::No => Resolution::NotCommitted,
                // Proven by its token, and its replies are lost.
                Applied::Yes => Resolution::Committed,
                _ => panic!("{error}"),
            },
            None => {
                count(&self.ledger.dropped);
                if token.get().is_none() {
                    count(&self.ledger.unsent);
                }
                if self.random.bool() {
                    // It may still be on its way.
                    let pause = Duration::from_micros(self.random.u64(..PAUSE));
                    tokio::time::sleep(pause).await;
                }
                self.sessions.resolve(&token, SOON).await
            }
        }
    }

    async fn send_until_known(&mut self, id: &str, key: &str) -> Resolution {
        let plain = self.sessions.transactional();
        loop {
            match self.dropping(plain.run(|tx| Ok(queue(tx, id, key)))).await {
                Some(Ok(_)) => return Resolution::Committed,
                Some(Err(Error::Commit(CommitError::InDoubt(_)))) => count(&self.ledger.doubts),
                Some(Err(error)) => match error.applied() {
                    Applied::No => return Resolution::NotCommitted,
                    _ => panic!("{error}"),
                },
                None => count(&self.ledger.dropped),
            }
        }
    }

    /// Drops a fifth of the futures, half of them at a random poll and half after a random time.
    async fn dropping<F: Future>(&mut self, sent: F) -> Option<F::Output> {
        match self.random.u8(..10) {
            0 => DropAfter::new(self.random.u32(..4), sent).await,
            1 => {
                let limit = Duration::from_micros(self.random.u64(..PAUSE));
                tokio::time::timeout(limit, sent).await.ok()
            }
            _ => Some(sent.await),
        }
    }
}

fn queue(tx: &mut rediscope::Block, id: &str, key: &str) -> Queued<i64> {
    tx.rpush(format!("{key}:done"), id);
    tx.incr(format!("{key}:sum"), 1)
}

/// Moves slots, one after the other, in steps.
fn move_slots(cluster: &Cluster, slots: &[u16], over: &AtomicBool, mut random: Rng) -> u64 {
    let mut moves = 0;
    let pause = |random: &mut Rng| thread::sleep(Duration::from_micros(random.u64(..PAUSE)));
    while !over.load(Ordering::Relaxed) {
        let slot = slots[random.usize(..slots.len())];
        let from = cluster.owner(slot).expect("one master serves the slot");
        let to = (from + random.usize(1..MASTERS)) % MASTERS;
        cluster.begin_migration(slot, to);
        for _ in 0..random.u32(0..4) {
            pause(&mut random);
            cluster.move_keys(slot, from, to, random.u32(1..20));
        }
        pause(&mut random);
        cluster.end_migration(slot, from, to);
        moves += 1;
        pause(&mut random);
    }
    moves
}

/// Kills the connections of the library to one node after the other.
fn kill(cluster: &Cluster, over: &AtomicBool, mut random: Rng) -> u64 {
    let mut killed = 0;
    while !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(random.u64(..KILL_PAUSE)));
        let node = random.usize(..MASTERS);
        killed += cluster.ask::<u64>(node, &["CLIENT", "KILL", "USER", "app"]);
    }
    killed
}

/// What came of it.
struct Found {
    ledger: Arc<Ledger>,
    twice: usize,
    wrong: Vec<String>,
    redirections: u64,
    moves: u64,
    killed: u64,
    took: Duration,
}

fn play(protocol: Protocol, seed: u64, blocks: u64) -> Found {
    let (runtime, cluster, begun) = (runtime(), Cluster::start(MASTERS, 0), Instant::now());
    for node in 0..MASTERS {
        cluster.ask::<()>(node, &["ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    }
    let url = cluster.url().replacen("://", "://app:secret@", 1);
    let builder = rediscope::SessionManager::builder(url).lanes(LANES).max_size(MAX_SIZE);
    let sessions = builder.checkout_timeout(SOON).build_async().unwrap();
    let slots: Vec<u16> = (0..MASTERS)
        .flat_map(|node| cluster.slots_of(node).into_iter().step_by(500).take(SLOTS / MASTERS))
        .collect();
    let keys: Vec<_> = slots.iter().map(|slot| cluster.key_in(*slot, "k")).collect();
    let (keys, ledger, over) = (Arc::new(keys), Arc::<Ledger>::default(), AtomicBool::new(false));
    let mut random = Rng::with_seed(seed);
    let (moves, killed) = thread::scope(|scope| {
        // Also if this panics: the others would go on for ever.
        scopeguard::defer! { over.store(true, Ordering::Relaxed) }
        let (movers, killer) = ([random.fork(), random.fork()], random.fork());
        let movers = movers.into_iter().zip(slots.chunks(SLOTS / 2)).map(|(random, slots)| {
            let (cluster, over) = (&cluster, &over);
            scope.spawn(move || move_slots(cluster, slots, over, random))
        });
        let movers: Vec<_> = movers.collect();
        let killer = scope.spawn(|| kill(&cluster, &over, killer));
        let callers = (0..CALLERS).map(|nth| {
            let (sessions, keys) = (sessions.clone(), Arc::clone(&keys));
            let (ledger, random) = (Arc::clone(&ledger), random.fork());
            let caller = Caller { sessions, keys, ledger, random };
            runtime.spawn(caller.call(protocol, nth, blocks / CALLERS))
        });
        let callers: Vec<_> = callers.collect();
        for caller in callers {
            runtime.block_on(caller).unwrap();
        }
        over.store(true, Ordering::Relaxed);
        let moves: u64 = movers.into_iter().map(|mover| mover.join().unwrap()).sum();
        (moves, killer.join().unwrap())
    });
    let status = sessions.status().transactional;
    let most = (MASTERS as u32) * MAX_SIZE;
    assert!(status.size <= most, "{status}");
    runtime.block_on(sessions.close(SOON));
    let alive = || runtime.metrics().num_alive_tasks();
    eventually(SOON, "no task is left", || alive() == 0);

    let mut found = HashMap::<String, u64>::new();
    for key in keys.iter() {
        let done: Vec<String> = cluster.read(&["LRANGE", &format!("{key}:done"), "0", "-1"]);
        let sum: Option<usize> = cluster.read(&["GET", &format!("{key}:sum")]);
        assert_eq!(done.len(), sum.unwrap_or_default(), "torn");
        done.into_iter().for_each(|id| *found.entry(id).or_default() += 1);
    }
    let twice = found.values().filter(|times| **times > 1).count();
    let known = ledger.known.lock().unwrap();
    let wrong = known.iter().filter(|(id, applied)| found.contains_key(id) != *applied);
    let wrong = wrong.map(|(id, applied)| format!("{id}: {applied}")).collect();
    drop(known);
    let (redirections, took) = (status.redirections, begun.elapsed());
    Found { ledger, twice, wrong, redirections, moves, killed, took }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ledger, twice, redirections, moves, killed, .. } = self;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "{} known, {} dropped, {} of them unsent, {} in doubt, {} unknown; {redirections} redirections, \
             {moves} moves, {killed} killed; {twice} twice, {} wrong; {:?}",
            ledger.known.lock().unwrap().len(),
            of(&ledger.dropped),
            of(&ledger.unsent),
            of(&ledger.doubts),
            of(&ledger.unknown),
            self.wrong.len(),
            self.took
        )
    }
}

#[test]
fn every_exactly_once_block_is_applied_as_reported_while_slots_move_and_futures_are_dropped() {
    rediscope_testing::own_process!();
    let seed = rediscope_testing::soak::seed();
    let blocks = number("REDISCOPE_TASK_MOVED_BLOCKS", 1_500);
    let found = play(Protocol::ExactlyOnce, seed, blocks);
    println!("{found}");
    assert!(found.wrong.is_empty() && found.twice == 0, "{:?}", found.wrong);
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(of(&found.ledger.unknown), 0, "the registers live for an hour");
    assert!(of(&found.ledger.dropped) > blocks / 20 && found.redirections > 0, "{found}");
}

#[test]
fn plain_blocks_that_are_sent_again_while_slots_move_are_found_to_be_applied_twice() {
    rediscope_testing::own_process!();
    let found = play(Protocol::Again, rediscope_testing::soak::seed(), 2_000);
    println!("{found}");
    assert!(found.twice > 0 && found.redirections > 0, "{found}");
}
