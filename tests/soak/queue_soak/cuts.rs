//! Cuts of callers that wait for one connection and do all that can travel with others.
//!
//! Each adds one to a key of its own. Those on the hot key also add one to it, so it holds the number of their own keys that are
//! set, with a million for each write of another process. The control reads the hot key without WATCH.
//!
//! In other runs all of them are on the hot key, and merged; the control returns when the closure has run.
//!
//! `REDISCOPE_QUEUE_CUTS` is the number of rounds.
//!
//! Guarantee: exactly-once, grouped, pools

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rediscope::error::{Applied, Resolution};
use rediscope::prelude::*;
use rediscope::redis::cmd;
use rediscope::{CommitError, Error, TransactionOptions};
use rediscope_testing::eventually;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

use super::cut::{Cut, wait_for_late_bytes};
use super::side::{BuildSide, SessionManager, Transactional};
use crate::SOON;

/// Most rounds wait for a timeout, so more at a time cost little.
const WORKERS: u64 = 16;
/// Time after which a silent server is given up.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(80);
/// What a write of another process adds to a hot key.
const FOREIGN: u64 = 1_000_000;
const ROUNDS: u64 = 120;

#[derive(Clone, Copy, Debug)]
enum Form {
    Grouped,
    Run,
    /// Watches its own key, with a read of it.
    Watch,
    /// Watches the hot key, with a read of it.
    Hot,
    /// The same, and gives up.
    HotAbandoned,
    /// The same, and panics.
    HotPanicked,
}

impl Form {
    fn any(rng: &mut Rng) -> Self {
        let any = [
            Self::Grouped,
            Self::Run,
            Self::Watch,
            Self::Watch,
            Self::Hot,
            Self::Hot,
            Self::Hot,
            Self::HotAbandoned,
            Self::HotPanicked,
        ];
        any[rng.usize(..any.len())]
    }
}

/// What the callers of a run are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    #[default]
    Mixed,
    /// They read the hot key without WATCH.
    Unwatched,
    /// All are on the hot key, and merged.
    Merged,
    /// The same, and a caller counts its block as applied when the closure has run.
    MergedEarly,
}

impl Kind {
    fn merges(self) -> bool {
        matches!(self, Self::Merged | Self::MergedEarly)
    }
}

/// A caller: the form of its transaction, its key, and the options.
#[derive(Clone, Debug)]
struct Member {
    form: Form,
    hot: String,
    key: String,
    once: bool,
    within: Option<Duration>,
}

/// What is known of a member's transaction.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Applied,
    NotApplied,
    /// A doubt that nothing resolves: not exactly once.
    Either,
}

#[derive(Default)]
struct Ledger {
    kind: Kind,
    rounds: AtomicU64,
    cuts: AtomicU64,
    asked: AtomicU64,
    conflicts: AtomicU64,
    ends: Mutex<Vec<(Member, End)>>,
    /// The hot keys, and how often another process has written them.
    foreign: Mutex<Vec<(String, u64)>>,
    wrong: Mutex<Vec<String>>,
}

impl Ledger {
    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }
}

impl Member {
    fn any(kind: Kind, rng: &mut Rng, nth: u64, round: u64, number: usize) -> Self {
        let (any, is_odd) = (Form::any(rng), rng.u8(..4) == 0);
        Self {
            form: match kind {
                // One of them waits for a connection on each side.
                Kind::Mixed | Kind::Unwatched if number == 0 => Form::Watch,
                Kind::Merged | Kind::MergedEarly if !is_odd || number == 0 => Form::Hot,
                _ => any,
            },
            hot: format!("hot:{nth}:{round}"),
            key: format!("key:{nth}:{round}:{number}"),
            once: rng.u8(..4) > 0 && !kind.merges(),
            within: (number > 0 && rng.u8(..8) == 0).then(|| Duration::from_millis(rng.u64(1..60))),
        }
    }

