//! A watch that waits for a connection: WATCH and its declared reads travel behind the EXEC of the caller
//! before it, and neither changes what becomes of the other.
//!
//! Guarantee: pools

use std::sync::{Arc, Barrier};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use rediscope::error::{Applied, CheckoutError};
use rediscope::redis::cmd;
use rediscope::status::CloseReason;
use rediscope::{
    Builder, CommitError, Credentials, Error, Outcome, RetryPolicy, RotatingCredentials,
    TransactionOptions, prelude::*,
};

use crate::fixture::{Fixture, SLACK, SOON};
use crate::side::{
    BuildSide, ResolveDoubt, SessionManager, Transaction, Transactional, settled, threads_only,
};
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

/// Time of a call that is to give up.
pub(crate) const SHORT: Duration = Duration::from_millis(300);

/// One open connection that is always trusted.
pub(crate) fn start() -> Fixture {
    start_with(|builder| builder)
}

pub(crate) fn start_with(change: impl FnOnce(Builder) -> Builder) -> Fixture {
    let fixture = Fixture::new(|builder| {
        let builder = builder.trust_window(SOON).checkout_timeout(3 * SOON).response_timeout(SOON);
        change(builder).without_lanes()
    });
    fixture.accounts().run(|tx| Ok(tx.set("stock", 10))).unwrap();
    fixture.sent();
    fixture
}

impl Fixture {
    pub(crate) fn with(&self, options: TransactionOptions) -> Transactional {
        self.accounts().with(options)
    }

    pub(crate) fn stock(&self) -> i64 {
        self.server.ask(&["GET", "stock"])
    }

    pub(crate) fn waiting(&self, callers: usize) {
        eventually(SOON, "the callers wait", || {
            self.sessions.status().transactional.waiting == callers
        });
    }

    /// No connection watches or is in MULTI, and the next blocks are applied.
    #[track_caller]
    pub(crate) fn is_whole(&self) {
        settled(&self.sessions);
        let pool = self.sessions.status().transactional;
        assert_eq!((pool.in_use, pool.waiting, pool.scopes.len()), (0, 0, 0), "{pool}");
        // A watch that was left on the connection would make EXEC nil.
        self.server.ask::<()>(&["INCRBY", "stock", "0"]);
        self.server.ask::<()>(&["DEL", "other"]);
        assert_eq!(self.accounts().run(|tx| Ok(tx.incr("other", 1))).unwrap(), 1);
        let mut watch = self.accounts().watch(["stock"]);
        let stock = watch.declare::<i64>(cmd("GET").arg("stock").to_owned()).unwrap();
        let found = watch.run(|read, tx| {
            tx.incr("other", 1);
            Ok(tx.set("found", read.declared(stock)?))
        });
        found.unwrap();
        assert_eq!(self.server.ask::<i64>(&["GET", "found"]), self.stock());
    }
}

/// Takes one from the stock, by a declared read. Returns what it found, and in how many attempts.
fn take_one(accounts: &Transactional) -> Result<(i64, u32), Error> {
    take_one_after(accounts, |_| {})
}

fn take_one_after(
    accounts: &Transactional,
    meanwhile: impl Fn(u32) + Send + Sync,
) -> Result<(i64, u32), Error> {
    let mut watch = accounts.watch(["stock"]);
    let read = watch.declare::<i64>(cmd("GET").arg("stock").to_owned())?;
    let mut found = (0, 0);
    watch.run(|reads, tx| {
        found = (reads.declared(read)?, reads.attempt());
        meanwhile(found.1);
        Ok(tx.set("stock", found.0 - 1))
    })?;
    Ok(found)
}

pub(crate) type Taken = Result<(i64, u32), Error>;

/// A block holds the connection while a watch begins to wait, and then commits. `meanwhile` runs before.
fn behind<R>(
    fixture: &Fixture,
    holder: &Transactional,
    watcher: &Transactional,
    meanwhile: impl FnOnce(),
    commit: impl FnOnce(Transaction) -> R,
) -> (R, Taken) {
    thread::scope(|scope| {
        let mut tx = holder.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| take_one(watcher));
        fixture.waiting(1);
        meanwhile();
        (commit(tx), waits.join().unwrap())
    })
}

#[test]
fn a_waiting_watch_and_its_reads_travel_behind_the_exec_before_it() {
    let fixture = start();
    let accounts = fixture.accounts();
    let turns = fixture.proxy.turns();
    let (committed, taken) = behind(&fixture, &accounts, &accounts, || {}, |tx| tx.commit());
    committed.unwrap();
    assert_eq!(taken.unwrap(), (11, 1), "what the block before it has written");
    let sent = ["MULTI", "INCRBY", "EXEC", "WATCH", "GET", "MULTI", "SET", "EXEC"];
    assert_eq!(fixture.sent(), sent);
    assert_eq!(fixture.proxy.turns() - turns, 2, "one packet a transaction");
    assert_eq!((fixture.stock(), fixture.proxy.accepted()), (10, 1));
    fixture.is_whole();
}

