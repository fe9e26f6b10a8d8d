//! `with_raw`: whatever is done with a raw connection, no later caller notices any of it.
//!
//! Guarantee: the-pooled-handle

use crate::side::{BuildSide as _, SessionManager};
use crate::fixture::SOON;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rediscope::prelude::*;
use rediscope::status::CloseReason;
use rediscope::Error;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::fixture::{client_ids, id, pool_is_whole, trusting, typed};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, under_log};

/// Runs `mess` on the raw connection: another one takes its place, in database 0, in no MULTI.
#[track_caller]
fn leaves_nothing(
    server: &Server,
    sessions: &SessionManager,
    mess: impl FnOnce(&mut redis::Connection),
) {
    let mut db = sessions.pooled();
    let before = id(&mut db);
    db.with_raw(mess).unwrap();
    assert_ne!(id(&mut db), before);
    db.set::<_, _, ()>("key", "in the first database").unwrap();
    assert_eq!(server.ask::<String>(&["GET", "key"]), "in the first database");
    assert_eq!(db.get::<_, String>("key").unwrap(), "in the first database");
    pool_is_whole(sessions, server);
    eventually(SOON, "the raw connection is closed", || {
        !client_ids(server).contains(&before.to_string())
    });
}

#[test]
fn a_raw_connection_can_do_what_the_handle_refuses_and_is_replaced_afterwards() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let run = |words: &'static [&'static str]| {
        move |raw: &mut redis::Connection| {
            redis::cmd(words[0]).arg(&words[1..]).exec(raw).unwrap();
        }
    };
    leaves_nothing(&server, &sessions, run(&["SELECT", "9"]));
    leaves_nothing(&server, &sessions, run(&["WATCH", "key"]));
    leaves_nothing(&server, &sessions, run(&["MULTI"]));
    leaves_nothing(&server, &sessions, run(&["HELLO", "3"]));
    leaves_nothing(&server, &sessions, run(&["CLIENT", "SETNAME", "somebody"]));
    leaves_nothing(&server, &sessions, |raw| {
        let silence = redis::cmd("CLIENT").arg("REPLY").arg("OFF").get_packed_command();
        raw.send_packed_command(&silence).unwrap();
    });
    leaves_nothing(&server, &sessions, |raw| {
        raw.as_pubsub().subscribe("channel").unwrap();
    });
    leaves_nothing(&server, &sessions, |raw| {
        raw.set_read_timeout(Some(Duration::from_nanos(1))).unwrap();
        raw.set_write_timeout(None).unwrap();
    });
    leaves_nothing(&server, &sessions, |raw| {
        raw.send_packed_command(b"*2\r\n$3\r\nGET\r\n$1000\r\nhalf a comm").unwrap();
    });
    leaves_nothing(&server, &sessions, |_| {});
    let replaced = sessions.status().pooled.counts.replaced;
    assert!(replaced.contains(&(CloseReason::Raw, 10)), "{replaced:?}");
}

#[test]
fn redis_rs_own_transactions_work_there() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let db = sessions.pooled();
    let (n,): (i64,) = db
        .with_raw(|raw| {
            redis::transaction(raw, &["n"], |raw, pipe| {
                let n: Option<i64> = redis::Commands::get(raw, "n")?;
                pipe.set("n", n.unwrap_or(0) + 5).ignore().get("n").query(raw)
            })
        })
        .unwrap()
        .unwrap();
    assert_eq!((n, server.ask::<i64>(&["GET", "n"])), (5, 5));
    pool_is_whole(&sessions, &server);
}

#[test]
fn the_redis_rs_error_of_an_aborted_transaction_comes_back_typed() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let aborted = sessions.pooled().with_raw(|raw| {
        let mut pipe = redis::pipe();
        pipe.atomic().set("key", 1).cmd("NOSUCH").set("key", 2);
        typed(pipe.exec(raw))
    });
    match aborted.unwrap() {
        Error::Command { error, .. } => assert_eq!(error.code(), "EXECABORT"),
        error => panic!("{error:?}"),
    }
    assert_eq!(server.ask::<i64>(&["EXISTS", "key"]), 0);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_panic_inside_gives_the_place_back() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    let before = id(&mut db);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        db.with_raw(|raw| {
            redis::cmd("MULTI").exec(raw).unwrap();
            panic!("a mistake in the closure");
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(sessions.status().pooled.in_use, 0);
    pool_is_whole(&sessions, &server);
    assert_ne!(id(&mut db), before);
}

#[test]
fn a_raw_connection_is_alive_when_it_is_handed_out() {
    let server = Server::start();
    let sessions =
        super::fixture::sized(&server.url(), 1).trust_window(Duration::ZERO).build_side().unwrap();
    let mut db = sessions.pooled();
    for n in 1..=3 {
        db.get::<_, Option<i64>>("n").unwrap();
        server.kill_all_clients_except_me();
        let raw = db.with_raw(|raw| redis::Commands::incr::<_, _, i64>(raw, "n", 1)).unwrap();
        assert_eq!(raw.unwrap(), n);
    }
    pool_is_whole(&sessions, &server);
}

#[test]
fn while_it_is_out_there_is_no_other_connection() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let db = sessions.pooled();
    db.with_raw(|_| eventually(SOON, "there is one connection", || server.clients() == 1)).unwrap();
    pool_is_whole(&sessions, &server);
}

#[test]
fn while_it_is_checked_out_the_status_names_its_holder() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let db = sessions.pooled();
    let status = db.with_raw(|_| sessions.status().pooled).unwrap();
    let [scope] = &status.scopes[..] else { panic!("{status}") };
    assert_eq!((scope.begun_at.file(), status.in_use), (file!(), 1));
    pool_is_whole(&sessions, &server);
}

/// Records whether a warning is written while a panic unwinds.
struct Unwinding(Arc<AtomicBool>);

impl<S: tracing::Subscriber> Layer<S> for Unwinding {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= tracing::Level::WARN && thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn no_log_is_written_while_a_panic_of_a_reclaimed_call_unwinds() {
    let server = Server::start();
    let builder = SessionManager::builder(server.url()).max_size(1);
    let sessions = builder.max_pin_time(Duration::from_millis(50)).build_side().unwrap();
    let unwinding = Arc::<AtomicBool>::default();
    let subscriber = tracing_subscriber::registry().with(Unwinding(Arc::clone(&unwinding)));
    under_log(subscriber, || {
        let call = || {
            sessions.pooled().with_raw(|_| {
                // The reaper marks the call as too old meanwhile.
                thread::sleep(Duration::from_millis(600));
                resume_unwind(Box::new("planted"))
            })
        };
        let unwound: Result<Result<(), _>, _> = catch_unwind(AssertUnwindSafe(call));
        assert!(unwound.is_err());
    });
    assert!(!unwinding.load(Ordering::SeqCst));
    sessions.pooled().get::<_, Option<i64>>("a").unwrap();
}