    fn options(&self) -> TransactionOptions {
        let options = TransactionOptions::new();
        let options = if self.once { options.exactly_once() } else { options };
        let options = if matches!(self.form, Form::Grouped) { options.grouped() } else { options };
        self.within.map_or(options.clone(), |within| options.within(within))
    }

    fn run(&self, accounts: &Transactional, ledger: &Ledger) -> Result<(), Error> {
        let accounts = accounts.with(self.options());
        match self.form {
            Form::Grouped | Form::Run => {
                accounts.run(|tx| Ok(tx.incr(&self.key, 1))).map(|_: i64| ())
            }
            Form::Watch => {
                let mut watch = accounts.watch([&self.key]);
                let read = watch.declare::<Option<u64>>(cmd("GET").arg(&self.key).to_owned())?;
                watch
                    .run(|reads, tx| {
                        let found = reads.declared(read)?;
                        if found.is_some() {
                            ledger.wrong(format!("{self:?} read {found:?}"));
                        }
                        Ok(tx.incr(&self.key, 1))
                    })
                    .map(|_: i64| ())
            }
            Form::Hot | Form::HotAbandoned | Form::HotPanicked => {
                let mut watch = match ledger.kind {
                    Kind::Unwatched => accounts.reading(),
                    _ => accounts.watch([&self.hot]),
                };
                let read = watch.declare::<Option<u64>>(cmd("GET").arg(&self.hot).to_owned())?;
                let mut has_run = false;
                let found = watch.run_with(|reads, tx| {
                    if reads.attempt() > 1 {
                        ledger.conflicts.fetch_add(1, Ordering::Relaxed);
                    }
                    let found: Option<u64> = reads.declared(read)?;
                    tx.set(&self.hot, found.unwrap_or(0) + 1);
                    let own = tx.incr(&self.key, 1);
                    match self.form {
                        Form::HotAbandoned => Err(Left::GaveUp),
                        Form::HotPanicked => std::panic::resume_unwind(Box::new("of the closure")),
                        _ => {
                            has_run = true;
                            Ok::<_, Left>(own)
                        }
                    }
                });
                if has_run && ledger.kind == Kind::MergedEarly {
                    return Ok(());
                }
                match found {
                    Ok(_) => Ok(()),
                    Err(Left::GaveUp) => Ok(()),
                    Err(Left::Failed(error)) => Err(error),
                }
            }
        }
    }

    /// Runs the transaction to its end as its caller knows it.
    fn end(&self, accounts: &Transactional, elsewhere: &SessionManager, ledger: &Ledger) -> End {
        let run = std::panic::AssertUnwindSafe(|| self.run(accounts, ledger));
        let Ok(ended) = std::panic::catch_unwind(run) else {
            if !matches!(self.form, Form::HotPanicked) {
                ledger.wrong(format!("{self:?} panicked"));
            }
            return End::NotApplied;
        };
        let error = match ended {
            Ok(()) if matches!(self.form, Form::HotAbandoned) => return End::NotApplied,
            Ok(()) => return End::Applied,
            Err(error) => error,
        };
        let Error::Commit(CommitError::InDoubt(doubt)) = &error else {
            return match error.applied() {
                Applied::Yes => End::Applied,
                Applied::No => End::NotApplied,
                other => {
                    ledger.wrong(format!("{self:?}: {other:?}: {error:#}"));
                    End::Either
                }
            };
        };
        let Some(token) = doubt.token() else {
            if self.once {
                ledger.wrong(format!("{self:?} has no token: {error:#}"));
            }
            return End::Either;
        };
        ledger.asked.fetch_add(1, Ordering::Relaxed);
        match elsewhere.resolve(token, SOON) {
            Resolution::Committed => End::Applied,
            Resolution::NotCommitted => End::NotApplied,
            other => {
                ledger.wrong(format!("{self:?}: {other:?}: {error:#}"));
                End::Either
            }
        }
    }
}

