//! `status()` and the warnings about scopes: the counters, and the holders of connections.
//!
//! Guarantee: reports

use crate::fixture::SOON;
use std::panic::Location;
use std::thread;
use std::time::Duration;

use rediscope::error::CheckoutError;
use rediscope::status::CloseReason;
use rediscope::{
    Begin, CommitError, Error, RetryPolicy, SessionManager, TransactionOptions, prelude::*, redis,
};
use tracing::Level;

use super::listen::{Recorded, Seen};
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, unique};

const OWN_WRITE: &str = "a watching closure writes a watched key past its block";

/// The lines of this file about which the log warns, for the scopes of that name.
fn own_writes(seen: &Seen, name: &str, key: &str) -> Vec<String> {
    let mut events = seen.named(OWN_WRITE);
    events.retain(|event| event.field("name") == Some(name));
    let place = |event: &Recorded| {
        assert!(event.level == Level::WARN && !format!("{event:?}").contains(key), "{event:?}");
        event.field("place").unwrap().to_owned()
    };
    events.iter().map(place).collect()
}

#[test]
fn a_closure_whose_own_writes_are_its_conflicts_is_warned_of_once_for_its_place() {
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let (name, key, seen) = (unique("own"), unique("key"), Seen::from_here());
    let options = TransactionOptions::new().name(&*name).retry(RetryPolicy::default().attempts(2));
    let accounts = sessions.transactional().with(options);
    let (watch, mut db) = (accounts.watch(["a", &*key]), sessions.pooled());
    let exhausted = |result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::RetriesExhausted { attempts: 2, .. })), "{result:?}");
    };
    let first = line!() + 2;
    for _ in 0..3 {
        exhausted(watch.run(|_, tx| {
            let _: () = db.set(&key, 1)?;
            Ok(tx.set("done", 1))
        }));
    }
    let second = line!() + 1;
    exhausted(watch.run(|_, tx| {
        accounts.run(|tx| Ok(tx.incr(&key, 1)))?;
        Ok(tx.set("done", 1))
    }));
    // Another client's write, and writes that no watch is concerned with.
    exhausted(watch.run(|_, tx| {
        let _: () = db.set("other", 1)?;
        let _: Option<i64> = db.get(&key)?;
        server.ask::<()>(&["INCR", &key]);
        Ok(tx.set("done", 1))
    }));
    let _: () = db.set(&key, 1).unwrap();
    assert_eq!(watch.run(|_, tx| Ok(tx.incr(&key, 1))).unwrap(), 2);
    let place = |line| format!("{}:{line}", file!());
    let warned = own_writes(&seen, &name, &key);
    assert!(warned.len() == 2, "{warned:?}");
    assert!(warned[0].starts_with(&place(first)), "{warned:?}");
    assert!(warned[1].starts_with(&place(second)), "{warned:?}");
}

#[cfg(feature = "tokio")]
#[test]
fn a_closure_of_tasks_whose_own_writes_are_its_conflicts_is_warned_of_too() {
    use rediscope::aio;

    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (name, key, seen) = (unique("own"), unique("key"), Seen::from_here());
    runtime.block_on(async {
        let sessions = aio::SessionManager::connect(server.url()).unwrap();
        let policy = RetryPolicy::default().attempts(2);
        let options = TransactionOptions::new().name(&*name).retry(policy);
        let accounts = sessions.transactional().with(options);
        let (watch, db) = (accounts.watch([&*key]), sessions.pooled());
        let by_lane = watch.run(async |_, tx| {
            let _: () = db.clone().set(&key, 1).await?;
            Ok(tx.set("done", 1))
        });
        assert!(matches!(by_lane.await, Err(Error::RetriesExhausted { .. })));
        let by_block = watch.run(async |_, tx| {
            tokio::task::yield_now().await;
            accounts.run(|tx| Ok(tx.incr(&key, 1))).await?;
            Ok(tx.set("done", 1))
        });
        assert!(matches!(by_block.await, Err(Error::RetriesExhausted { .. })));
        let by_another = watch.run(async |_, tx| {
            server.ask::<()>(&["INCR", &key]);
            Ok(tx.set("done", 1))
        });
        assert!(matches!(by_another.await, Err(Error::RetriesExhausted { .. })));
        sessions.close(SOON).await;
    });
    assert_eq!(own_writes(&seen, &name, &key).len(), 2, "{seen:?}");
}