#[test]
fn a_watch_that_travels_counts_as_waiting_until_it_has_its_connection() {
    let fixture = start();
    let accounts = fixture.accounts();
    let waiting = || fixture.sessions.status().transactional.waiting;
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| take_one(&accounts));
        fixture.waiting(1);
        fixture.arm(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
        let travels = scope.spawn(|| {
            eventually(SOON, "WATCH is sent", || fixture.server.calls("watch") == 1);
            let counted = waiting();
            eventually(SOON, "the replies are held", || fixture.proxy.fired() > 0);
            fixture.proxy.release();
            counted
        });
        tx.commit().unwrap();
        assert_eq!(travels.join().unwrap(), 1);
        assert_eq!(waits.join().unwrap().unwrap(), (11, 1));
    });
    fixture.is_whole();
}

#[test]
fn a_change_after_the_read_that_travelled_is_a_conflict() {
    let fixture = start();
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| {
            take_one_after(&accounts, |attempt| {
                if attempt == 1 {
                    fixture.server.ask::<()>(&["SET", "stock", "100"]);
                }
            })
        });
        fixture.waiting(1);
        tx.commit().unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), (100, 2));
    });
    assert_eq!(fixture.stock(), 99);
    fixture.is_whole();
}

#[test]
fn watches_that_wait_travel_in_the_order_of_their_arrival() {
    let fixture = start();
    let accounts = fixture.accounts();
    let keys = ["a", "b", "c", "d"];
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(nth, key)| {
                let accounts = &accounts;
                let waits = scope.spawn(move || {
                    let mut watch = accounts.watch([*key]);
                    let read = watch.declare::<Option<i64>>(cmd("GET").arg(key).to_owned())?;
                    watch.run(|reads, tx| {
                        assert_eq!(reads.declared(read)?, None);
                        tx.rpush("order", *key);
                        Ok(tx.set(*key, 1))
                    })
                });
                fixture.waiting(nth + 1);
                waits
            })
            .collect();
        let turns = fixture.proxy.turns();
        tx.commit().unwrap();
        waits.into_iter().for_each(|waits| waits.join().unwrap().unwrap());
        assert_eq!(fixture.proxy.turns() - turns, 5, "one packet a transaction");
    });
    assert_eq!(fixture.server.ask::<Vec<String>>(&["LRANGE", "order", "0", "-1"]), keys);
    fixture.is_whole();
}

#[test]
fn a_watch_does_not_pass_a_block_that_waits_before_it() {
    let fixture = start();
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let block = scope.spawn(|| accounts.run(|tx| Ok(tx.incr("stock", 10))));
        fixture.waiting(1);
        let watch = scope.spawn(|| take_one(&accounts));
        fixture.waiting(2);
        tx.commit().unwrap();
        assert_eq!(block.join().unwrap().unwrap(), 21);
        assert_eq!(watch.join().unwrap().unwrap(), (21, 1));
    });
    let sent = [
        ["MULTI", "INCRBY", "EXEC"].as_slice(),
        &["MULTI", "INCRBY", "EXEC", "WATCH", "GET"],
        &["MULTI", "SET", "EXEC"],
    ];
    assert_eq!(fixture.sent(), sent.concat());
    fixture.is_whole();
}

#[test]
fn what_travelled_counts_behind_an_exec_that_the_server_refused_or_answered_with_nil() {
    let fixture = start();
    let accounts = fixture.accounts();
    // Nil.
    thread::scope(|scope| {
        let tx = accounts.watch(["seen"]).begin().unwrap();
        fixture.server.ask::<()>(&["SET", "seen", "1"]);
        let mut tx = tx.multi();
        tx.incr("stock", 5);
        let waits = scope.spawn(|| take_one(&accounts));
        fixture.waiting(1);
        assert!(matches!(tx.commit().unwrap(), Outcome::Conflict));
        assert_eq!(waits.join().unwrap().unwrap(), (10, 1));
    });
    // EXECABORT.
    let refused = |tx: Transaction| {
        let mut tx = tx;
        tx.queue::<()>(cmd("SET").arg("alone").to_owned());
        tx.commit()
    };
    let (aborted, taken) = behind(&fixture, &accounts, &accounts, || {}, refused);
    assert!(matches!(aborted, Err(Error::Commit(CommitError::Rejected { .. }))), "{aborted:?}");
    assert_eq!(taken.unwrap(), (9, 1));
    assert_eq!(fixture.proxy.accepted(), 1, "no connection was replaced");
    assert_eq!(fixture.sent().iter().filter(|name| *name == "WATCH").count(), 3);
    fixture.is_whole();
}

