//! Every call ends in time, however silent the server is, and capacity comes back: from a server
//! that was stopped, from one that was down for long, from scopes that never end.
//!
//! Guarantee: deadlines

use crate::fixture::{LONG, SOON};
use crate::side::BuildSide as _;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::side::SessionManager;
use rediscope::error::{Applied, CheckoutError, ConnectionErrorKind, LockError};
use rediscope::prelude::*;
use rediscope::{Begin, Builder, CommitError, Error, Outcome, RetryPolicy, TransactionOptions};

use rediscope_testing::eventually;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

const CONNECT: Duration = Duration::from_millis(600);
/// Longer than [`CLEANUP`] and [`CALL_SLACK`] together, which tells them apart.
const RESPONSE: Duration = Duration::from_millis(1500);
const CLEANUP: Duration = Duration::from_millis(200);
const CHECKOUT: Duration = Duration::from_millis(3700);
/// Time that a busy machine may add to a call. Less than [`RESPONSE`], so that it hides no timeout.
const CALL_SLACK: Duration = Duration::from_millis(1000);

fn builder(url: String) -> Builder {
    SessionManager::builder(url)
        .connect_timeout(CONNECT)
        .response_timeout(RESPONSE)
        .cleanup_timeout(CLEANUP)
        .checkout_timeout(CHECKOUT)
}

/// What a call may have to wait for.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Cleanup,
    Response,
    Checkout,
}

impl Limit {
    fn bound(self) -> Duration {
        match self {
            Self::Cleanup => CLEANUP + CALL_SLACK,
            Self::Response => RESPONSE + CLEANUP + CALL_SLACK,
            Self::Checkout => CHECKOUT + RESPONSE + CLEANUP + CALL_SLACK,
        }
    }
}

/// A call that meets the silence: its name, its bound, and what it does, which is to fail (or to
/// say why not).
struct Call<'c> {
    name: &'static str,
    limit: Limit,
    act: Box<dyn FnOnce() -> Result<(), String> + Send + 'c>,
}

fn call<'c>(
    name: &'static str,
    limit: Limit,
    act: impl FnOnce() -> Result<(), String> + Send + 'c,
) -> Call<'c> {
    Call { name, limit, act: Box::new(act) }
}

fn wrong<T: std::fmt::Debug>(what: T) -> Result<(), String> {
    Err(format!("{what:?}"))
}