#[test]
fn a_scope_open_for_long_is_warned_of_once_with_file_and_line_and_then_reclaimed_with_them() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::builder(server.url())
        .max_size(1)
        .pin_warning(Some(Duration::from_millis(50)))
        .max_pin_time(Duration::from_millis(400))
        .build()
        .unwrap();
    let name = unique("long");
    let accounts = sessions.transactional().with(TransactionOptions::new().name(name.as_str()));
    let everywhere = Seen::everywhere();
    let recorded = |text: &str| {
        let ours = |e: &Recorded| e.field("name") == Some(&name);
        let events: Vec<_> = everywhere.named(text).into_iter().filter(ours).collect();
        events
    };

    let (tx, line) = (accounts.begin().unwrap(), line!());
    let place = format!("{}:{line}", file!());
    let taken = "scope reclaimed: not used for max_pin_time; its transaction was discarded";
    eventually(SOON, "the scope is taken back", || !recorded(taken).is_empty());
    eventually(SOON, "it was warned of", || !recorded("scope open for long").is_empty());

    let warned = recorded("scope open for long");
    assert_eq!(warned.len(), 1, "warned more than once");
    for event in [&warned[0], &recorded(taken)[0]] {
        assert_eq!(event.level, Level::WARN);
        let recorded = event.field("place").unwrap();
        assert!(recorded.starts_with(&place), "{recorded} does not name {place}");
        assert_eq!(event.field("thread"), thread::current().name());
        assert!(event.field("age").is_some_and(|age| age.ends_with('s')), "{event:?}");
        assert_eq!(event.field("scope"), None);
    }
    assert!(matches!(tx.commit(), Err(Error::PinExpired(_))));
    assert_eq!(recorded(taken).len(), 1, "taken back once");
}

#[test]
fn no_commit_that_outlasts_its_scope_is_logged_as_discarded() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let everywhere = Seen::everywhere();
    let reclaimed = || {
        let mut events = everywhere.events();
        events.retain(|event| event.starts_with("scope reclaimed"));
        events
    };
    let pin = Duration::from_millis(450);
    let sessions = SessionManager::builder(proxy.url()).max_size(1).max_pin_time(pin);
    let sessions = sessions.build().unwrap();
    let accounts = sessions.transactional();
    let mut tx =
        accounts.with(TransactionOptions::new().wait_replicas(1, 4 * pin)).begin().unwrap();
    tx.set("key", 1);
    let error = tx.commit().unwrap_err();
    assert!(matches!(error, Error::Commit(CommitError::NotReplicated { .. })), "{error:?}");
    assert_eq!(server.ask::<i64>(&["GET", "key"]), 1);
    assert!(reclaimed().is_empty(), "{:?}", reclaimed());
    assert_eq!(sessions.status().transactional.counts.replaced, []);
    let mut watching = accounts.watch(["key"]).begin().unwrap();
    proxy.set_delays(Duration::ZERO, 4 * pin);
    assert_eq!(watching.get::<_, i64>("key").unwrap(), 1);
    assert_eq!(reclaimed(), ["scope reclaimed: a call of it lasted longer than max_pin_time"]);

    let seen = reclaimed().len();
    let sessions = SessionManager::builder(server.url()).max_size(2).build().unwrap();
    let accounts = sessions.transactional();
    let mut tx = accounts.with(TransactionOptions::new().wait_replicas(1, SOON)).begin().unwrap();
    tx.set("key", 2);
    let open = accounts.begin().unwrap();
    thread::scope(|scope| {
        let commits = scope.spawn(|| tx.commit().unwrap_err());
        eventually(SOON, "it is applied", || server.ask::<i64>(&["GET", "key"]) == 2);
        assert_eq!(sessions.close(Duration::ZERO).scopes, 2);
        let error = commits.join().unwrap();
        assert!(matches!(error, Error::Commit(CommitError::NotReplicated { .. })), "{error:?}");
    });
    assert_eq!(reclaimed()[seen..], ["scope reclaimed: it was open when its pool was closed"]);
    drop(open);
}