/// What happens to a block's EXEC and what travels behind it, so that nothing is proven of the connection; whether
/// the block is told a doubt, and whether it was applied.
pub(crate) const UNPROVEN: [(Trigger, Fault, bool, bool); 13] = [
    (Trigger::BeforeReplyTo("EXEC"), Fault::Cut, true, true),
    (Trigger::InsideReplyTo("EXEC", 3), Fault::Cut, true, true),
    (Trigger::BeforeReplyTo("EXEC"), Fault::Answer("-ERR a proxy's\r\n"), true, true),
    (Trigger::BeforeReplyTo("EXEC"), Fault::Answer("+OK\r\n"), true, true),
    (Trigger::BeforeReplyTo("EXEC"), Fault::Answer("*0\r\n"), true, true),
    (Trigger::BeforeCommandNamed("EXEC"), Fault::Cut, true, false),
    // The rest of the write was lost, and the reply to EXEC was not.
    (Trigger::AfterReplyTo("EXEC"), Fault::Cut, false, true),
    (Trigger::InsideReplyTo("WATCH", 2), Fault::Cut, false, true),
    (Trigger::BeforeReplyTo("GET"), Fault::Cut, false, true),
    // A refusal or a conflict of another command's, and EXEC's array in place of the reply to WATCH.
    (Trigger::BeforeReplyTo("EXEC"), Fault::Answer("-CLUSTERDOWN no\r\n*1\r\n:11\r\n"), true, true),
    (Trigger::BeforeReplyTo("EXEC"), Fault::Answer("*-1\r\n*1\r\n:11\r\n"), true, true),
    // A reply too many looks like that to WATCH, and two like those to WATCH and GET.
    (Trigger::BeforeReplyTo("EXEC"), Fault::Answer("*1\r\n:11\r\n+OK\r\n"), false, true),
    (
        Trigger::BeforeReplyTo("EXEC"),
        Fault::Answer("*1\r\n:11\r\n+OK\r\n$2\r\n99\r\n"),
        false,
        true,
    ),
];

/// Replies to WATCH after which nothing is known to be watched.
pub(crate) const NOT_OK: [&str; 4] =
    ["-ERR a proxy's\r\n", "-NOPERM no\r\n", "+QUEUED\r\n", "$-1\r\n"];

/// The watch begins on another connection.
#[track_caller]
fn begins_again(trigger: Trigger, fault: Fault, is_doubt: bool, was_applied: bool) {
    let fixture = start();
    let accounts = fixture.accounts();
    let fail = || fixture.arm(trigger, fault);
    let (committed, taken) = behind(&fixture, &accounts, &accounts, fail, |tx| tx.commit());
    let applied = committed.err().map(|error| error.applied());
    assert_eq!(applied, is_doubt.then_some(Applied::Unknown), "{trigger:?}, {fault:?}");
    let stock = 10 + i64::from(was_applied);
    assert_eq!(taken.unwrap(), (stock, 1), "{trigger:?}, {fault:?}");
    assert_eq!(fixture.proxy.accepted(), 2, "its connection was closed");
    assert_eq!(fixture.stock(), stock - 1);
    fixture.is_whole();
}

#[test]
fn a_watch_begins_again_if_the_exec_before_it_proves_nothing() {
    for (trigger, fault, is_doubt, was_applied) in UNPROVEN {
        begins_again(trigger, fault, is_doubt, was_applied);
    }
}

#[test]
fn a_watch_begins_again_if_its_own_reply_is_not_ok() {
    for reply in NOT_OK {
        begins_again(Trigger::BeforeReplyTo("WATCH"), Fault::Answer(reply), false, true);
    }
}

#[test]
fn a_refused_watch_is_refused_alone() {
    let fixture = start();
    fixture.server.ask::<()>(&[
        "ACL",
        "SETUSER",
        "default",
        "resetkeys",
        "~stock",
        "~other",
        "~found",
    ]);
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| accounts.watch(["secret"]).run(|_, tx| Ok(tx.incr("stock", 1))));
        fixture.waiting(1);
        tx.commit().unwrap();
        let refused = waits.join().unwrap().unwrap_err();
        assert_eq!((refused.code(), refused.applied()), (Some("NOPERM"), Applied::No));
    });
    fixture.is_whole();
}