/// Guards and handles that were made while the server replied.
fn calls<'c>(trusting: &'c SessionManager, asking: &'c SessionManager) -> Vec<Call<'c>> {
    let once = TransactionOptions::new().retry(RetryPolicy::never());
    let immediate = once.clone().begin(Begin::Immediate);
    let plain = |sessions: &SessionManager| {
        let mut tx = sessions.transactional().begin().unwrap();
        tx.incr("n", 1);
        tx
    };
    let begun = || {
        let mut tx = trusting.transactional().begin_with(immediate.clone()).unwrap();
        tx.incr("n", 1);
        tx
    };
    let watching = || trusting.transactional().watch(["watched"]).begin().unwrap();
    let (trusted, untrusted) = (plain(trusting), plain(asking));
    let (dropped, discarded, committed) = (begun(), begun(), begun());
    let (mut reads, unwatched, abandoned, writes) =
        (watching(), watching(), watching(), watching());
    let (once_, immediate_) = (once.clone(), immediate.clone());
    vec![
        call("commit on a trusted connection", Limit::Response, || match trusted.commit() {
            Err(Error::Commit(CommitError::InDoubt(_))) => Ok(()),
            other => wrong(other),
        }),
        // Not sent, because no other connection could be opened.
        call("commit on an untrusted connection", Limit::Checkout, || match untrusted.commit() {
            Err(Error::Checkout(CheckoutError::Connect { .. })) => Ok(()),
            other => wrong(other),
        }),
        call("commit behind MULTI", Limit::Response, || match committed.commit() {
            Err(Error::Commit(CommitError::InDoubt(_))) => Ok(()),
            other => wrong(other),
        }),
        call("drop behind MULTI", Limit::Cleanup, || {
            drop(dropped);
            Ok(())
        }),
        call("discard behind MULTI", Limit::Cleanup, || match discarded.discard() {
            Err(Error::Lost { applied: Applied::No, source, .. })
                if source.kind() == ConnectionErrorKind::TimedOut =>
            {
                Ok(())
            }
            other => wrong(other),
        }),
        call("a watched read, then commit", Limit::Response, move || {
            match reads.get::<_, Option<i64>>("watched") {
                Err(Error::Lost { applied: Applied::No, .. }) => {}
                other => return wrong(other),
            }
            match reads.multi().commit() {
                Err(Error::Commit(CommitError::NotSent { .. })) => Ok(()),
                other => wrong(other),
            }
        }),
        call("drop while watching", Limit::Cleanup, || {
            drop(unwatched);
            Ok(())
        }),
        call("abandon", Limit::Cleanup, || match abandoned.abandon() {
            Err(Error::Lost { .. }) => Ok(()),
            other => wrong(other),
        }),
        call("commit while watching", Limit::Response, || {
            let mut tx = writes.multi();
            tx.incr("n", 1);
            match tx.commit() {
                Err(Error::Commit(CommitError::InDoubt(_))) => Ok(()),
                other => wrong(other.map(Outcome::committed)),
            }
        }),
        call("begin, immediate", Limit::Checkout, move || {
            match asking.transactional().begin_with(immediate_) {
                Err(Error::Checkout(CheckoutError::Connect { .. }) | Error::Lost { .. }) => Ok(()),
                other => wrong(other),
            }
        }),
        call("watch", Limit::Checkout, || {
            match asking.transactional().watch(["watched"]).begin() {
                Err(Error::Checkout(CheckoutError::Connect { .. }) | Error::Lost { .. }) => Ok(()),
                other => wrong(other),
            }
        }),
        call("run", Limit::Checkout, move || {
            match asking.transactional().with(once_).run(|tx| Ok(tx.incr("n", 1))) {
                Err(error) if error.applied() == Applied::No => Ok(()),
                other => wrong(other),
            }
        }),
        call("a pooled read", Limit::Checkout, || {
            match asking.pooled().get::<_, Option<i64>>("n") {
                Err(error) if Error::from(error.clone()).applied() == Applied::No => Ok(()),
                other => wrong(other),
            }
        }),
        call("a pooled write", Limit::Checkout, || {
            match asking.pooled().incr::<_, _, i64>("n", 1) {
                Err(error) if Error::from(error.clone()).applied() == Applied::No => Ok(()),
                other => wrong(other),
            }
        }),
    ]
}

/// How often the calls above are applied in the end: those that were in doubt, each once.
const LATE: u32 = 3;
/// What ends too late on a busy machine is tried again.
const TRIES: u32 = 3;

fn every_call_ends_in_time(silence: fn(&Server, &Proxy), end: fn(&Server, &Proxy)) {
    let late: Vec<_> = (0..TRIES).map_while(|_| every_call_ends(silence, end)).collect();
    assert!(late.len() < TRIES as usize, "{}", late.join("\n"));
}