#[test]
fn status_counts_what_was_done() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = SessionManager::builder(proxy.url())
        .max_size(1)
        .max_pin_time(Duration::from_millis(300))
        .build()
        .unwrap();
    let (mut db, accounts) = (sessions.pooled(), sessions.transactional());
    let mut other = server.connection();
    let immediate = TransactionOptions::new().begin(Begin::Immediate);

    accounts.run(|tx| Ok(tx.set("a", "text"))).unwrap();
    let _ = accounts.run(|tx| Ok((tx.set("b", 1), tx.incr("a", 1)))).unwrap_err();
    let mut tx = accounts.begin().unwrap();
    tx.set("b", 2);
    tx.commit().unwrap();

    let mut watched = accounts.watch(["b"]).begin().unwrap().multi();
    redis::cmd("SET").arg("b").arg(3).exec(&mut other).unwrap();
    watched.set("b", 4);
    assert!(watched.commit().unwrap().is_conflict());

    drop(accounts.begin().unwrap());
    accounts.begin_with(immediate.clone()).unwrap().discard().unwrap();
    accounts.watch(["b"]).begin().unwrap().abandon().unwrap();

    let mut disturb = true;
    let again = accounts.watch(["b"]).run(|_, tx| {
        if std::mem::take(&mut disturb) {
            redis::cmd("INCR").arg("b").exec(&mut other).unwrap();
        }
        Ok(tx.incr("b", 1))
    });
    assert_eq!(again.unwrap(), 5);

    let counts = sessions.status().transactional.counts;
    let all = (counts.commits, counts.conflicts, counts.discards, counts.retries);
    assert_eq!(all, (4, 2, 3, 1));
    assert_eq!((counts.connects, counts.all_replaced()), (1, 0), "all of that on one connection");
    assert_eq!(counts.checkouts, 9);

    // What is lost, and why.
    proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::Cut));
    let lost = accounts.run(|tx| Ok(tx.incr("b", 1)));
    assert!(matches!(lost.unwrap_err().as_commit(), Some(CommitError::InDoubt(_))));
    proxy.disarm();
    accounts.run(|tx| Ok(tx.incr("b", 1))).unwrap();
    server.kill_all_clients_except_me();
    accounts.begin_with(immediate.clone()).unwrap().discard().unwrap();
    let panicked = thread::spawn({
        let (accounts, immediate) = (accounts.clone(), immediate.clone());
        move || {
            let _tx = accounts.begin_with(immediate).unwrap();
            // Not `panic!`: writing a backtrace may take longer than `max_pin_time`.
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    });
    assert!(panicked.join().is_err());
    std::mem::forget(accounts.begin().unwrap());
    let replaced = |reason| {
        let replaced = sessions.status().transactional.counts.replaced;
        replaced.iter().find(|(why, _)| *why == reason).map_or(0, |(_, count)| *count)
    };
    eventually(SOON, "the forgotten scope is taken back", || replaced(CloseReason::Reclaimed) == 1);
    let counts = sessions.status().transactional.counts;
    assert_eq!(counts.in_doubt, 1);
    assert_eq!(
        counts.replaced,
        [(CloseReason::Closed, 2), (CloseReason::LeftDirty, 1), (CloseReason::Reclaimed, 1)]
    );

    let _: () = db.set("c", 1).unwrap();
    db.with_raw(|_| ()).unwrap();
    let _: i64 = db.get("c").unwrap();
    let _ = redis::cmd("SELECT").arg(1).exec(&mut db).unwrap_err();
    let counts = sessions.status().pooled.counts;
    assert_eq!(counts.replaced, [(CloseReason::Raw, 1)]);
    assert_eq!((counts.connects, counts.commits), (2, 0));

    proxy.close_listener();
    proxy.cut_all();
    let refused = accounts.begin_with(immediate).unwrap_err();
    assert!(matches!(refused, Error::Checkout(CheckoutError::Connect { .. })), "{refused}");
    let status = sessions.status().transactional;
    assert!(status.counts.connect_failures >= 1);
    assert!(status.last_connect_error.is_some());
    assert!(status.counts.refused >= 1);
    proxy.reopen_listener();
    accounts.run(|tx| Ok(tx.incr("b", 1))).unwrap();
    assert!(sessions.status().transactional.last_connect_error.is_none(), "that is over");
}

#[test]
fn status_is_one_readable_report_of_the_holders() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(2).build().unwrap();
    let accounts = sessions.transactional().with(TransactionOptions::new().name("transfer"));
    assert_eq!(
        sessions.status().to_string(),
        format!(
            "redis {}\n\
             pooled: 0 of 2 open, 0 in use, 0 idle, 0 waiting\n  {}\n\
             transactional: 0 of 2 open, 0 in use, 0 idle, 0 waiting\n  {}",
            server.address(),
            counts_line(0, 0),
            counts_line(0, 0)
        )
    );

    let (tx, line) = (accounts.begin().unwrap(), line!());
    let place: &Location = Location::caller();
    let plain = sessions.transactional();
    let holder = thread::Builder::new().name("holder".to_owned()).spawn(move || plain.begin());
    let second = holder.unwrap().join().unwrap().unwrap();
    let waiter = thread::spawn({
        let accounts = accounts.clone();
        move || accounts.begin().map(drop)
    });
    eventually(SOON, "a caller waits", || sessions.status().transactional.waiting == 1);
    let status = sessions.status();
    let pool = &status.transactional;
    assert_eq!((pool.size, pool.in_use, pool.idle, pool.waiting), (2, 2, 0, 1));
    let first = &pool.scopes[0];
    assert_eq!((first.begun_at.file(), first.begun_at.line()), (place.file(), line));
    assert_eq!(first.name.as_deref(), Some("transfer"));
    assert!(!first.is_closure);

    let report = status.to_string();
    let lines: Vec<_> = report.lines().collect();
    assert_eq!(lines.len(), 7, "{report}");
    assert_eq!(lines[3], "transactional: 2 of 2 open, 2 in use, 0 idle, 1 waiting");
    assert_eq!(lines[4], format!("  {}", counts_line(2, 2)));
    let held_by = format!("  held by \"transfer\" {}:{line}:", file!());
    assert!(lines[5].starts_with(&held_by), "{report}");
    assert!(lines[6].contains(" on thread \"holder\" for "), "{report}");

    drop((tx, second));
    waiter.join().unwrap().unwrap();
    let pool = sessions.status().transactional;
    assert_eq!((pool.in_use, pool.idle, pool.waiting, pool.scopes.len()), (0, 2, 0, 0));
}