pub(crate) fn exactly_once() -> TransactionOptions {
    TransactionOptions::new().exactly_once()
}

#[test]
fn exactly_once_the_register_is_watched_before_the_keys() {
    let fixture = start();
    let once = fixture.with(exactly_once());
    once.run(|tx| Ok(tx.incr("other", 1))).unwrap();
    let own: &[&str] = &["WATCH", "WATCH", "GET", "MULTI", "SET"];
    // One that needs no register does not travel: it would be undone if the register expired.
    let plain: &[&str] = &["WATCH", "UNWATCH", "WATCH", "GET", "MULTI", "SET"];
    for (watcher, behind_exec) in [(once.clone(), own), (fixture.accounts(), plain)] {
        fixture.sent();
        let (committed, taken) = behind(&fixture, &once, &watcher, || {}, |tx| tx.commit());
        committed.unwrap();
        assert_eq!(taken.unwrap(), (11, 1));
        let (sent, first) =
            (fixture.sent(), [&["MULTI", "INCRBY", "SET", "EXEC"], behind_exec].concat());
        assert!(
            sent.starts_with(&first.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()),
            "{sent:?}"
        );
        once.run(|tx| Ok(tx.incr("other", 1))).unwrap();
    }
    // A plain block leaves the register unwatched, and arming it is a write.
    once.run(|tx| Ok(tx.incr("other", 1))).unwrap();
    fixture.sent();
    let (committed, taken) = behind(&fixture, &fixture.accounts(), &once, || {}, |tx| tx.commit());
    committed.unwrap();
    assert_eq!(taken.unwrap(), (11, 1));
    let sent = fixture.sent();
    let first = ["UNWATCH", "MULTI", "INCRBY", "EXEC", "SET", "WATCH", "WATCH", "GET"];
    assert!(sent.starts_with(&first.map(str::to_owned)), "{sent:?}");
    assert_eq!(fixture.proxy.accepted(), 1);
    fixture.is_whole();
}

#[test]
fn exactly_once_a_watch_begins_again_if_the_register_is_not_watched() {
    let fixture = start();
    let once = fixture.with(exactly_once());
    once.run(|tx| Ok(tx.incr("other", 1))).unwrap();
    let refuse =
        || fixture.arm(Trigger::BeforeReplyTo("WATCH"), Fault::Answer("-NOPERM a proxy's\r\n"));
    let (committed, taken) = behind(&fixture, &once, &once, refuse, |tx| tx.commit());
    committed.unwrap();
    assert_eq!(taken.unwrap(), (11, 1));
    assert_eq!(fixture.proxy.accepted(), 2, "its connection was closed");
    assert_eq!(fixture.stock(), 10);
    fixture.is_whole();
}

#[test]
fn exactly_once_a_doubt_is_resolved_and_the_watch_behind_it_begins_again() {
    for (trigger, found) in
        [(Trigger::BeforeReplyTo("EXEC"), 11), (Trigger::BeforeCommandNamed("EXEC"), 10)]
    {
        let fixture = start();
        let once = fixture.with(exactly_once());
        once.run(|tx| Ok(tx.incr("other", 1))).unwrap();
        let cut = || fixture.arm(trigger, Fault::Cut);
        let (doubt, taken) = behind(&fixture, &once, &once, cut, |tx| tx.commit());
        let doubt = doubt.unwrap_err();
        let Some(CommitError::InDoubt(doubt)) = doubt.as_commit() else { panic!("{doubt:?}") };
        let applied = matches!(doubt.resolved(), rediscope::error::Resolution::Committed);
        assert_eq!(applied, found == 11);
        assert_eq!(taken.unwrap(), (found, 1));
        fixture.is_whole();
    }
}

#[test]
fn a_commit_that_sends_more_behind_exec_carries_no_watch() {
    let fixture = start();
    let hour = Duration::from_secs(3600);
    // Past the proxy, so that the lock's own connections do not count.
    let locks = SessionManager::connect(fixture.server.url()).unwrap();
    let lock = locks.lock("l").lease(hour).acquire(SOON).unwrap();
    let plain = TransactionOptions::new;
    let holders = [
        ("WAIT", fixture.with(plain().wait_replicas(0, Duration::from_millis(1))), 3),
        ("key", fixture.with(plain().exactly_once_as("key", hour)), 4),
        ("lock", fixture.accounts().fenced_by(&lock), 4),
    ];
    for (what, holder, turns) in holders {
        let before = fixture.proxy.turns();
        let accounts = fixture.accounts();
        let (committed, taken) = behind(&fixture, &holder, &accounts, || {}, |tx| tx.commit());
        committed.unwrap();
        assert_eq!(taken.unwrap(), (11, 1), "{what}");
        assert_eq!(fixture.proxy.turns() - before, turns, "{what}: {:?}", fixture.sent());
    }
    fixture.is_whole();
}

