//! Masters are killed, frozen and replaced under 16 writers. What each call returned must be what the
//! surviving master holds.
//!
//! The negative control writes to the former master's own address, as a program without sentinels
//! would: the same comparison must find what it lost.
//!
//! `REDISCOPE_FAILOVERS=10 cargo test --release --test it -- --nocapture failover::sentinels::` is the
//! soak.
//!
//! Guarantee: sentinels

use super::{CLOSED_WITHIN, FAILOVER};
use crate::side::{BuildSide as _, SessionManager, Transactional};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rediscope::error::{Applied, CheckoutError, ReplyError, Resolution};
use rediscope::prelude::*;
use rediscope::{CommitError, Error, Outcome, RetryPolicy, TransactionOptions};

use rediscope_testing::sentinel::{Group, clients};
use rediscope_testing::soak::{number, seed};
use rediscope_testing::{eventually, try_for};

const SEED: u64 = 1;
const WRITERS: u64 = 16;
/// Checkout timeouts, one longer than a failover and one shorter.
const CHECKOUTS: [Duration; 2] = [Duration::from_secs(4), Duration::from_millis(1500)];
const CONNECT: Duration = Duration::from_millis(400);
const RESPONSE: Duration = Duration::from_millis(500);
/// No attempt of `run` begins later than this after the first one.
const POLICY: Duration = Duration::from_secs(6);
/// Time past its deadline at which a checkout error may be returned, on a busy machine.
const LATE: Duration = Duration::from_secs(5);
/// Number of commits that every replica acknowledged, before the failover and after it.
const ENOUGH: u64 = 150;

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Kill,
    Stop,
    Order,
}

/// How a writer writes.
#[derive(Clone, Copy, Debug)]
enum Form {
    Run,
    /// Without waiting for replicas. On tasks these blocks share connections.
    Quick,
    Watch,
    Guard,
}

const FORMS: [Form; 4] = [Form::Run, Form::Quick, Form::Watch, Form::Guard];

/// What one transaction returned: it added an element to one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reported {
    There,
    /// Applied, and fewer replicas have it than required, or an unknown number.
    NotReplicated,
    /// In doubt, and resolved: as `NotReplicated`, or not applied.
    Doubted,
    NotApplied,
    /// No connection in time.
    Checkout,
    /// Lost before EXEC, or refused by a read-only server: returned to a transaction by hand.
    NotSent,
    Unknown,
}

impl Reported {
    fn is_denied(self) -> bool {
        matches!(self, Self::NotApplied | Self::Checkout | Self::NotSent)
    }
}

/// What came of it.
struct Found {
    books: Vec<(String, Reported)>,
    there: BTreeMap<String, u64>,
    /// Connections to the former master, some time after the switch.
    left: usize,
    /// Time after the switch was known until there were none.
    gone_after: Duration,
    /// The longest wait for a checkout error, of `run` and by hand.
    longest: [Duration; 2],
    took: Duration,
}

#[test]
fn whatever_replaces_the_master_no_reported_outcome_is_missing_on_the_survivor() {
    let seed = seed();
    for round in 0..number("REDISCOPE_FAILOVERS").unwrap_or(1) {
        for (nth, trouble) in [Trouble::Kill, Trouble::Stop, Trouble::Order].into_iter().enumerate()
        {
            let checkout = CHECKOUTS[(round as usize + nth) % 2];
            let found = survive(seed ^ (round << 8), trouble, Some(checkout));
            println!("| {round} | {trouble:?} | {found} |");
            let wrong = found.wrong();
            let some = &wrong[..wrong.len().min(20)];
            assert!(some.is_empty(), "{trouble:?}: {some:#?}");
            assert_eq!(found.left, 0, "connected to the former master");
            assert!(found.count(Reported::There) > 200, "{trouble:?}: too few to prove anything");
            let [run, hand] = found.longest;
            assert!(run < POLICY + checkout + LATE && hand < checkout + LATE, "{run:?} {hand:?}");
        }
    }
}

#[test]
fn a_client_that_misses_the_switch_is_found_to_have_lost_acknowledged_writes() {
    let found = survive(SEED, Trouble::Order, None);
    println!("| control | Order | {found} |");
    assert!(
        found.wrong().iter().any(|(_, reported)| *reported == Reported::There),
        "nothing was lost"
    );
    assert!(found.left > 0, "no client was connected to the former master");
}

