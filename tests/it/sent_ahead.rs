//! A block or a command that waits for a connection is sent by the caller before it, and its outcome is
//! that of its own replies.
//!
//! Guarantee: pools

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use rediscope::error::{Applied, CheckoutError};
use rediscope::redis::cmd;
use rediscope::{
    Cancel, CommitError, Credentials, CredentialsProvider, Error, SessionManager, Transaction,
    TransactionOptions, Transactional, prelude::*,
};

use crate::early_watches::{SHORT, exactly_once, start, start_with, two_users};
use crate::fixture::{Fixture, SLACK, SOON};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};
use rediscope_testing::server::Server;

/// A block that is told from the others by its command.
fn push(accounts: &Transactional, value: &str) -> Result<i64, Error> {
    accounts.run(|tx| Ok(tx.rpush("list", value)))
}

fn list(fixture: &Fixture) -> Vec<String> {
    fixture.server.ask(&["LRANGE", "list", "0", "-1"])
}

/// A block holds the connection while `waits` begins to wait, and then commits. `meanwhile` runs before.
#[track_caller]
fn behind<R: Send>(
    fixture: &Fixture,
    meanwhile: impl FnOnce(),
    waits: impl FnOnce() -> R + Send,
) -> R {
    thread::scope(|scope| {
        let mut tx = fixture.accounts().begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(waits);
        fixture.waiting(1);
        meanwhile();
        tx.commit().unwrap();
        waits.join().unwrap()
    })
}

#[test]
fn blocks_that_wait_are_sent_in_the_order_of_their_arrival_and_counted_once() {
    let fixture = start();
    let accounts = fixture.accounts();
    let before = fixture.sessions.status().transactional.counts;
    let values = ["a", "b", "c", "d"];
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        for (nth, value) in values.iter().enumerate() {
            let accounts = &accounts;
            scope.spawn(move || push(accounts, value).unwrap());
            fixture.waiting(nth + 1);
        }
        tx.commit().unwrap();
    });
    assert_eq!(list(&fixture), values);
    let counts = fixture.sessions.status().transactional.counts;
    assert_eq!((counts.commits - before.commits, counts.checkouts - before.checkouts), (5, 5));
    let sent = fixture.sent();
    let block = ["MULTI", "RPUSH", "EXEC"];
    assert_eq!(sent, [["MULTI", "INCRBY", "EXEC"], block, block, block, block].concat());
    fixture.is_whole();
}

#[test]
fn a_block_that_gave_up_before_it_was_sent_is_not_applied_and_the_next_caller_is_served() {
    let fixture = start();
    let (accounts, cancel) = (fixture.accounts(), Cancel::new());
    let short = fixture.with(TransactionOptions::new().within(SHORT));
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let late = scope.spawn(|| push(&short, "late"));
        fixture.waiting(1);
        let cancelled = scope.spawn(|| cancel.run(|| push(&accounts, "cancelled")));
        fixture.waiting(2);
        let next = scope.spawn(|| push(&accounts, "next"));
        fixture.waiting(3);
        let late = late.join().unwrap();
        assert!(is_checkout(&late, |cause| matches!(cause, CheckoutError::Timeout(_))), "{late:?}");
        cancel.cancel();
        let cancelled = cancelled.join().unwrap();
        let is_cancelled =
            is_checkout(&cancelled, |cause| matches!(cause, CheckoutError::Cancelled));
        assert!(is_cancelled, "{cancelled:?}");
        tx.commit().unwrap();
        assert_eq!(next.join().unwrap().unwrap(), 1);
    });
    assert_eq!(list(&fixture), ["next"]);
    fixture.is_whole();
}

/// It was not sent, because there was no connection for it.
fn is_checkout<T>(result: &Result<T, Error>, cause: impl Fn(&CheckoutError) -> bool) -> bool {
    result.as_ref().is_err_and(|error| {
        error.applied() == Applied::No && error.as_checkout().is_some_and(&cause)
    })
}

#[test]
fn a_block_that_was_sent_gets_its_outcome_past_the_time_for_its_connection() {
    let fixture = start();
    let short = fixture.with(TransactionOptions::new().within(SHORT));
    let hold = || fixture.arm(Trigger::BeforeReplyTo("RPUSH"), Fault::HoldReplies);
    thread::scope(|scope| {
        let waits = scope.spawn(|| behind(&fixture, hold, || push(&short, "late")));
        eventually(SOON, "it was applied", || list(&fixture) == ["late"]);
        // Its time for a connection is over.
        thread::sleep(2 * SHORT);
        fixture.proxy.release();
        assert_eq!(waits.join().unwrap().unwrap(), 1);
    });
    fixture.is_whole();
}