#[test]
fn a_watch_of_many_bytes_waits_for_its_connection() {
    let fixture = start();
    let accounts = fixture.accounts();
    let keys: Vec<String> = (0..500).map(|nth| format!("key:{nth:08}")).collect();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| accounts.watch(&keys).run(|_, tx| Ok(tx.incr("stock", 1))));
        fixture.waiting(1);
        let turns = fixture.proxy.turns();
        tx.commit().unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), 12);
        assert_eq!(fixture.proxy.turns() - turns, 3);
    });
    fixture.is_whole();
}

#[test]
fn a_block_does_not_wait_for_the_reads_that_travel_behind_it() {
    let fixture = start();
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| take_one(&accounts));
        fixture.waiting(1);
        let fired = fixture.proxy.fired();
        fixture.arm(Trigger::BeforeReplyTo("GET"), Fault::HoldReplies);
        tx.commit().unwrap();
        eventually(SOON, "the reads are held", || fixture.proxy.fired() > fired);
        fixture.proxy.release();
        assert_eq!(waits.join().unwrap().unwrap(), (11, 1));
    });
    assert_eq!((fixture.stock(), fixture.proxy.accepted()), (10, 1));
    fixture.is_whole();
}

#[test]
fn a_watch_that_gave_up_before_the_commit_is_not_sent() {
    let fixture = start();
    let accounts = fixture.accounts();
    let mut tx = accounts.begin().unwrap();
    tx.incr("stock", 1);
    let short = fixture.with(TransactionOptions::new().within(SHORT));
    let late = thread::scope(|scope| scope.spawn(|| take_one(&short)).join().unwrap());
    assert!(matches!(late, Err(Error::Checkout(CheckoutError::Timeout(_)))), "{late:?}");
    tx.commit().unwrap();
    assert_eq!(fixture.sent(), ["MULTI", "INCRBY", "EXEC"]);
    fixture.is_whole();
}

#[test]
fn a_watch_that_gave_up_after_it_was_sent_leaves_nothing_on_the_connection() {
    for handle in [TransactionOptions::new(), exactly_once()] {
        let fixture = start();
        let accounts = fixture.with(handle);
        accounts.run(|tx| Ok(tx.incr("other", 1))).unwrap();
        fixture.sent();
        let short = accounts.with(TransactionOptions::new().within(SHORT));
        thread::scope(|scope| {
            let mut tx = accounts.begin().unwrap();
            tx.incr("stock", 1);
            let waits = scope.spawn(|| take_one(&short));
            fixture.waiting(1);
            fixture.arm(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
            let holder = scope.spawn(move || tx.commit());
            let late = waits.join().unwrap();
            assert!(matches!(late, Err(Error::Checkout(CheckoutError::Timeout(_)))), "{late:?}");
            fixture.proxy.release();
            holder.join().unwrap().unwrap();
        });
        let sent = fixture.sent();
        assert!(sent.contains(&"UNWATCH".to_owned()), "{sent:?}");
        assert_eq!((fixture.stock(), fixture.proxy.accepted()), (11, 1));
        fixture.is_whole();
        assert_eq!(fixture.proxy.accepted(), 1, "the connection goes on");
    }
}

#[test]
fn a_watch_waits_on_for_any_connection_if_the_one_it_was_sent_on_goes_silent() {
    // It waits on after a quarter of this time.
    let fixture = start_with(|builder| builder.max_size(2).response_timeout(SOON / 2));
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let (mut silent, mut other) = (accounts.begin().unwrap(), accounts.begin().unwrap());
        silent.incr("stock", 1);
        other.incr("other", 1);
        // Opened now, so that no other caller does.
        silent.check().unwrap();
        other.check().unwrap();
        let waits: ScopedJoinHandle<'_, Taken> = scope.spawn(|| take_one(&accounts));
        fixture.waiting(1);
        fixture.arm(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
        let holder = scope.spawn(move || silent.commit());
        eventually(SOON, "EXEC was applied", || fixture.stock() == 11);
        other.discard().unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), (11, 1));
        assert!(!holder.is_finished(), "its reply is still held");
        fixture.proxy.release();
        holder.join().unwrap().unwrap();
    });
    assert_eq!((fixture.stock(), fixture.proxy.accepted()), (10, 2));
    fixture.is_whole();
}

#[test]
fn a_closure_that_panics_on_what_travelled_leaves_nothing_on_the_connection() {
    let fixture = start();
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| take_one_after(&accounts, |_| panic!("the closure's own")));
        fixture.waiting(1);
        tx.commit().unwrap();
        waits.join().unwrap_err();
    });
    assert_eq!(fixture.stock(), 11);
    fixture.is_whole();
}