/// With sentinels and this `checkout_timeout`, or straight to the address of the first master.
fn survive(seed: u64, trouble: Trouble, checkout: Option<Duration>) -> Found {
    let (group, follows_switches) = (Group::start(), checkout.is_some());
    let former = &group.servers[0];
    let url = if follows_switches { group.url() } else { former.url() };
    let sessions = SessionManager::builder(url)
        .connect_timeout(CONNECT)
        .response_timeout(RESPONSE)
        .checkout_timeout(checkout.unwrap_or(CHECKOUTS[0]))
        .build_side()
        .unwrap();
    let options = TransactionOptions::new()
        .exactly_once()
        .retry(RetryPolicy::default().attempts(1_000).deadline(POLICY));
    let options = match follows_switches {
        true => options.wait_replicas(2, RESPONSE),
        // It would fail, because no replica follows it any more.
        false => options,
    };
    let mut random = Rng::with_seed(seed);
    let before = random.u64(ENOUGH..3 * ENOUGH);
    let quick = TransactionOptions::new()
        .exactly_once()
        .retry(RetryPolicy::default().attempts(1_000).deadline(POLICY));
    let load = Load {
        checkout: checkout.unwrap_or(CHECKOUTS[0]),
        once: sessions.transactional().with(options),
        quick: sessions.transactional().with(quick),
        sessions,
        over: AtomicBool::new(false),
        committed: AtomicU64::new(0),
        longest: [AtomicU64::new(0), AtomicU64::new(0)],
    };
    let (begun, mut left, mut gone_after) = (Instant::now(), 0, Duration::ZERO);
    let books: Vec<(String, Reported)> = thread::scope(|scope| {
        // Also where this panics: the others would go on for ever.
        scopeguard::defer! { load.over.store(true, Ordering::Relaxed) }
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (load, random) = (&load, Rng::with_seed(random.u64(..)));
                scope.spawn(move || load.work(writer, random))
            })
            .collect();
        let grows = |by: u64| {
            let committed = || load.committed.load(Ordering::Relaxed);
            let enough = committed() + by;
            eventually(FAILOVER, "the writers write", || committed() >= enough);
        };
        grows(before);
        match trouble {
            Trouble::Kill => former.sigkill(),
            Trouble::Stop => former.sigstop(),
            Trouble::Order => group.fail_over(),
        }
        let successor = group.successor_of(former.port());
        match trouble {
            Trouble::Kill => former.restart_on_same_port(),
            Trouble::Stop => former.sigcont(),
            Trouble::Order => {}
        }
        let port = format!(":{}", successor.port());
        let knows = || load.sessions.status().server.ends_with(&port);
        if follows_switches {
            eventually(FAILOVER, "the switch is known", knows);
        }
        // Once none is left none of ours comes again: sentinels and replicas do, and have no name at
        // first.
        let as_expected = |left: &usize| (*left == 0) == follows_switches;
        let known = Instant::now();
        let gone = try_for(CLOSED_WITHIN, || Some(clients(former)).filter(as_expected));
        left = gone.unwrap_or_else(|| clients(former));
        gone_after = known.elapsed();
        grows(ENOUGH);
        load.over.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().expect("a writer died")).collect()
    });
    load.sessions.close(Duration::ZERO);
    let survivor = group.successor_of(former.port());
    let mut there = BTreeMap::<String, u64>::new();
    for id in survivor.ask::<Vec<String>>(&["LRANGE", "done", "0", "-1"]) {
        *there.entry(id).or_default() += 1;
    }
    let longest = load.longest.map(|millis| Duration::from_millis(millis.into_inner()));
    Found { books, there, left, gone_after, longest, took: begun.elapsed() }
}

struct Load {
    sessions: SessionManager,
    checkout: Duration,
    once: Transactional,
    quick: Transactional,
    over: AtomicBool,
    committed: AtomicU64,
    longest: [AtomicU64; 2],
}

impl Load {
    fn work(&self, writer: u64, mut random: Rng) -> Vec<(String, Reported)> {
        let mut books = Vec::new();
        for nth in 0..100_000 {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let (id, form) = (format!("{writer}:{nth}"), FORMS[random.usize(..FORMS.len())]);
            let reported = self.write(&format!("own:{writer}"), &id, form);
            self.committed.fetch_add(u64::from(reported == Reported::There), Ordering::Relaxed);
            books.push((id, reported));
        }
        books
    }

