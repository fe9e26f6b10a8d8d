//! One thread with a session manager and proxies of its own, so that its cuts are its own.

use super::ARRIVAL;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rediscope::error::Resolution;
use rediscope::{SessionManager, TransactionOptions, Transactional};

use super::faults::Cut;
use super::fixture::{Proxies, Store, Target};
use super::operations::{
    Client, FLUSH_BYTES, Form, IDS, Operation, Plan, SETS, set, tag, transact, watched_key,
};
use super::resolvers::{Manner, Rule, ask, take};
use rediscope_testing::try_for;

/// Small: a held reply costs as much.
const RESPONSE: Duration = Duration::from_millis(60);
const CONNECT: Duration = Duration::from_millis(400);
const CHECKOUT: Duration = Duration::from_secs(5);
/// However slow the machine: a cut is to hit the commit, not a question before it.
const TRUST: Duration = Duration::from_secs(60);

/// What all workers of a phase share.
pub(crate) struct Shared {
    pub(crate) target: Target,
    /// Of each worker: a session manager with its prefix of which the transactions are not.
    pub(crate) strangers: Vec<SessionManager>,
    /// Cuts that are still to be made.
    pub(crate) left: AtomicU64,
    pub(crate) until: Instant,
    /// Registers are deleted and watched keys written, at random.
    pub(crate) tampered: bool,
    pub(crate) rule: Rule,
    /// Of each worker's sets of keys: how often they began to move or had moved.
    pub(crate) steps: Vec<AtomicU64>,
}

impl Shared {
    pub(crate) fn stranger(&self, worker: u64) -> &SessionManager {
        &self.strangers[worker as usize]
    }

    pub(crate) fn steps(workers: u64) -> Vec<AtomicU64> {
        (0..workers * SETS).map(|_| AtomicU64::new(0)).collect()
    }

    /// Odd while the keys move.
    fn step(&self, id: u64) -> u64 {
        let place = (id / IDS) * SETS + set(id);
        self.steps[usize::try_from(place).expect("a number")].load(Ordering::Relaxed)
    }
}

/// What a worker leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) operations: Vec<Operation>,
    pub(crate) manners: BTreeMap<Manner, u64>,
    /// Held requests that were let go when their doubt had been resolved as not committed.
    pub(crate) late: u64,
    pub(crate) tampered: u64,
    /// Doubts whose keys moved between the beginning of the transaction and its resolution.
    pub(crate) moved_under: u64,
    pub(crate) redirections: u64,
}

pub(crate) struct Worker {
    number: u64,
    random: Rng,
    shared: Arc<Shared>,
    proxies: Proxies,
    sessions: SessionManager,
    handle: Transactional,
    /// The connection that was used last, where it is known.
    client: Option<Client>,
    /// Something is held; requests are; the number of them that were reported as not applied.
    held: bool,
    held_requests: bool,
    held_and_reported: u64,
    results: Results,
}

pub(crate) fn sessions(to: String, prefix: &str) -> SessionManager {
    SessionManager::builder(to)
        .max_size(1)
        .connect_timeout(CONNECT)
        .response_timeout(RESPONSE)
        .checkout_timeout(CHECKOUT)
        .trust_window(TRUST)
        .flush_bytes(FLUSH_BYTES)
        .prefix(prefix)
        .build()
        .unwrap()
}

pub(crate) fn prefix(number: u64) -> String {
    format!("w{number}")
}