#[test]
fn a_manager_that_closes_ends_a_watch_that_waits() {
    let fixture = start();
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| take_one(&accounts));
        fixture.waiting(1);
        fixture.arm(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
        let holder = scope.spawn(move || tx.commit());
        eventually(SOON, "EXEC was applied", || fixture.stock() == 11);
        let closes = scope.spawn(|| fixture.sessions.close(SLACK));
        let ended = waits.join().unwrap();
        assert!(matches!(ended, Err(Error::Checkout(_) | Error::Lost { .. })), "{ended:?}");
        fixture.proxy.release();
        _ = holder.join().unwrap();
        _ = closes.join().unwrap();
    });
    assert_eq!(fixture.stock(), 11);
}

#[test]
fn a_watch_that_travels_while_its_manager_closes_ends_at_once() {
    // It would look again after a quarter of that.
    let fixture =
        start_with(|builder| builder.response_timeout(8 * SOON).checkout_timeout(18 * SOON));
    let accounts = fixture.accounts();
    let probe = fixture.with(TransactionOptions::new().within(Duration::from_millis(1)));
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| take_one(&accounts));
        fixture.waiting(1);
        fixture.arm(Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
        let holder = scope.spawn(move || tx.commit());
        eventually(SOON, "EXEC was applied", || fixture.stock() == 11);
        let closes = scope.spawn(|| fixture.sessions.close(SOON));
        eventually(SOON, "the manager is closed", || {
            matches!(probe.begin(), Err(Error::Checkout(CheckoutError::Closed)))
        });
        let begun = Instant::now();
        let ended = waits.join().unwrap();
        assert!(matches!(ended, Err(Error::Checkout(CheckoutError::Closed))), "{ended:?}");
        assert!(begun.elapsed() < SOON, "it waited for the reply to EXEC");
        fixture.proxy.release();
        holder.join().unwrap().unwrap();
        assert_eq!(closes.join().unwrap().scopes, 0);
    });
    assert_eq!(fixture.stock(), 11);
    let replaced = fixture.sessions.status().transactional.counts.replaced;
    assert!(replaced.iter().all(|(reason, _)| *reason != CloseReason::LeftDirty), "{replaced:?}");
}