/// What ended too late.
fn every_call_ends(silence: fn(&Server, &Proxy), end: fn(&Server, &Proxy)) -> Option<String> {
    let late = Mutex::new(Vec::new());
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let trusting = builder(proxy.url()).max_size(16).trust_window(LONG).build_side().unwrap();
    let asking = builder(proxy.url()).trust_window(Duration::ZERO).build_side().unwrap();
    // Idle connections in all pools that the calls use.
    let idle: Vec<_> = (0..4).map(|_| asking.transactional().begin().unwrap()).collect();
    drop(idle);
    let _: Option<i64> = asking.pooled().get("n").unwrap();
    let calls = calls(&trusting, &asking);
    silence(&server, &proxy);
    let failures: Vec<String> = thread::scope(|scope| {
        let late = &late;
        let make = |Call { name, limit, act }| {
            scope.spawn(move || {
                let begun = Instant::now();
                let ended = act();
                let took = begun.elapsed();
                match ended {
                    Err(why) => Some(format!("{name}: {why}")),
                    _ if took > limit.bound() => {
                        late.lock().unwrap().push(format!("{name}: took {took:?}"));
                        None
                    }
                    Ok(()) => None,
                }
            })
        };
        let running: Vec<_> = calls.into_iter().map(make).collect();
        running.into_iter().filter_map(|call| call.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    crate::side::settled(&trusting);
    crate::side::settled(&asking);
    for status in [&trusting, &asking].map(SessionManager::status) {
        assert_eq!((status.transactional.in_use, status.pooled.in_use), (0, 0), "{status}");
    }

    end(&server, &proxy);
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            for sessions in [&trusting, &asking] {
                scope.spawn(|| {
                    sessions.transactional().run(|tx| Ok(tx.incr("after", 1))).unwrap();
                    let _: i64 = sessions.pooled().incr("after", 1).unwrap();
                });
            }
        }
    });
    // A connect that began in the silence has to end first.
    let bound = CONNECT + RESPONSE + CALL_SLACK;
    let mut late = late.into_inner().unwrap();
    if begun.elapsed() > bound {
        late.push(format!("the pool came back after {:?}", begun.elapsed()));
    }
    assert_eq!(server.ask::<u32>(&["GET", "after"]), 32);
    let applied = || server.ask::<Option<u32>>(&["GET", "n"]).unwrap_or(0);
    eventually(SOON, "what was on its way arrives", || applied() >= LATE);
    drop((trusting, asking));
    eventually(SOON, "no client is connected any more", || server.clients() == 0);
    assert_eq!(applied(), LATE);
    (!late.is_empty()).then(|| late.join("\n"))
}

#[test]
fn every_call_ends_in_time_when_the_server_is_stopped() {
    every_call_ends_in_time(|server, _| server.sigstop(), |server, _| server.sigcont());
}

#[test]
fn every_call_ends_in_time_in_a_black_hole() {
    every_call_ends_in_time(
        |_, proxy| proxy.silence(),
        |_, proxy| {
            proxy.mute_new(false);
            proxy.release();
        },
    );
}

#[test]
fn a_server_that_was_down_for_long_is_used_within_two_seconds_of_its_return() {
    const DOWN: Duration = Duration::from_secs(5);
    let server = Server::start();
    // Or the first to come would find a connection it need not ask, and be in doubt.
    let sessions = builder(server.url()).trust_window(Duration::ZERO).build_side().unwrap();
    sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let _: i64 = sessions.pooled().incr("n", 1).unwrap();
    let took: Vec<_> = (0..TRIES)
        .map(|_| used_again_after(DOWN, &server, &sessions))
        .take_while(|took| *took > Duration::from_secs(2))
        .collect();
    assert!(took.len() < TRIES as usize, "{took:?}");
}

/// How long after the server's return.
fn used_again_after(downtime: Duration, server: &Server, sessions: &SessionManager) -> Duration {
    server.sigkill();
    let down = Instant::now();
    // Under use, so that the pauses between two attempts to connect grow to their maximum, 250 ms.
    thread::scope(|scope| {
        scope.spawn(|| {
            while down.elapsed() < downtime {
                let error = sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap_err();
                assert!(error.is_retryable() && error.applied() == Applied::No, "{error}");
            }
        });
        scope.spawn(|| {
            while down.elapsed() < downtime {
                let error = sessions.pooled().incr::<_, _, i64>("n", 1).unwrap_err();
                assert_eq!(Error::from(error).applied(), Applied::No);
            }
        });
    });
    server.restart_on_same_port();
    let back = Instant::now();
    // Each at the first try.
    sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let _: i64 = sessions.pooled().incr("n", 1).unwrap();
    let took = back.elapsed();
    assert_eq!(server.ask::<u32>(&["GET", "n"]), 2);
    took
}

