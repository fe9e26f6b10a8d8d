//! The master is killed under its writers and its only replica promoted. The survivor's registers must agree
//! with its data, and each commit that a replica was waited for must be there.

use crate::SOON;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rediscope::error::{Resolution, UnresolvedReason};
use rediscope::{SessionManager, TransactionOptions, Transactional};

use super::ledger::Data;
use super::operations::{Form, IDS, Operation, Plan, Reported, transact};
use super::resolvers::{Manner, ask};
use super::worker::sessions;
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, try_for};

const WRITERS: u64 = 8;
const WAIT: Duration = Duration::from_millis(200);
const RESPONSE: Duration = Duration::from_millis(200);
/// Commits before the kill, and after the promotion.
const BEFORE: std::ops::Range<u64> = 200..600;
const AFTER: u64 = 40;
/// Number of commits that the replica is behind. A wait for it takes [`WAIT`].
const UNSEEN: u64 = 24;
/// One writer does no more than this in a round.
const MOST: u64 = 20_000;
const DESCRIBED: usize = 20;

/// What was the matter when the master was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// Transactions were applied, and their replies are held.
    RepliesHeld,
    /// Transactions were on their way.
    ExecHeld,
    /// The replica was behind, and replies were held: what was applied is lost.
    ReplicaBehind,
    /// The same, with the connections so new that their registers are lost as well.
    RegistersLost,
}

impl Trouble {
    const ALL: [Self; 5] =
        [Self::RepliesHeld, Self::RegistersLost, Self::ReplicaBehind, Self::ExecHeld, Self::None];
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    seed: u64,
    rounds: u64,
    transactions: u64,
    /// Acknowledged with a replica waited for, and of these gone; then the others.
    waited: [u64; 2],
    unwaited: [u64; 2],
    not_replicated: u64,
    /// Resolved as committed, as not committed, unknown.
    doubts: [u64; 3],
    wrong: u64,
    words: Vec<String>,
    took: Duration,
}

pub(crate) fn run(seed: u64, rounds: u64) -> Found {
    let begun = Instant::now();
    let mut found = Found { seed, rounds, ..Found::default() };
    let mut random = Rng::with_seed(seed);
    for round in 0..rounds {
        let trouble = Trouble::ALL[round as usize % Trouble::ALL.len()];
        found.round(&mut random, trouble);
    }
    found.took = begun.elapsed();
    found
}

/// What the writers of a round share.
struct Shared {
    proxy: Proxy,
    sessions: SessionManager,
    commits: AtomicU64,
    over: AtomicBool,
    /// A session with the new master, from the moment on when that is one.
    promoted: OnceLock<SessionManager>,
}

/// One transaction, and whether a replica was waited for.
struct Entry {
    operation: Operation,
    waited: bool,
}

impl Found {
    fn round(&mut self, random: &mut Rng, trouble: Trouble) {
        let master = Server::start();
        let replica = Server::replica_of(&master);
        let proxy = Proxy::to(&master);
        let shared = Shared {
            sessions: SessionManager::builder(proxy.url())
                .max_size(WRITERS as u32)
                .connect_timeout(RESPONSE)
                .response_timeout(RESPONSE)
                .trust_window(SOON)
                .flush_bytes(super::operations::FLUSH_BYTES)
                .build()
                .unwrap(),
            proxy,
            commits: AtomicU64::new(0),
            over: AtomicBool::new(false),
            promoted: OnceLock::new(),
        };
        let seeds: Vec<u64> = (0..WRITERS).map(|_| random.u64(..)).collect();
        let mut entries: Vec<Entry> = thread::scope(|scope| {
            let writers: Vec<_> = (0..)
                .zip(seeds)
                .map(|(number, seed)| {
                    let shared = &shared;
                    scope.spawn(move || shared.write(number, Rng::with_seed(seed)))
                })
                .collect();
            shared.fail_over(&master, &replica, trouble, random.u64(BEFORE));
            writers.into_iter().flat_map(|writer| writer.join().expect("a writer died")).collect()
        });
        shared.sessions.close(Duration::ZERO);
        shared.proxy.cut_all();
        eventually(SOON, "the survivor has no client left", || replica.clients() == 0);
        let survivor = shared.promoted.get().expect("promoted");
        for Entry { operation, .. } in &mut entries {
            if let Some(token) = operation.doubt.as_ref().and_then(|doubt| doubt.token()) {
                operation.answers.push(survivor.resolve(token, None));
            }
        }
        let ids: Vec<u64> = entries.iter().map(|entry| entry.operation.plan.id).collect();
        let data = Data::of(&replica, WRITERS, &ids);
        entries.iter().for_each(|entry| self.add(entry, &data));
    }

    fn add(&mut self, Entry { operation, waited }: &Entry, data: &Data) {
        self.transactions += 1;
        let times = data.times(operation.plan.id);
        let present = times == Some(1);
        let mut right = times.is_some_and(|times| times <= 1);
        match operation.reported {
            Reported::Committed | Reported::Unseen => {
                let tally = if *waited { &mut self.waited } else { &mut self.unwaited };
                tally[0] += 1;
                tally[1] += u64::from(!present);
                right &= present || !waited;
            }
            Reported::NotReplicated => self.not_replicated += 1,
            Reported::InDoubt => {
                match operation.answers.last() {
                    Some(Resolution::Committed) => self.doubts[0] += 1,
                    Some(Resolution::NotCommitted) => self.doubts[1] += 1,
                    _ => self.doubts[2] += 1,
                }
                right &= operation.answers.iter().all(|answer| match answer {
                    Resolution::Committed => present,
                    Resolution::NotCommitted => !present,
                    // The register itself was lost with the master.
                    Resolution::StillUnknown { why } => {
                        matches!(
                            why,
                            UnresolvedReason::RegisterGone | UnresolvedReason::Unreachable(_)
                        )
                    }
                });
            }
            Reported::Impossible => right = false,
            Reported::Conflict | Reported::NotSent | Reported::Rejected | Reported::NotBegun => {
                right &= !present
            }
        }
        if !right {
            self.wrong += 1;
            if self.words.len() < DESCRIBED {
                self.words.push(format!("waited: {waited}, there {times:?} times: {operation:?}"));
            }
        }
    }