/// Each counter is the number of its commits, whatever was lost between.
#[test]
fn counters_are_right_whatever_is_cut() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).max_size(2).trust_window(SOON);
    let sessions = builder
        .checkout_timeout(3 * SOON)
        .response_timeout(SOON)
        .without_lanes()
        .build_side()
        .unwrap();
    let retry = RetryPolicy::default().attempts(1000).deadline(SOON);
    let plain = sessions.transactional().with(TransactionOptions::new().retry(retry));
    let handles = [plain.clone(), plain.with(exactly_once().retry(retry))];
    let names = ["WATCH", "GET", "EXEC", "MULTI"];
    let counted = thread::scope(|scope| {
        let workers: Vec<_> = (0..12)
            .map(|worker| {
                let (handles, proxy) = (&handles, &proxy);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(worker);
                    let (mut certain, mut possible) = ([0; 4], [0; 4]);
                    for _ in 0..60 {
                        let (nth, key) = (random.usize(..4), random.usize(..4));
                        let handle = &handles[random.usize(..2)];
                        if random.u8(..20) == 0 {
                            let name = names[nth];
                            let at = random.u64(..6);
                            let trigger = match random.bool() {
                                true => Trigger::InsideReplyTo(name, at),
                                false => Trigger::InsideCommandNamed(name, at * 4),
                            };
                            proxy.arm(Script::from((trigger, Fault::Cut)).once());
                        }
                        let name = format!("n{key}");
                        let counted = if random.u8(..4) == 0 {
                            handle.run(|tx| Ok(tx.incr(&name, 1))).map(drop)
                        } else {
                            let mut watch = handle.watch([&name]);
                            let read = watch.declare(cmd("GET").arg(&name).to_owned()).unwrap();
                            watch.run(|reads, tx| {
                                let n: Option<i64> = reads.declared(read)?;
                                Ok(tx.set(&name, n.unwrap_or_default() + 1))
                            })
                        };
                        match counted {
                            Ok(()) => certain[key] += 1,
                            Err(error) => match error.applied() {
                                Applied::Yes | Applied::Partly => certain[key] += 1,
                                Applied::Unknown => possible[key] += 1,
                                Applied::No => {}
                            },
                        }
                    }
                    (certain, possible)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    for key in 0..4 {
        let found: i64 = server.ask::<Option<i64>>(&["GET", &format!("n{key}")]).unwrap_or(0);
        let certain: i64 = counted.iter().map(|(certain, _)| certain[key]).sum();
        let possible: i64 = counted.iter().map(|(_, possible)| possible[key]).sum();
        assert!(
            (certain..=certain + possible).contains(&found),
            "n{key}: {found}, {certain}, {possible}"
        );
    }
}

#[test]
fn a_watch_that_reached_a_slots_former_master_is_redirected_alone() {
    let cluster = Cluster::start(3, 0);
    let sessions = SessionManager::builder(cluster.url()).max_size(1).trust_window(SOON);
    let sessions = sessions
        .checkout_timeout(3 * SOON)
        .response_timeout(SOON)
        .without_lanes()
        .build_side()
        .unwrap();
    let accounts = sessions.transactional();
    let slots = cluster.slots_of(0);
    let (held, moved) =
        (cluster.key_in(slots[0], "held"), cluster.key_in(slots[slots.len() - 1], "moved"));
    accounts.run(|tx| Ok(tx.set(&moved, 10))).unwrap();
    thread::scope(|scope| {
        let mut tx = accounts.begin_at(&held).unwrap();
        tx.incr(&held, 1);
        let waits = scope.spawn(|| {
            let mut watch = accounts.watch([&moved]);
            let read = watch.declare::<i64>(cmd("GET").arg(&moved).to_owned())?;
            watch.run(|reads, tx| {
                assert_eq!(reads.attempt(), 1);
                Ok(tx.set(&moved, reads.declared(read)? - 1))
            })
        });
        eventually(SOON, "the watch waits", || sessions.status().transactional.waiting == 1);
        cluster.migrate(cluster.slot(&moved), 1);
        tx.commit().unwrap();
        waits.join().unwrap().unwrap();
    });
    assert_eq!(cluster.read::<i64>(&["GET", &moved]), 9);
    assert_eq!(accounts.run(|tx| Ok(tx.incr(&held, 1))).unwrap(), 2);
}

#[test]
fn a_watch_that_travelled_on_a_connection_past_its_lifetime_begins_on_another_one() {
    let fixture = start_with(|builder| builder.max_lifetime(Some(SHORT)));
    let accounts = fixture.accounts();
    let ages = || {
        let begun = Instant::now();
        eventually(SOON, "its lifetime is over", || begun.elapsed() > 2 * SHORT);
    };
    let (committed, taken) = behind(&fixture, &accounts, &accounts, ages, |tx| tx.commit());
    committed.unwrap();
    assert_eq!(taken.unwrap(), (11, 1));
    let sent = fixture.sent();
    assert_eq!(sent.iter().filter(|name| *name == "WATCH").count(), 2, "{sent:?}");
    fixture.is_whole();
}

/// The server has changed, so all connections that were opened before are replaced.
#[test]
fn a_watch_that_travelled_on_an_outdated_connection_begins_on_another_one() {
    let fixture = start_with(|builder| builder.max_size(2));
    let accounts = fixture.accounts();
    let (committed, taken) = thread::scope(|scope| {
        let mut outdated = accounts.begin().unwrap();
        outdated.incr("stock", 1);
        let mut refused = accounts.begin().unwrap();
        refused.incr("other", 1);
        let readonly = Fault::Answer("-READONLY of another server\r\n");
        fixture.arm(Trigger::BeforeReplyTo("EXEC"), readonly);
        refused.commit().unwrap_err();
        let young = accounts.begin().unwrap();
        let waits = scope.spawn(|| take_one(&accounts));
        fixture.waiting(1);
        fixture.sent();
        let committed = outdated.commit();
        let taken = waits.join().unwrap();
        young.discard().unwrap();
        (committed, taken)
    });
    committed.unwrap();
    assert_eq!(taken.unwrap(), (11, 1));
    let sent = fixture.sent();
    assert_eq!(sent.iter().filter(|name| *name == "WATCH").count(), 2, "{sent:?}");
    let replaced = fixture.sessions.status().transactional.counts.replaced;
    assert!(replaced.contains(&(CloseReason::Outdated, 1)), "{replaced:?}");
    fixture.is_whole();
}

/// A server with two users, the credentials of the first one, and a session of one connection with them.
pub(crate) fn two_users() -> (Server, Arc<RotatingCredentials>, Builder) {
    let server = Server::start();
    for name in ["first", "second"] {
        server.acl(&["SETUSER", name, "on", &format!(">{name}"), "~*", "&*", "+@all"]);
    }
    let credentials = Arc::new(RotatingCredentials::new(Credentials::new("first", "first")));
    let builder = SessionManager::builder(server.url())
        .credentials_provider(Arc::clone(&credentials))
        .max_size(1)
        .trust_window(SOON)
        .checkout_timeout(SOON);
    (server, credentials, builder)
}

#[test]
fn a_connection_with_former_credentials_carries_no_watch() {
    let (_server, credentials, builder) = two_users();
    let sessions = builder.without_lanes().build_side().unwrap();
    let accounts = sessions.transactional();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| take_one(&accounts));
        let waiting = || sessions.status().transactional.waiting == 1;
        eventually(SOON, "the watch waits", waiting);
        credentials.rotate(Credentials::new("second", "second"));
        tx.commit().unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), (1, 1));
    });
    assert_eq!(sessions.status().transactional.counts.reauthentications, 1);
}