#[derive(Debug)]
enum Left {
    GaveUp,
    Failed(Error),
}

impl From<Error> for Left {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

fn worker(nth: u64, rounds: u64, server: &Server, ledger: &Ledger, mut rng: Rng) {
    let proxy = Proxy::to(server);
    let elsewhere = SessionManager::connect(server.url()).unwrap();
    let here = rediscope::SessionManager::builder(proxy.url())
        .max_size(if ledger.kind.merges() { 4 } else { 1 })
        .max_merged(if ledger.kind.merges() { 8 } else { 1 })
        .connect_timeout(Duration::from_secs(1))
        .response_timeout(RESPONSE_TIMEOUT)
        .checkout_timeout(SOON)
        // Some ask the connection with MULTI first.
        .trust_window([Duration::ZERO, SOON][nth as usize % 2])
        .build_side()
        .unwrap();
    let mut db = server.connection();
    for round in 0..rounds {
        let members = rng.usize(2..17);
        let members: Vec<_> = (0..members)
            .map(|number| Member::any(ledger.kind, &mut rng, nth, round, number))
            .collect();
        let cut = Cut::any(&mut rng);
        let fired = proxy.fired();
        let connections = if ledger.kind.merges() { 4 } else { 1 };
        let held: Vec<_> =
            (0..connections).map(|_| here.transactional().begin().unwrap()).collect();
        let begun = AtomicUsize::new(0);
        thread::scope(|scope| {
            for member in &members {
                let (here, elsewhere, begun) = (here.transactional(), &elsewhere, &begun);
                scope.spawn(move || {
                    begun.fetch_add(1, Ordering::SeqCst);
                    let end = member.end(&here, elsewhere, ledger);
                    ledger.ends.lock().unwrap().push((member.clone(), end));
                });
            }
            eventually(SOON, "they have begun, and one waits", || {
                begun.load(Ordering::SeqCst) == members.len()
                    && here.status().transactional.waiting > 0
            });
            thread::sleep(Duration::from_micros(rng.u64(..2_000)));
            if rng.u8(..4) > 0 {
                proxy.arm(cut.script(150 + 150 * members.len() as u64, &mut rng));
            }
            drop(held);
            let (hot, writes) = (&members[0].hot, rng.u64(..8));
            for _ in 0..writes {
                let _: u64 = cmd("INCRBY").arg(hot).arg(FOREIGN).query(&mut db).unwrap();
                thread::sleep(Duration::from_micros(rng.u64(..500)));
            }
            ledger.foreign.lock().unwrap().push((hot.clone(), writes));
        });
        proxy.disarm();
        cut.end(&proxy);
        ledger.rounds.fetch_add(1, Ordering::Relaxed);
        ledger.cuts.fetch_add((proxy.fired() - fired) as u64, Ordering::Relaxed);
    }
    proxy.release();
    let pool = here.status().transactional;
    if (pool.in_use, pool.waiting) != (0, 0) {
        ledger.wrong(format!("something is left: {pool}"));
    }
}

/// Compares what was returned with what the server holds.
fn audit(server: &Server, ledger: &Ledger) {
    let ends = std::mem::take(&mut *ledger.ends.lock().unwrap());
    let mut db = server.connection();
    let mut hot: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    for chunk in ends.chunks(1_000) {
        let keys: Vec<&str> = chunk.iter().map(|(member, _)| member.key.as_str()).collect();
        let found: Vec<Option<u64>> = cmd("MGET").arg(keys).query(&mut db).unwrap();
        for ((member, end), found) in chunk.iter().zip(found) {
            let fits = match end {
                End::Applied => found == Some(1),
                End::NotApplied => found.is_none(),
                End::Either => matches!(found, None | Some(1)),
            };
            if !fits {
                ledger.wrong(format!("{member:?} is {end:?}, and its key holds {found:?}"));
            }
            let is_hot = matches!(member.form, Form::Hot | Form::HotAbandoned | Form::HotPanicked);
            *hot.entry(&member.hot).or_default() += u64::from(is_hot && found.is_some());
        }
    }
    for (key, foreign) in ledger.foreign.lock().unwrap().iter() {
        let (of_members, found) = (hot.get(key.as_str()), cmd("GET").arg(key).query(&mut db));
        let (of_members, found): (_, Option<u64>) = (of_members.unwrap_or(&0), found.unwrap());
        if found.unwrap_or(0) != of_members + foreign * FOREIGN {
            ledger.wrong(format!(
                "{key} holds {found:?}, {of_members} were applied, and {foreign} of another process"
            ));
        }
    }
    println!(
        "{} rounds, {} cuts, {} transactions, {} asked elsewhere, {} applied, {} in doubt for good, {} attempts more",
        ledger.rounds.load(Ordering::Relaxed),
        ledger.cuts.load(Ordering::Relaxed),
        ends.len(),
        ledger.asked.load(Ordering::Relaxed),
        ends.iter().filter(|(_, end)| *end == End::Applied).count(),
        ends.iter().filter(|(_, end)| *end == End::Either).count(),
        ledger.conflicts.load(Ordering::Relaxed),
    );
}

fn run(rounds: u64, kind: Kind) -> Vec<String> {
    let ledger = Ledger { kind, ..Ledger::default() };
    let (server, mut rng) = (Server::start(), Rng::with_seed(rediscope_testing::soak::seed()));
    thread::scope(|scope| {
        for nth in 0..WORKERS {
            let (rng, server, ledger) = (rng.fork(), &server, &ledger);
            scope.spawn(move || worker(nth, rounds.div_ceil(WORKERS), server, ledger, rng));
        }
    });
    wait_for_late_bytes(&server);
    audit(&server, &ledger);
    assert!(ledger.cuts.load(Ordering::Relaxed) > rounds / 4, "too few cuts to mean anything");
    ledger.wrong.into_inner().unwrap()
}

#[test]
fn whatever_travels_with_others_has_its_own_outcome() {
    rediscope_testing::own_process!(alone);
    let rounds = rediscope_testing::soak::number("REDISCOPE_QUEUE_CUTS").unwrap_or(ROUNDS);
    let wrong = run(rounds, Kind::Mixed);
    let some: Vec<_> = wrong.iter().take(5).collect();
    assert!(wrong.is_empty(), "{} wrong, for example {some:#?}", wrong.len());
}

#[test]
fn reads_of_a_hot_key_without_a_watch_are_found_out() {
    rediscope_testing::own_process!(alone);
    let wrong = run(ROUNDS, Kind::Unwatched);
    println!("{} wrong", wrong.len());
    let lost = |wrong: &String| wrong.starts_with("hot:");
    assert!(wrong.iter().any(lost), "no lost update was found: {:?}", wrong.first());
}

#[test]
fn blocks_that_are_merged_on_a_hot_key_have_their_own_outcomes() {
    rediscope_testing::own_process!(alone);
    let rounds = rediscope_testing::soak::number("REDISCOPE_QUEUE_CUTS").unwrap_or(ROUNDS);
    let wrong = run(rounds, Kind::Merged);
    let some: Vec<_> = wrong.iter().take(5).collect();
    assert!(wrong.is_empty(), "{} wrong, for example {some:#?}", wrong.len());
}

#[test]
fn results_of_merged_blocks_that_are_given_out_before_the_exec_are_found_out() {
    rediscope_testing::own_process!(alone);
    let wrong = run(ROUNDS, Kind::MergedEarly);
    println!("{} wrong", wrong.len());
    let is_not = |wrong: &String| wrong.contains("is Applied, and its key holds None");
    assert!(wrong.iter().any(is_not), "no early result was found: {:?}", wrong.first());
}