#[test]
fn what_is_cut_after_a_block_was_sent_is_its_own_doubt_and_is_resolved_exactly_once() {
    for (trigger, applied) in [
        (Trigger::BeforeReplyTo("RPUSH"), true),
        (Trigger::BeforeCommandNamed("RPUSH"), false),
        (Trigger::InsideCommandNamed("RPUSH", 9), false),
    ] {
        for options in [TransactionOptions::new(), exactly_once()] {
            let fixture = start();
            let waiter = fixture.with(options);
            // The register is armed.
            waiter.run(|tx| Ok(tx.incr("other", 1))).unwrap();
            let pushed = thread::scope(|scope| {
                let mut tx = waiter.begin().unwrap();
                tx.incr("stock", 1);
                let waits = scope.spawn(|| push(&waiter, "v"));
                fixture.waiting(1);
                fixture.arm(trigger, Fault::Cut);
                tx.commit().unwrap();
                waits.join().unwrap()
            });
            let found = list(&fixture).len();
            match pushed {
                // It was resolved, and sent again.
                Ok(length) => assert_eq!((length, found, applied), (1, 1, false), "{trigger:?}"),
                Err(error) if error.applied() == Applied::Yes => {
                    assert_eq!((found, applied), (1, true), "{trigger:?}: {error:?}");
                }
                Err(error) => {
                    let in_doubt = matches!(error.as_commit(), Some(CommitError::InDoubt(_)));
                    assert!(in_doubt, "{trigger:?}: {error:?}");
                    assert_eq!(found, usize::from(applied), "{trigger:?}");
                }
            }
            fixture.is_whole();
        }
    }
}

#[test]
fn a_refused_block_is_refused_alone() {
    let fixture = start();
    let accounts = fixture.accounts();
    let refused = behind(
        &fixture,
        || {},
        || accounts.run(|tx| Ok(tx.queue::<()>(cmd("SET").arg("alone").to_owned()))),
    );
    let error = refused.unwrap_err();
    assert!(matches!(error.as_commit(), Some(CommitError::Rejected { .. })), "{error:?}");
    assert_eq!((fixture.stock(), fixture.proxy.accepted()), (11, 1));
    fixture.is_whole();
}

#[test]
fn a_manager_that_closes_ends_a_block_that_waits() {
    let fixture = start();
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| push(&accounts, "v"));
        fixture.waiting(1);
        let closes = scope.spawn(|| fixture.sessions.close(SLACK));
        let ended = waits.join().unwrap();
        assert!(is_checkout(&ended, |cause| matches!(cause, CheckoutError::Closed)), "{ended:?}");
        _ = tx.commit();
        _ = closes.join().unwrap();
    });
    assert!(list(&fixture).is_empty());
}

#[test]
fn a_connection_with_former_credentials_carries_no_packet() {
    let (server, credentials, builder) = two_users();
    let sessions = builder.build().unwrap();
    let accounts = sessions.transactional();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        // The list is its user's alone.
        server.acl(&["SETUSER", "first", "resetkeys", "~stock"]);
        let waits = scope.spawn(|| push(&accounts, "v"));
        let waiting = || sessions.status().transactional.waiting == 1;
        eventually(SOON, "the block waits", waiting);
        credentials.rotate(Credentials::new("second", "second"));
        tx.commit().unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), 1);
    });
    assert_eq!(sessions.status().transactional.counts.reauthentications, 1);
}

#[cfg(unix)]
#[test]
fn a_forked_child_sends_nothing_for_a_caller_that_waits_in_its_parent() {
    use std::os::unix::process::CommandExt as _;

    let fixture = start();
    let accounts = fixture.accounts();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        let waits = scope.spawn(|| push(&accounts, "v"));
        fixture.waiting(1);
        match fork::fork().unwrap() {
            fork::Fork::Child => {
                drop(tx);
                let _: std::io::Error = std::process::Command::new("true").exec();
                std::process::abort();
            }
            fork::Fork::Parent(child) => {
                eventually(SOON, "the child has ended", || {
                    fork::waitpid_nohang(child).unwrap().is_some()
                });
            }
        }
        assert_eq!(fixture.sent(), <[String; 0]>::default());
        tx.incr("stock", 1);
        tx.commit().unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), 1);
    });
    assert_eq!(fixture.proxy.accepted(), 1);
    fixture.is_whole();
}