/// Where one caller's message waits, it would wait for the reads of another one too.
#[test]
fn a_read_that_takes_long_does_not_travel() {
    let patient = |builder: Builder| builder.response_timeout(SHORT);
    let fixture = start_with(patient);
    let (accounts, hasty) =
        (fixture.accounts(), fixture.with(TransactionOptions::new().within(2 * SHORT)));
    let slow = "local t = redis.call('TIME') local from = t[1] * 1000000 + t[2] repeat t = redis.call('TIME') \
                until t[1] * 1000000 + t[2] - from > 600000 return 1";
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| {
            let mut watch = hasty.watch(["stock"]).retry(RetryPolicy::never());
            let read = watch.declare::<i64>(cmd("EVAL_RO").arg(slow).arg(0).to_owned()).unwrap();
            watch.run(|reads, tx| {
                reads.declared(read)?;
                Ok(tx.incr("other", 1))
            })
        });
        fixture.waiting(1);
        tx.commit().expect("it was applied, and its reply came at once");
        waits.join().unwrap().unwrap_err();
    });
    assert_eq!(fixture.stock(), 11);
}

#[test]
fn a_watch_behind_an_exactly_once_block_does_not_watch_its_register() {
    let fixture = start();
    let (accounts, once) =
        (fixture.accounts(), fixture.with(TransactionOptions::new().exactly_once()));
    let stock = thread::scope(|scope| {
        let mut tx = once.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| {
            take_one_after(&accounts, |_| {
                // As if it had expired, or was evicted.
                for register in fixture.server.ask::<Vec<String>>(&["KEYS", "*reg*"]) {
                    fixture.server.ask::<()>(&["DEL", &register]);
                }
            })
        });
        fixture.waiting(1);
        tx.commit().unwrap();
        waits.join().unwrap().unwrap()
    });
    assert_eq!(stock, (11, 1), "no key of its own has changed");
    fixture.is_whole();
}

threads_only! {
    /// A caller that leads no group any more holds up none.
    #[test]
    fn a_group_is_not_passed_over_by_watches_behind_its_leader() {
        let fixture = start_with(|builder| {
            builder.trust_window(Duration::ZERO).max_leaders(1)
        });
        let (accounts, grouped) =
            (fixture.accounts(), fixture.with(TransactionOptions::new().grouped()));
        let watch = |name: &'static str, meanwhile: &dyn Fn()| {
            let mut watch = accounts.watch(["stock"]);
            let read = watch.declare::<i64>(cmd("GET").arg("stock").to_owned()).unwrap();
            watch
                .run(|reads, tx| {
                    reads.declared(read)?;
                    meanwhile();
                    Ok(tx.rpush("order", name))
                })
                .unwrap();
        };
        let (begun, goes_on) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            fixture.arm(Trigger::BeforeReplyTo("MULTI"), Fault::HoldReplies);
            let leader = scope.spawn(|| grouped.run(|tx| Ok(tx.rpush("order", "leader"))));
            eventually(SOON, "MULTI was sent", || fixture.sent().contains(&"MULTI".to_owned()));
            let first = scope.spawn(|| {
                watch("first", &|| _ = (begun.wait(), goes_on.wait()));
            });
            fixture.waiting(1);
            fixture.proxy.release();
            leader.join().unwrap().unwrap();
            begun.wait();
            let group = scope.spawn(|| grouped.run(|tx| Ok(tx.rpush("order", "group"))));
            fixture.waiting(1);
            let second = scope.spawn(|| watch("second", &|| {}));
            fixture.waiting(2);
            goes_on.wait();
            first.join().unwrap();
            group.join().unwrap().unwrap();
            second.join().unwrap();
        });
        let order = fixture.server.ask::<Vec<String>>(&["LRANGE", "order", "0", "-1"]);
        assert_eq!(order, ["leader", "first", "group", "second"]);
    }
}