#[test]
fn a_manager_built_while_the_server_is_down_works_once_it_is_up() {
    let server = Server::start();
    server.sigterm_and_wait();
    let sessions = builder(server.url()).min_idle(2).build_side().unwrap();
    let begun = Instant::now();
    let error = sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap_err();
    assert!(error.is_retryable() && error.applied() == Applied::No, "{error}");
    let error = Error::from(sessions.pooled().incr::<_, _, i64>("n", 1).unwrap_err());
    assert!(matches!(error, Error::Checkout(CheckoutError::Connect { .. })), "{error}");
    assert!(begun.elapsed() < 2 * CHECKOUT + SOON, "{:?}", begun.elapsed());
    server.restart_on_same_port();
    sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let _: i64 = sessions.pooled().incr("n", 1).unwrap();
    assert_eq!(server.ask::<u32>(&["GET", "n"]), 2);
}

/// A call of a handle.
type AnyCall = fn(&crate::side::Transactional) -> Result<(), Error>;

/// The wait of a call that got no connection.
#[track_caller]
fn waited<T: std::fmt::Debug>(result: Result<T, Error>) -> Duration {
    let error = result.unwrap_err();
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, true), "{error}");
    match error.as_checkout() {
        Some(CheckoutError::Timeout(timeout)) => timeout.waited,
        _ => panic!("{error:?}"),
    }
}