fn counts_line(checkouts: u64, connects: u64) -> String {
    format!(
        "{checkouts} checkouts, 0 commits, 0 conflicts, 0 discards, 0 retries, 0 in doubt, \
         0 resolved as committed, 0 resolved as not committed, 0 unresolved, 0 checkouts refused, \
         {connects} connects, 0 failed connects, 0 re-authentications, 0 replaced"
    )
}

#[test]
fn events_for_the_operator_are_warnings_once_a_second_with_a_count_of_the_others() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = SessionManager::builder(proxy.url())
        .max_size(1)
        .connect_timeout(Duration::from_millis(50))
        .response_timeout(Duration::from_millis(100))
        .checkout_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let once = TransactionOptions::new().exactly_once();
    let (accounts, name) = (sessions.transactional(), unique("alarm"));
    let named = accounts.with(TransactionOptions::new().name(name.as_str()));
    accounts.run(|tx| Ok(tx.set("text", "t"))).unwrap();
    let seen = Seen::from_here();
    let warned = |text: &str, outcome: Option<&str>| -> Vec<Recorded> {
        let ours = |recorded: &Recorded| {
            recorded.level == Level::WARN && recorded.field("outcome") == outcome
        };
        seen.named(text).into_iter().filter(ours).collect()
    };

    for _ in 0..5 {
        let partly = named.run(|tx| Ok((tx.set("b", 1), tx.incr("text", 1)))).unwrap_err();
        assert!(matches!(partly.as_commit(), Some(CommitError::PartlyApplied { .. })));
        proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::Cut));
        let lost = named.run(|tx| Ok(tx.incr("b", 1))).unwrap_err();
        assert!(matches!(lost.as_commit(), Some(CommitError::InDoubt(_))));
        proxy.disarm();
    }
    for outcome in ["partly applied", "in doubt"] {
        // More than one only where this machine took more than a second for them.
        let events = warned(&format!("transaction {outcome}"), Some(outcome));
        assert!((1..=4).contains(&events.len()), "{outcome}: {}", events.len());
        assert_eq!(events[0].field("suppressed"), Some("0"));
        assert_eq!(events[0].field("name"), Some(&*name));
        assert!(events[0].field("place").unwrap().starts_with(file!()), "{:?}", events[0]);
        assert!(events[0].field("error").is_some());
    }

    let mut tx = accounts.with(once).begin().unwrap();
    tx.incr("b", 1);
    proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::Cut));
    let lost = tx.commit().unwrap_err();
    proxy.refuse_new(true);
    let Error::Commit(CommitError::InDoubt(doubt)) = lost else { panic!("{lost}") };
    for _ in 0..3 {
        drop(sessions.resolve(doubt.token().unwrap(), Duration::from_millis(20)));
    }
    assert!(!warned("a commit in doubt was not resolved", None).is_empty());
    for _ in 0..3 {
        accounts.begin().map(drop).unwrap_err();
    }
    let refused = warned("checkout refused", None);
    assert!(!refused.is_empty() && refused.len() <= 3);
    // The next one a second later has the number of them.
    eventually(SOON, "the count of the others is logged", || {
        accounts.begin().map(drop).unwrap_err();
        warned("checkout refused", None)
            .iter()
            .any(|recorded| recorded.field("suppressed") != Some("0"))
    });
}

#[test]
fn a_session_manager_is_shown_in_one_line() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap();
    let (_guard, _lock) = (sessions.transactional().begin(), sessions.lock("l").try_acquire());
    for shown in [format!("{sessions:?}"), format!("{sessions:#?}")] {
        assert!(!shown.contains('\n') && shown.len() < 200, "{shown}");
        assert!(shown.contains(&server.address().to_string()), "{shown}");
        assert!(shown.contains("transactional: 1 of 8 in use"), "{shown}");
    }
    // And whatever holds one.
    for shown in [
        format!("{:?}", sessions.pooled()),
        format!("{:?}", sessions.transactional()),
        format!("{:?}", sessions.lock("l")),
    ] {
        assert!(shown.len() < 1500, "{shown}");
    }
}