impl Worker {
    pub(crate) fn new(number: u64, seed: u64, shared: Arc<Shared>) -> Self {
        let proxies = shared.target.proxies_of(number);
        let sessions = sessions(proxies.url(), &prefix(number));
        let handle = sessions.transactional().with(TransactionOptions::new().exactly_once());
        Self {
            number,
            random: Rng::with_seed(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            shared,
            proxies,
            sessions,
            handle,
            client: None,
            held: false,
            held_requests: false,
            held_and_reported: 0,
            results: Results::default(),
        }
    }

    /// Cuts until enough was cut, and lets everything go that was held.
    pub(crate) fn work(mut self) -> Results {
        while self.shared.left.load(Ordering::Relaxed) > 0 && Instant::now() < self.shared.until {
            let cut = Cut::any(&mut self.random);
            let cold = self.client.is_none();
            if cold && (cut.wants_an_open_connection() || self.random.u8(..4) > 0) {
                self.operation(None);
            }
            self.operation(Some(cut));
        }
        self.let_go();
        self.results.redirections = self.sessions.status().transactional.redirections;
        self.sessions.close(Duration::ZERO);
        self.results
    }

    fn plan(&mut self) -> Plan {
        // `run` would find out by itself, and by the fence.
        let forms: &[Form] =
            if self.shared.rule == Rule::WatchedRegister { &Form::ALL } else { &Form::BY_HAND };
        Plan {
            id: self.number * IDS + self.results.operations.len() as u64,
            worker: self.number,
            form: forms[self.random.usize(..forms.len())],
            early: self.random.u8(..4) == 0,
            fresh: self.random.bool(),
        }
    }

    fn operation(&mut self, cut: Option<Cut>) {
        let plan = self.plan();
        let begun = self.shared.step(plan.id);
        let (script, faults) = cut.map(|cut| cut.script(&mut self.random)).unwrap_or_default();
        let fired = self.proxies.fired();
        if cut == Some(Cut::Unnoticed) {
            self.let_go();
        }
        let tampering = self.tampering();
        let counts = self.sessions.status().transactional.counts;
        let (mut script, mut met) = (Some(script), false);
        let mut helpers: Vec<JoinHandle<bool>> = Vec::new();
        let (proxies, shared) = (&self.proxies, &self.shared);
        let (number, client) = (self.number, self.client);
        let mut strike = || {
            let Some(script) = script.take() else { return };
            let kill = {
                let shared = Arc::clone(shared);
                move || client.is_some_and(|client| shared.target.kill(client))
            };
            match cut {
                None => {}
                Some(Cut::Unnoticed) => {
                    met = proxies.connections() > 0;
                    proxies.cut_all();
                }
                Some(Cut::KilledBefore) => met = kill(),
                Some(Cut::KilledDuring) => {
                    proxies.arm(&script);
                    helpers.push(thread::spawn(kill));
                }
                Some(_) => proxies.arm(&script),
            }
            if let Some(tampering) = tampering {
                let shared = Arc::clone(shared);
                let tamper = move || tamper(&shared.target, number, plan.id, tampering.what);
                match tampering.when {
                    When::Before => tamper(),
                    When::During => helpers.push(thread::spawn(move || {
                        tamper();
                        false
                    })),
                    When::Resolving => {}
                }
            }
        };
        let ended = transact(&self.handle, plan, &mut strike);
        for helper in helpers {
            met |= helper.join().expect("a helper panicked");
        }
        self.proxies.disarm();
        // A pause alone is no cut.
        let paused = cut == Some(Cut::KilledDuring);
        met |= faults > 0 && !paused && self.proxies.fired() - fired >= faults;
        self.client = ended.client.filter(|_| !met);
        let found = self.sessions.status().transactional.counts;
        let mut operation = Operation {
            plan,
            cut: cut.filter(|_| met),
            reported: ended.reported,
            words: ended.words,
            doubt: ended.doubt,
            answers: Vec::new(),
            by_run: (
                found.resolved_committed - counts.resolved_committed,
                found.resolved_not_committed - counts.resolved_not_committed,
            ),
        };
        self.held |= operation.cut.is_some_and(Cut::holds);
        self.held_requests |= operation.cut.is_some_and(Cut::holds_requests);
        self.resolve(&mut operation, tampering);
        let doubted = operation.doubt.is_some() || operation.by_run != (0, 0);
        let moved = begun % 2 == 1 || self.shared.step(plan.id) != begun;
        self.results.moved_under += u64::from(doubted && moved);
        if operation.cut.is_some() {
            let one_less = |left: u64| left.checked_sub(1);
            let left = &self.shared.left;
            let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        }
        let reported =
            operation.by_run.1 > 0 || operation.answers.contains(&Resolution::NotCommitted);
        if reported && operation.cut.is_some_and(Cut::holds_requests) && self.held {
            self.held_and_reported += 1;
        }
        self.results.operations.push(operation);
        if self.held && self.random.u8(..3) > 0 {
            self.let_go();
        }
    }

    fn resolve(&mut self, operation: &mut Operation, tampering: Option<Tampering>) {
        let Some(doubt) = &operation.doubt else { return };
        let manner = Manner::any(&mut self.random);
        *self.results.manners.entry(manner).or_default() += 1;
        if self.shared.rule == Rule::OldOwner {
            return; // All of them when the slots have moved.
        }
        if self.shared.rule == Rule::Marker {
            operation.answers = vec![take(self.shared.rule, doubt, operation.plan, &self.shared)];
            return;
        }
        let tampering = tampering.filter(|tampering| tampering.when == When::Resolving);
        let (proxies, shared, number) = (&self.proxies, &self.shared, self.number);
        let (random, id) = (&mut self.random, operation.plan.id);
        operation.answers = thread::scope(|scope| {
            if let Some(tampering) = tampering {
                scope.spawn(move || tamper(&shared.target, number, id, tampering.what));
            }
            ask(doubt, manner, shared.stranger(number), random, &|| proxies.release())
        });
        if manner == Manner::Racing {
            // It is unknown which of the two was first.
            self.held_and_reported = 0;
        }
    }

    /// Lets go of what is held, and waits until it has left for the server.
    fn let_go(&mut self) {
        if !std::mem::take(&mut self.held) {
            return;
        }
        let before = self.proxies.client_bytes();
        self.proxies.release();
        let reported = std::mem::take(&mut self.held_and_reported);
        if std::mem::take(&mut self.held_requests) {
            let left = || (self.proxies.client_bytes() > before).then_some(());
            self.results.late += try_for(ARRIVAL, left).map_or(0, |()| reported);
        }
    }

    fn tampering(&mut self) -> Option<Tampering> {
        if !self.shared.tampered || self.random.u8(..3) == 0 {
            return None;
        }
        self.results.tampered += 1;
        let what = if self.random.u8(..3) == 0 { What::Watched } else { What::Registers };
        let when = [When::Before, When::During, When::Resolving][self.random.usize(..3)];
        Some(Tampering { what, when })
    }
}

#[derive(Clone, Copy, Debug)]
struct Tampering {
    what: What,
    when: When,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Registers,
    Watched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Before,
    During,
    Resolving,
}

fn tamper(target: &Target, number: u64, id: u64, what: What) {
    match what {
        What::Watched => target.read(&["SET", &watched_key(&tag(number, set(id))), "x"]),
        What::Registers => {
            let pattern = format!("{}:*reg:*", prefix(number));
            target.sum(|server| {
                let registers: Vec<String> = server.ask(&["KEYS", &pattern]);
                registers.iter().map(|register| server.ask::<u64>(&["DEL", register])).sum()
            });
        }
    }
}