#[test]
fn a_call_has_a_wait_and_a_deadline_of_its_own_in_place_of_the_settings() {
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(1).checkout_timeout(LONG);
    let sessions = sessions.without_lanes().build_side().unwrap();
    let accounts = sessions.transactional();
    let held = accounts.begin().unwrap();
    let short = Duration::from_millis(30);
    for options in [
        || TransactionOptions::new().within(Duration::from_millis(30)),
        || TransactionOptions::new().deadline(Instant::now() + Duration::from_millis(30)),
        || TransactionOptions::new().within(LONG).deadline(Instant::now()),
    ] {
        let calls: [AnyCall; 5] = [
            |accounts| accounts.begin().map(drop),
            |accounts| accounts.run(|tx| Ok(tx.set("key", 1))),
            |accounts| {
                accounts.with(TransactionOptions::new().grouped()).run(|tx| Ok(tx.set("key", 1)))
            },
            |accounts| accounts.watch(["key"]).begin().map(drop),
            |accounts| accounts.watch(["key"]).run(|_, tx| Ok(tx.set("key", 1))),
        ];
        for call in calls {
            assert!(waited(call(&accounts.with(options()))) < short + SOON);
        }
    }
    held.discard().unwrap();
    crate::side::settled(&sessions);
    let in_time = accounts.with(TransactionOptions::new().within(SOON));
    assert_eq!(in_time.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    // No attempt begins after the deadline, whatever the policy allows.
    let policy = RetryPolicy::default().attempts(u32::MAX).deadline(LONG);
    let ends = TransactionOptions::new().retry(policy).deadline(Instant::now() + 4 * short);
    let always = accounts.with(ends).watch(["n"]).run(|_, tx| {
        server.ask::<()>(&["INCR", "n"]);
        Ok(tx.set("key", 1))
    });
    assert!(
        // The time may end in each step of an attempt.
        matches!(
            &always,
            Err(Error::RetriesExhausted { .. } | Error::Checkout(_) | Error::Lost { .. })
        ),
        "{always:?}"
    );
    assert_eq!(always.unwrap_err().applied(), Applied::No);
    assert_eq!(server.ask::<i64>(&["EXISTS", "key"]), 0);
}

#[test]
fn a_call_may_wait_for_longer_than_the_settings_say() {
    let server = Server::start();
    let timeout = Duration::from_millis(250);
    let builder = SessionManager::builder(server.url()).max_size(1).connect_timeout(timeout);
    let builder = builder.response_timeout(timeout).checkout_timeout(3 * timeout);
    let sessions = builder.without_lanes().build_side().unwrap();
    let accounts = sessions.transactional();
    let held = accounts.begin().unwrap();
    thread::scope(|scope| {
        let patient = accounts.with(TransactionOptions::new().within(SOON));
        let patient = scope.spawn(move || patient.run(|tx| Ok(tx.incr("n", 1))));
        eventually(SOON, "it waits", || sessions.status().transactional.waiting == 1);
        // It began later, and has the settings' wait.
        waited(accounts.run(|tx| Ok(tx.incr("n", 1))));
        held.discard().unwrap();
        assert_eq!(patient.join().unwrap().unwrap(), 1);
    });
}

/// The replies to what is sent before the commands are awaited until then.
#[test]
fn a_calls_own_deadline_ends_it_while_its_connection_is_prepared() {
    const IDLE: usize = 8;
    let (server, response) = (Server::start(), Duration::from_secs(6));
    let proxy = Proxy::to(&server);
    let builder =
        SessionManager::builder(proxy.url()).max_size(IDLE as u32).connect_timeout(CONNECT);
    let builder = builder.response_timeout(response).checkout_timeout(LONG);
    let sessions = builder.trust_window(Duration::ZERO).build_side().unwrap();
    let accounts = sessions.transactional();
    let open = || {
        let held: Vec<_> = (0..IDLE).map(|_| accounts.begin().unwrap()).collect();
        held.into_iter().for_each(|tx| tx.discard().unwrap());
        accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap();
        crate::side::settled(&sessions);
    };
    open();
    proxy.silence();
    let once = TransactionOptions::new().exactly_once();
    let keyed = TransactionOptions::new().exactly_once_as("key", LONG);
    let (once, keyed) = (accounts.with(once), accounts.with(keyed));
    type WithOptions<'c> = &'c dyn Fn(TransactionOptions) -> Result<(), Error>;
    let calls: [(&str, WithOptions<'_>); 7] = [
        ("begin", &|of| accounts.with(of.begin(Begin::Immediate)).begin().map(drop)),
        ("run", &|of| accounts.with(of).run(|tx| Ok(tx.set("never", 1)))),
        ("grouped", &|of| accounts.with(of.grouped()).run(|tx| Ok(tx.set("never", 1)))),
        ("once", &|of| once.with(of).run(|tx| Ok(tx.set("never", 1)))),
        ("keyed", &|of| keyed.with(of).run(|tx| Ok(tx.set("never", 1)))),
        ("watch", &|of| accounts.with(of).watch(["never"]).begin().map(drop)),
        ("watch run", &|of| accounts.with(of).watch(["never"]).run(|_, tx| Ok(tx.set("never", 1)))),
    ];
    let time = Duration::from_millis(200);
    for (name, call) in calls {
        let options: [fn(Duration) -> TransactionOptions; 2] = [
            |time| TransactionOptions::new().deadline(Instant::now() + time),
            |time| TransactionOptions::new().within(time).retry(RetryPolicy::never()),
        ];
        for options in options {
            let begun = Instant::now();
            let error = call(options(time)).unwrap_err();
            let took = begun.elapsed();
            assert_eq!(error.applied(), Applied::No, "{name}: {error:?}");
            assert!(took < time + response / 2, "{name}: {took:?}");
        }
    }
    proxy.mute_new(false);
    proxy.release();
    crate::side::settled(&sessions);
    assert_eq!(server.ask::<i64>(&["EXISTS", "never"]), 0);
}

/// Its time says nothing about the server, which has replied to all others.
#[test]
fn a_call_with_little_time_costs_no_connection_but_its_own() {
    const IDLE: u32 = 4;
    let server = Server::start();
    let builder = SessionManager::builder(server.url()).max_size(IDLE).checkout_timeout(LONG);
    let sessions = builder.without_lanes().build_side().unwrap();
    let accounts = sessions.transactional();
    let open_all = || {
        let held: Vec<_> = (0..IDLE).map(|_| accounts.begin().unwrap()).collect();
        held.into_iter().for_each(|tx| tx.discard().unwrap());
        crate::side::settled(&sessions);
        sessions.status().transactional.counts.connects
    };
    let before = open_all();
    let time = Duration::from_millis(50);
    let short = TransactionOptions::new().deadline(Instant::now() + time);
    let late = accounts.with(short).watch(["key"]).run(|_, tx| {
        thread::sleep(2 * time);
        Ok(tx.set("key", 1))
    });
    assert_eq!(late.unwrap_err().applied(), Applied::No);
    assert!(open_all() - before <= 1, "the other connections were closed");
    assert_eq!(server.ask::<i64>(&["EXISTS", "key"]), 0);
}

#[test]
fn a_pooled_call_and_a_lock_call_have_a_wait_and_a_deadline_of_their_own() {
    let (server, time) = (Server::start(), Duration::from_millis(30));
    let sessions = SessionManager::builder(server.url()).max_size(1).checkout_timeout(LONG);
    let sessions = sessions.without_lanes().build_side().unwrap();
    thread::scope(|scope| {
        let db = sessions.pooled();
        let mut blocking = db.clone();
        let blocked = scope.spawn(move || {
            let popped = blocking.blpop::<_, Option<(String, String)>>("list", LONG.as_secs_f64());
            popped.unwrap().map(|(_, value)| value)
        });
        let held = sessions.transactional().begin().unwrap();
        eventually(SOON, "it blocks", || {
            server.ask::<String>(&["CLIENT", "LIST"]).contains("cmd=blpop")
        });
        for mut short in [db.within(time), db.deadline(Instant::now() + time)] {
            let get: redis::RedisResult<Option<i64>> = short.get("key");
            assert!(waited(get.map_err(Error::from)) < time + SOON);
            let set: redis::RedisResult<()> = short.set("key", 1);
            assert!(waited(set.map_err(Error::from)) < time + SOON);
            let pipe = redis::pipe().set("key", 1).set("key", 2).exec(&mut short);
            assert!(waited(pipe.map_err(Error::from)) < time + SOON);
            let atomic = redis::pipe().atomic().set("key", 1).exec(&mut short);
            assert!(waited(atomic.map_err(Error::from)) < time + SOON);
        }
        assert_eq!(server.ask::<i64>(&["RPUSH", "list", "end"]), 1);
        assert_eq!(blocked.join().unwrap().as_deref(), Some("end"));
        held.discard().unwrap();
        let mut patient = db.within(SOON).deadline(Instant::now() + SOON);
        assert_eq!(patient.incr::<_, _, i64>("n", 1).unwrap(), 1);
    });
    assert_eq!(server.ask::<i64>(&["EXISTS", "key"]), 0);
    let lock = || sessions.lock("l");
    let guard = lock().acquire(SOON).unwrap();
    let begun = Instant::now();
    let late = lock().deadline(begun + time).acquire(LONG).map(drop).unwrap_err();
    assert!(matches!(late, Error::Lock(LockError::Timeout { .. })), "{late:?}");
    assert!(begun.elapsed() < time + SOON);
    assert!(lock().deadline(begun + LONG).is_locked().unwrap());
    guard.release().unwrap();
    // Nothing is sent after it, and nothing before to a server that does not reply.
    let over = Instant::now();
    assert_eq!(lock().deadline(over).acquire(LONG).map(drop).unwrap_err().applied(), Applied::No);
    assert!(!lock().is_locked().unwrap());
    server.sigstop();
    let begun = Instant::now();
    let silent = lock().deadline(begun + time).is_locked();
    let took = begun.elapsed();
    server.sigcont();
    silent.unwrap_err();
    assert!(took < Duration::from_secs(1), "{took:?}, and response_timeout is 2 s");
}

// What is under way ends by its own timeouts.
crate::side::threads_only! {
    #[test]
    fn the_waits_of_ready_and_resolve_end_when_they_are_cancelled() {
        use rediscope::Cancel;
        use rediscope::error::{Resolution, UnresolvedReason};
        use rediscope_testing::proxy::{Fault, Script, Trigger};

        let server = Server::start();
        let proxy = Proxy::to(&server);
        let builder = SessionManager::builder(proxy.url()).connect_timeout(Duration::from_secs(4));
        let sessions = builder.checkout_timeout(2 * LONG).build_side().unwrap();
        let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
        let mut tx = once.begin().unwrap();
        tx.incr("n", 1);
        proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
        let token = match tx.commit() {
            Err(Error::Commit(CommitError::InDoubt(doubt))) => doubt.token().unwrap().clone(),
            other => panic!("{other:?}"),
        };
        proxy.silence();
        let cancel = Cancel::new();
        let waiting = Mutex::new(0);
        let asks = || {
            *waiting.lock().unwrap() += 1;
            cancel.run(|| sessions.resolve(&token, LONG))
        };
        let probes = || {
            *waiting.lock().unwrap() += 1;
            cancel.run(|| sessions.ready(LONG))
        };
        let took = thread::scope(|scope| {
            let (first, second) = (scope.spawn(asks), scope.spawn(asks));
            let probe = scope.spawn(probes);
            // One of them waits for the server, and the others for their turn.
            eventually(SOON, "all have begun", || *waiting.lock().unwrap() == 3);
            let begun = Instant::now();
            cancel.cancel();
            let cancelled = Resolution::StillUnknown { why: UnresolvedReason::Cancelled };
            assert_eq!(first.join().unwrap(), cancelled);
            assert_eq!(second.join().unwrap(), cancelled);
            let probe = probe.join().unwrap();
            assert!(matches!(probe, Err(Error::Checkout(CheckoutError::Cancelled))), "{probe:?}");
            begun.elapsed()
        });
        assert!(took < SOON, "{took:?}");
        // Later ones end at once, and the token can be resolved.
        assert!(matches!(probes(), Err(Error::Checkout(CheckoutError::Cancelled))));
        proxy.mute_new(false);
        proxy.release();
        sessions.ready(SOON).unwrap();
        assert_eq!(sessions.resolve(&token, SOON), Resolution::Committed);
    }
}

// A dropped future of a task waits no more.
crate::side::threads_only! {
    #[test]
    fn waits_for_connections_and_locks_end_when_they_are_cancelled_and_nothing_was_applied() {
        use rediscope::Cancel;

        let server = Server::start();
        let builder = || SessionManager::builder(server.url()).checkout_timeout(LONG);
        let sessions = builder().max_size(1).build_side().unwrap();
        let other = builder().build_side().unwrap();
        let (_one, _two) = (other.lock("one").acquire(SOON).unwrap(), other.lock("two").acquire(SOON).unwrap());
        let (accounts, token) = (sessions.transactional(), Cancel::new());
        let grouped = accounts.with(TransactionOptions::new().grouped());
        let held = accounts.begin().unwrap();
        let calls: [&(dyn Fn() -> Result<(), Error> + Sync); 6] = [
            &|| accounts.begin().map(drop),
            &|| accounts.run(|tx| Ok(tx.set("key", 1))),
            &|| grouped.run(|tx| Ok(tx.set("key", 1))),
            &|| accounts.watch(["key"]).run(|_, tx| Ok(tx.set("key", 1))),
            &|| sessions.lock("one").acquire(LONG).map(drop),
            &|| sessions.lock_all(["free", "two"]).acquire(LONG).map(drop),
        ];
        let cancelled = |error: Error| {
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false), "{error:?}");
            match error {
                Error::Checkout(CheckoutError::Cancelled) | Error::Lock(LockError::Cancelled) => {}
                error => panic!("{error:?}"),
            }
        };
        thread::scope(|scope| {
            let calls = calls.map(|call| {
                let token = token.clone();
                scope.spawn(move || token.run(call))
            });
            eventually(SOON, "all wait", || {
                let status = sessions.status();
                status.transactional.waiting == 4 && status.locks.waiting == 2
            });
            token.cancel();
            for call in calls {
                cancelled(call.join().unwrap().unwrap_err());
            }
        });
        let status = sessions.status();
        assert_eq!((status.transactional.waiting, status.locks.waiting), (0, 0));
        // Later calls under the token end at once; all others are as before.
        for call in calls {
            cancelled(token.run(call).unwrap_err());
        }
        held.discard().unwrap();
        accounts.run(|tx| Ok(tx.set("other", 1))).unwrap();
        assert_eq!(server.ask::<i64>(&["EXISTS", "key"]), 0);
        let free = other.lock("free").acquire(SOON).unwrap();
        // What is under way is not interrupted.
        token.run(|| free.release()).unwrap();
        let mut tx = accounts.begin().unwrap();
        tx.set("key", 1);
        token.run(|| tx.commit()).unwrap();
        assert_eq!(server.ask::<i64>(&["EXISTS", "key"]), 1);
    }
}
