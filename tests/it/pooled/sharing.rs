//! A connection is checked out for one round trip only, so that many callers share few.
//!
//! Guarantee: the-pooled-handle

use crate::fixture::{LONG, OF_ONE, SOON, unhurried};
use crate::side::BuildSide as _;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rediscope::Error;
use rediscope::error::{Applied, CheckoutError};
use rediscope::prelude::*;

use super::fixture::{id, lost, pool_is_whole, sized, trusting, typed};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

#[test]
fn eight_threads_take_turns_on_one_connection() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for nth in 0..8 {
            let (mut db, start) = (sessions.pooled(), &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..100 {
                    db.rpush::<_, _, i64>("turns", nth).unwrap();
                    assert_eq!(db.get::<_, Option<i64>>("none").unwrap(), None);
                }
            });
        }
    });
    let turns: Vec<u8> = server.ask(&["LRANGE", "turns", "0", "-1"]);
    let changes = turns.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!(turns.len(), 800);
    assert!(changes > 100, "they came one after the other: {changes} changes");
    let counts = sessions.status().pooled.counts;
    assert_eq!((counts.connects, counts.refused), (OF_ONE as u64, 0));
    assert_eq!(server.clients(), OF_ONE);
    pool_is_whole(&sessions, &server);
}

#[test]
fn clones_on_many_threads_never_use_more_connections_than_there_may_be() {
    let server = Server::start();
    let sessions = sized(&server.url(), 3).build_side().unwrap();
    let db = sessions.pooled();
    thread::scope(|scope| {
        for nth in 0..12 {
            let mut db = db.clone();
            scope.spawn(move || {
                for _ in 0..50 {
                    db.incr::<_, _, i64>("total", 1).unwrap();
                    db.incr::<_, _, i64>(format!("own:{nth}"), 1).unwrap();
                }
            });
        }
    });
    assert_eq!(server.ask::<i64>(&["GET", "total"]), 600);
    for nth in 0..12 {
        assert_eq!(server.ask::<i64>(&["GET", &format!("own:{nth}")]), 50);
    }
    assert!(server.clients() <= 3);
    pool_is_whole(&sessions, &server);
}