    /// What must be true and is not.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = self.words.clone();
        let mut must = |holds: bool, what: &str| {
            if !holds {
                broken.push(what.to_owned());
            }
        };
        must(self.wrong == 0, "wrong results");
        must(self.waited[1] == 0, "lost although a replica was waited for");
        must(self.waited[0] > 0, "no replica was ever waited for");
        must(self.doubts.iter().sum::<u64>() > 0, "no transaction was in doubt");
        broken
    }
}

impl Shared {
    fn fail_over(&self, master: &Server, replica: &Server, trouble: Trouble, before: u64) {
        let commits = || self.commits.load(Ordering::Relaxed);
        eventually(SOON, "the writers write", || commits() >= before);
        let hit = |trigger, fault| {
            let fired = self.proxy.fired();
            self.proxy.arm((trigger, fault));
            // Some writer may wait for a doubt of its own to be resolved.
            let _ = try_for(RESPONSE, || (self.proxy.fired() - fired >= 6).then_some(()));
        };
        match trouble {
            Trouble::None => {}
            Trouble::RepliesHeld => hit(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies),
            Trouble::ExecHeld => hit(Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests),
            Trouble::ReplicaBehind | Trouble::RegistersLost => {
                replica.sigstop();
                // Or what the master still sends would be read before the promotion.
                master.ask::<i64>(&["CLIENT", "KILL", "TYPE", "replica"]);
                if trouble == Trouble::RegistersLost {
                    self.proxy.cut_all();
                }
                let more = commits() + UNSEEN;
                let _ = try_for(SOON, || (commits() >= more).then_some(()));
                hit(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
            }
        }
        master.sigkill();
        if matches!(trouble, Trouble::ReplicaBehind | Trouble::RegistersLost) {
            replica.sigcont();
        }
        replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        self.proxy.disarm();
        // What is held is lost with the connections.
        self.proxy.cut_all();
        self.proxy.set_upstream(replica.address());
        let survivor = sessions(replica.url(), "rediscope");
        assert!(self.promoted.set(survivor).is_ok(), "promoted once");
        let more = commits() + AFTER;
        eventually(SOON, "the writers write to the new master", || commits() >= more);
        self.over.store(true, Ordering::Relaxed);
    }

    fn write(&self, worker: u64, mut random: Rng) -> Vec<Entry> {
        let once = TransactionOptions::new().exactly_once();
        let unwaited = self.sessions.transactional().with(once);
        let waited = unwaited.with(TransactionOptions::new().wait_replicas(1, WAIT));
        let mut entries = Vec::new();
        for nth in 0..MOST {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let form = Form::ALL[random.usize(..Form::ALL.len())];
            let plan =
                Plan { id: worker * IDS + nth, worker, form, early: false, fresh: random.bool() };
            let waits = random.bool();
            entries.push(Entry {
                operation: self.operation(
                    if waits { &waited } else { &unwaited },
                    plan,
                    &mut random,
                ),
                waited: waits,
            });
        }
        entries
    }

    fn operation(&self, handle: &Transactional, plan: Plan, random: &mut Rng) -> Operation {
        let ended = transact(handle, plan, &mut || {});
        if matches!(
            ended.reported,
            Reported::Committed | Reported::Unseen | Reported::NotReplicated
        ) {
            self.commits.fetch_add(1, Ordering::Relaxed);
        }
        let answers = ended.doubt.as_ref().map(|doubt| {
            // The old master's reply would be true of the old master.
            let survivor = try_for(SOON, || self.promoted.get()).expect("a new master");
            ask(doubt, Manner::any(random), survivor, random, &|| {})
        });
        Operation {
            plan,
            cut: None,
            reported: ended.reported,
            words: ended.words,
            doubt: ended.doubt,
            answers: answers.unwrap_or_default(),
            by_run: (0, 0),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [committed, not_committed, unknown] = self.doubts;
        let acknowledged = |[all, lost]: [u64; 2]| format!("{all}, of which lost {lost}");
        writeln!(f, "| failovers | {} |", self.rounds)?;
        writeln!(f, "| --- | ---: |")?;
        writeln!(f, "| seed | {} |", self.seed)?;
        writeln!(f, "| transactions by {WRITERS} writers | {} |", self.transactions)?;
        writeln!(f, "| acknowledged, a replica waited for | {} |", acknowledged(self.waited))?;
        writeln!(f, "| acknowledged, none waited for | {} |", acknowledged(self.unwaited))?;
        writeln!(f, "| returned `NotReplicated` | {} |", self.not_replicated)?;
        writeln!(f, "| doubts resolved as committed | {committed} |")?;
        writeln!(f, "| as not committed | {not_committed} |")?;
        writeln!(f, "| unknown, the register being lost | {unknown} |")?;
        writeln!(f, "| seconds | {:.1} |", self.took.as_secs_f64())?;
        writeln!(f, "| wrong results | {} |", self.wrong)
    }
}