/// A write holds the only connection of the pooled handle, and another one waits.
fn write_behind(fixture: &Fixture, key: &str, meanwhile: impl FnOnce()) -> Result<i64, Error> {
    let pooled = || fixture.sessions.status().pooled;
    fixture.server.ask::<()>(&["DEL", "held"]);
    thread::scope(|scope| {
        fixture.arm(Trigger::BeforeReplyTo("SET"), Fault::HoldReplies);
        let mut db = fixture.sessions.pooled();
        let holder = scope.spawn(move || db.set::<_, _, ()>("held", 1));
        eventually(SOON, "the connection is held", || {
            fixture.server.ask::<bool>(&["EXISTS", "held"])
        });
        let mut db = fixture.sessions.pooled();
        let waits = scope.spawn(move || db.incr::<_, _, i64>(key, 1));
        eventually(SOON, "the write waits", || pooled().waiting == 1);
        meanwhile();
        fixture.proxy.release();
        holder.join().unwrap().unwrap();
        waits.join().unwrap().map_err(Error::from)
    })
}

#[test]
fn a_write_of_the_pooled_handle_that_waits_is_sent_once() {
    let fixture = start_with(|builder| builder);
    let _: () = fixture.sessions.pooled().set("opened", 1).unwrap();
    let before = fixture.sessions.status().pooled.counts.checkouts;
    assert_eq!(write_behind(&fixture, "n", || {}).unwrap(), 1);
    assert_eq!(fixture.sessions.status().pooled.counts.checkouts - before, 2);
    // The reply is lost.
    let cut = || fixture.arm(Trigger::BeforeReplyTo("INCRBY"), Fault::Cut);
    let lost = write_behind(&fixture, "n", cut);
    let error = lost.unwrap_err();
    assert!(matches!(error, Error::Lost { applied: Applied::Unknown, .. }), "{error:?}");
    assert_eq!(fixture.server.ask::<i64>(&["GET", "n"]), 2);
    // A repetition would have been a third.
    let _: () = fixture.sessions.pooled().set("opened", 1).unwrap();
    assert_eq!(fixture.server.ask::<i64>(&["GET", "n"]), 2);
}

/// A provider of the user's, which records the threads that ask for its version.
struct Asked(Mutex<Vec<ThreadId>>);

impl CredentialsProvider for Asked {
    fn credentials(&self) -> Result<Credentials, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Credentials::new("first", "first"))
    }

    fn version(&self) -> u64 {
        self.0.lock().unwrap().push(thread::current().id());
        0
    }
}

/// A block holds the only connection while another one waits, and ends by `end`, on this thread.
#[track_caller]
fn the_provider_is_not_asked_by(
    waits: impl Fn(&Transactional) -> Result<(), Error> + Sync,
    end: impl FnOnce(Transaction),
) {
    let server = Server::start();
    server.acl(&["SETUSER", "first", "on", ">first", "~*", "&*", "+@all"]);
    let provider = Arc::new(Asked(Mutex::default()));
    let sessions = SessionManager::builder(server.url())
        .credentials_provider(Arc::clone(&provider))
        .max_size(1)
        .trust_window(SOON)
        .checkout_timeout(SOON)
        .build()
        .unwrap();
    let accounts = sessions.transactional();
    accounts.run(|tx| Ok(tx.incr("stock", 1))).unwrap();
    thread::scope(|scope| {
        let mut tx = accounts.begin().unwrap();
        tx.incr("stock", 1);
        let waits = scope.spawn(|| waits(&accounts));
        let waiting = || sessions.status().transactional.waiting == 1;
        eventually(SOON, "the block waits", waiting);
        provider.0.lock().unwrap().clear();
        end(tx);
        waits.join().unwrap().unwrap();
        let asked = provider.0.lock().unwrap();
        assert!(!asked.contains(&thread::current().id()), "it may wait, and so would this call");
    });
}

#[test]
fn a_drop_and_a_commit_do_not_call_the_users_own_provider() {
    let pushes = |accounts: &Transactional| push(accounts, "v").map(drop);
    let watches = |accounts: &Transactional| {
        accounts.watch(["stock"]).run(|_, tx| Ok(tx.incr("other", 1))).map(drop)
    };
    the_provider_is_not_asked_by(pushes, drop);
    the_provider_is_not_asked_by(pushes, |tx| _ = tx.commit().unwrap());
    the_provider_is_not_asked_by(watches, |tx| _ = tx.commit().unwrap());
}