#[test]
fn many_readers_get_their_own_replies_while_connections_are_cut() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = sized(&proxy.url(), 4).max_leaders(1);
    let sessions = unhurried(builder).build_side().unwrap();
    let read = AtomicUsize::new(0);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..24)
            .map(|nth: usize| {
                let (mut db, key, read) = (sessions.pooled(), format!("own:{nth}"), &read);
                server.ask::<()>(&["SET", &key, &nth.to_string()]);
                scope.spawn(move || {
                    for _ in 0..200 {
                        match db.get::<_, Option<usize>>(&key) {
                            Ok(value) => assert_eq!(value, Some(nth)),
                            // Its next attempts were cut too; it changes nothing.
                            Err(error) => assert_eq!(lost(&error.into()).1, Applied::No),
                        }
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for cuts in 1..=20 {
            eventually(SOON, "more was read", || read.load(Ordering::Relaxed) >= cuts * 200);
            proxy.cut_all();
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    let status = sessions.status().pooled;
    assert!(status.counts.all_replaced() > 0, "{status}");
    pool_is_whole(&sessions, &server);
}

/// Each reply behind one too many would be another caller's.
#[test]
fn callers_in_one_write_get_their_own_replies_although_there_is_one_too_many() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions =
        unhurried(sized(&proxy.url(), 1).lanes(1).trust_window(LONG)).build_side().unwrap();
    let arm = |trigger, fault| proxy.arm(Script::from((trigger, fault)).once());
    let waiting = || {
        let pooled = sessions.status().pooled;
        pooled.waiting + pooled.lanes.queued
    };
    for surplus in [":7\r\n:1\r\n", ":1\r\n:7\r\n"] {
        arm(Trigger::BeforeReplyTo("GET"), Fault::HoldReplies);
        let fired = proxy.fired();
        thread::scope(|scope| {
            let call = |command: &'static str, key: String| {
                let mut db = sessions.pooled();
                scope.spawn(move || redis::cmd(command).arg(key).query::<Option<i64>>(&mut db))
            };
            let first = call("GET", "none".to_owned());
            eventually(SOON, "a reply is held", || proxy.fired() > fired);
            let before = waiting();
            let group: Vec<_> = (1..=3)
                .map(|nth| {
                    let key = format!("key:{nth}");
                    server.ask::<()>(&["SET", &key, &"x".repeat(nth)]);
                    let member = call("STRLEN", key);
                    eventually(SOON, "it waits", || waiting() == before + nth);
                    member
                })
                .collect();
            arm(Trigger::BeforeReplyTo("STRLEN"), Fault::Answer(surplus));
            proxy.release();
            assert_eq!(first.join().unwrap().unwrap(), None);
            let lengths = group.into_iter().map(|one| one.join().unwrap().unwrap());
            assert_eq!(lengths.collect::<Vec<_>>(), [Some(1), Some(2), Some(3)], "{surplus:?}");
        });
    }
    eventually(SOON, "nothing is in use", || sessions.status().pooled.in_use == 0);
}

#[test]
fn a_handle_that_is_kept_holds_nothing() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let mut handles: Vec<_> = (0..50).map(|_| sessions.pooled()).collect();
    let ids: Vec<_> = handles.iter_mut().map(id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "one connection serves them all: {ids:?}");
    assert_eq!(sessions.status().pooled.in_use, 0);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_drained_transactional_pool_leaves_single_commands_alone() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let held = sessions.transactional().begin().unwrap();
    for n in 1..=20 {
        assert_eq!(sessions.pooled().incr::<_, _, i64>("n", 1).unwrap(), n);
    }
    drop(held);
    pool_is_whole(&sessions, &server);
}

crate::side::threads_only! {
    /// With more commands than connections, one connection leads at a time here, but not for ever.
    #[test]
    fn commands_use_a_free_connection_though_one_that_is_silent_leads() {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let builder = sized(&proxy.url(), 2).max_leaders(1).trust_window(LONG);
        let sessions = unhurried(builder).build_side().unwrap();
        let holds = |command| {
            let held = (Trigger::BeforeReplyTo(command), Fault::HoldReplies);
            proxy.arm(Script::from(held).once());
        };
        let fired = |times| eventually(SOON, "a reply is held", || proxy.fired() == times);
        let pooled = || sessions.status().pooled;
        thread::scope(|scope| {
            let call = |command: &'static str| {
                let mut db = sessions.pooled();
                scope.spawn(move || redis::cmd(command).arg("key").query::<Option<i64>>(&mut db))
            };
            // Fewer commands than connections: each has one at once.
            let mut alone = Vec::new();
            for times in 1..=2 {
                holds("GET");
                alone.push(call("GET"));
                fired(times);
            }
            let group: Vec<_> = (1..=3)
                .map(|waiting| {
                    let member = call("STRLEN");
                    eventually(SOON, "it waits", || pooled().waiting == waiting);
                    member
                })
                .collect();
            holds("STRLEN");
            proxy.release();
            alone.into_iter().for_each(|one| assert_eq!(one.join().unwrap().unwrap(), None));
            fired(3);
            // One connection leads three commands and is silent; the other one is free.
            assert_eq!(call("GET").join().unwrap().unwrap(), None);
            assert!(group.iter().all(|member| !member.is_finished()));
            proxy.release();
            group.into_iter().for_each(|one| assert_eq!(one.join().unwrap().unwrap(), Some(0)));
        });
        assert_eq!(server.clients(), 2);
    }

    #[test]
    fn a_command_inside_with_raw_on_a_pool_of_one_fails_as_a_deadlock() {
        let server = Server::start();
        let sessions = trusting(&server.url());
        let db = sessions.pooled();
        let reported = db.with_raw(|_| typed(db.clone().get::<_, Option<i64>>("n"))).unwrap();
        match reported {
            Error::Checkout(CheckoutError::WouldDeadlock { holders, .. }) => {
                assert_eq!((holders.len(), holders[0].begun_at.file()), (1, file!()));
            }
            error => panic!("{error:?}"),
        }
        pool_is_whole(&sessions, &server);
    }
}