    fn write(&self, own: &str, id: &str, form: Form) -> Reported {
        let begun = Instant::now();
        let error = match self.attempt(own, id, form) {
            Ok(()) if matches!(form, Form::Quick) => return Reported::NotReplicated,
            Ok(()) => return Reported::There,
            Err(error) => error,
        };
        let by_hand = matches!(form, Form::Guard);
        let checkout = |error: &Error| {
            let known = matches!(
                error,
                Error::Checkout(CheckoutError::Connect { .. } | CheckoutError::Timeout(_))
            );
            // As long as there is time for another connection, WATCH is sent on another one.
            let late = matches!(error, Error::Lost { during, applied: Applied::No, .. }
                if during == "WATCH" && begun.elapsed() >= self.checkout);
            let known = known || late;
            let waited = begun.elapsed().as_millis() as u64;
            if known {
                self.longest[usize::from(by_hand)].fetch_max(waited, Ordering::Relaxed);
            }
            known
        };
        let reported = match &error {
            error if checkout(error) => Some(Reported::Checkout),
            Error::Commit(CommitError::NotReplicated { .. }) => Some(Reported::NotReplicated),
            // It was in doubt and is resolved as applied, and its replies are read.
            Error::Reply(ReplyError::Lost) => Some(Reported::Doubted),
            Error::Commit(CommitError::InDoubt(doubt)) => Some(self.resolve(doubt)),
            Error::Commit(CommitError::NotSent { .. }) if by_hand => Some(Reported::NotSent),
            Error::Commit(CommitError::Rejected { code, .. }) if by_hand && code == "READONLY" => {
                Some(Reported::NotSent)
            }
            // WATCH, or a read under it.
            Error::Lost { .. } if by_hand && error.applied() == Applied::No => {
                Some(Reported::NotSent)
            }
            _ => None,
        };
        // Without sentinels it returns any error of a read-only server.
        let anything = self.sessions.status().server.starts_with("127.");
        reported.unwrap_or_else(|| {
            assert!(anything, "{form:?}: {error}");
            Reported::Unknown
        })
    }

    fn attempt(&self, own: &str, id: &str, form: Form) -> Result<(), Error> {
        match form {
            Form::Run => self.once.run(|tx| Ok(tx.rpush("done", id))).map(drop),
            Form::Quick => self.quick.run(|tx| Ok(tx.rpush("done", id))).map(drop),
            Form::Watch => self
                .once
                .watch([own])
                .run(|read, tx| {
                    let n: Option<u64> = read.get(own)?;
                    tx.set(own, n.unwrap_or(0) + 1);
                    Ok(tx.rpush("done", id))
                })
                .map(drop),
            Form::Guard => {
                let mut watching = self.once.watch([own]).begin()?;
                let n: Option<u64> = watching.get(own)?;
                let mut tx = watching.multi();
                tx.set(own, n.unwrap_or(0) + 1);
                tx.rpush("done", id);
                match tx.commit()? {
                    Outcome::Committed(_) => Ok(()),
                    Outcome::Conflict => panic!("no other client writes it"),
                }
            }
        }
    }

    fn resolve(&self, doubt: &rediscope::error::InDoubt) -> Reported {
        let token = doubt.token().expect("exactly once");
        let known = try_for(FAILOVER, || match self.sessions.resolve(token, None) {
            Resolution::StillUnknown { .. } => None,
            known => Some(known),
        });
        match known {
            Some(Resolution::NotCommitted) => Reported::NotApplied,
            // Applied, on an unknown number of replicas.
            Some(Resolution::Committed) => Reported::Doubted,
            _ => Reported::Unknown,
        }
    }
}

impl Found {
    fn count(&self, wanted: Reported) -> usize {
        self.books.iter().filter(|(_, reported)| *reported == wanted).count()
    }

    /// What was returned and is not true.
    fn wrong(&self) -> Vec<&(String, Reported)> {
        let is_wrong = |(id, reported): &&(String, Reported)| {
            let times = self.there.get(id).copied().unwrap_or(0);
            times > 1
                || *reported == Reported::There && times == 0
                || reported.is_denied() && times > 0
        };
        self.books.iter().filter(is_wrong).collect()
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for reported in
            [Reported::There, Reported::NotReplicated, Reported::Doubted, Reported::NotApplied]
        {
            write!(f, "{} | ", self.count(reported))?;
        }
        for reported in [Reported::Checkout, Reported::NotSent, Reported::Unknown] {
            write!(f, "{} | ", self.count(reported))?;
        }
        let (left, seconds) = (self.left, self.took.as_secs_f64());
        let gone = self.gone_after.as_secs_f64();
        let [run, hand] = self.longest.map(|longest| longest.as_secs_f64());
        write!(
            f,
            "{run:.1}, {hand:.1} | {left} after {gone:.2} | {} | {seconds:.1}",
            self.wrong().len()
        )
    }
}
