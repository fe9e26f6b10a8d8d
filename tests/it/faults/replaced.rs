//! New connections that die in their handshake, and connections that die again and again. No pool is left with
//! fewer connections than its size for good.
//!
//! Guarantee: pools

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::side::SessionManager;
use rediscope::error::CheckoutError;
use rediscope::prelude::*;
use rediscope::{Begin, Error, RetryPolicy, TransactionOptions};

use rediscope_testing::proxy::Fault::{self, BlackHole, Cut, Reset};
use rediscope_testing::proxy::Trigger::{
    self, BeforeCommand, BeforeReply, InsideCommand, InsideReply,
};
use rediscope_testing::proxy::{Proxy, Which};
use rediscope_testing::server::Server;
use rediscope_testing::try_for;

const CONNECT: Duration = Duration::from_millis(800);
/// Time enough for a busy machine to try more often than it must.
const CHECKOUT: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(60);

#[derive(Debug, Clone, Copy)]
enum Pool {
    Pooled,
    Transactional,
}

fn sessions(proxy: &Proxy) -> SessionManager {
    let url = format!("redis://app:secret@{}/3", proxy.address());
    SessionManager::builder(url)
        .max_size(1)
        .trust_window(Duration::ZERO)
        .connect_timeout(CONNECT)
        .checkout_timeout(CHECKOUT)
        .build_side()
        .unwrap()
}

fn use_it(sessions: &SessionManager, pool: Pool) -> Result<(), Error> {
    match pool {
        Pool::Pooled => sessions.pooled().incr::<_, _, ()>("n", 1).map_err(Error::from),
        Pool::Transactional => sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).map(drop),
    }
}

/// Login, database, library name and version, and what the pool itself wants to know.
fn handshake(server: &Server, pool: Pool) -> usize {
    let proxy = Proxy::to(server);
    let sessions = sessions(&proxy);
    proxy.script(Which::Next, (Trigger::AfterCommandNamed("INCRBY"), Cut));
    let _: Result<(), Error> = use_it(&sessions, pool);
    let journal: Vec<String> = proxy.take_journal().into_iter().map(|(_, name)| name).collect();
    // The caller's first command, or the library's, is behind it.
    let proof = if let Pool::Pooled = pool { "PING" } else { "DISCARD" };
    journal.iter().position(|name| name == proof).unwrap() + 1
}

/// The pool's connection is gone, and the next two die at this point of their handshake.
fn dies_in_handshake(server: &Server, pool: Pool, trigger: Trigger, kind: Fault) -> Option<String> {
    let proxy = Proxy::to(server);
    let sessions = sessions(&proxy);
    let outcome = use_it(&sessions, pool).and_then(|()| {
        proxy.script(Which::Next, (trigger, kind));
        proxy.script(Which::Next, (trigger, kind));
        proxy.cut_all();
        use_it(&sessions, pool)
    });
    crate::side::settled(&sessions);
    let status = sessions.status();
    let status = [status.pooled, status.transactional].map(|pool| (pool.in_use, pool.waiting));
    match outcome {
        Ok(()) if status != [(0, 0); 2] => Some(format!("{status:?}")),
        // The first one, two that died, and one that did not. On a busy machine one of them may
        // have died of its timeout before it came to the fault.
        Ok(()) if proxy.accepted() < 4 || proxy.fired() == 0 => {
            Some(format!("{} connections, {} faults", proxy.accepted(), proxy.fired()))
        }
        Ok(()) => None,
        Err(error) => Some(error.to_string()),
    }
    .map(|why| format!("{pool:?}, {trigger:?}, {kind:?}: {why}"))
}

#[test]
fn a_replacement_that_dies_in_its_handshake_is_replaced_in_its_turn() {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    let mut cells = Vec::new();
    for pool in [Pool::Pooled, Pool::Transactional] {
        for nth in 1..=handshake(&server, pool) as u64 {
            for trigger in
                [BeforeCommand(nth), InsideCommand(nth, 9), BeforeReply(nth), InsideReply(nth, 1)]
            {
                cells.extend([Cut, Reset, BlackHole].map(|kind| (pool, trigger, kind)));
            }
        }
    }
    let (count, cells) = (cells.len(), Mutex::new(cells));
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let Some((pool, trigger, kind)) = cells.lock().unwrap().pop() else { break };
                    let failed = dies_in_handshake(&server, pool, trigger, kind);
                    failures.lock().unwrap().extend(failed);
                }
            });
        }
    });
    println!("{count} cells");
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n"));
}

/// Six threads on three connections, which are torn down all the time.
fn dies_again_and_again(min_idle: u32, tear: fn(&Proxy)) {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).max_size(3).min_idle(min_idle);
    let sessions = builder.checkout_timeout(CHECKOUT).build_side().unwrap();
    let options = TransactionOptions::new().begin(Begin::Immediate).retry(RetryPolicy::never());
    let accounts = sessions.transactional().with(options);
    let (over, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut seen = 0;
            for nth in 1.. {
                if over.load(Ordering::Acquire) {
                    break;
                }
                tear(&proxy);
                // If all handshakes ended for long, the server would seem to be a proxy without transactions.
                if nth % 2 == 0 {
                    let moved =
                        || done.load(Ordering::Acquire) != seen || over.load(Ordering::Acquire);
                    try_for(SOON, || moved().then_some(()));
                    seen = done.load(Ordering::Acquire);
                }
                // The pace of the faults: a handshake has to fit in between.
                thread::sleep(PACE.mul_f64(fastrand::f64()));
            }
        });
        let worker = |_| {
            scope.spawn(|| {
                for _ in 0..60 {
                    match accounts.run(|tx| Ok(tx.incr("n", 1))) {
                        Err(Error::Checkout(error)) => panic!("{error:#}"),
                        Err(Error::Commit(error)) if error.is_retryable() => {
                            let checkout = std::error::Error::source(&error)
                                .and_then(|source| source.downcast_ref::<CheckoutError>());
                            assert!(checkout.is_none(), "{error}");
                        }
                        // Committed, or in doubt: another test checks what is returned.
                        Ok(_) => _ = done.fetch_add(1, Ordering::AcqRel),
                        _ => {}
                    }
                }
            })
        };
        let workers: Vec<_> = (0..6).map(worker).collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        over.store(true, Ordering::Release);
        assert!(ended.iter().all(Result::is_ok));
    });
    // Its whole capacity is still there.
    let scopes: Vec<_> = (0..3).map(|_| accounts.begin().unwrap()).collect();
    assert_eq!(sessions.status().transactional.in_use, 3);
    drop(scopes);
    crate::side::settled(&sessions);
    assert_eq!(sessions.status().transactional.in_use, 0);
}

#[test]
fn connections_that_die_again_and_again_are_replaced_again_and_again() {
    thread::scope(|scope| {
        for min_idle in [0, 1, 3] {
            scope.spawn(move || dies_again_and_again(min_idle, Proxy::cut_all));
            scope.spawn(move || dies_again_and_again(min_idle, Proxy::reset_all));
        }
    });
}
