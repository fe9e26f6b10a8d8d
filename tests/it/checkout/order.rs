//! The order in which callers are served, and the error of a caller that is not.
//!
//! Guarantee: pools

use crate::fixture::{SOON, immediate};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rediscope::{Transactional, prelude::*};

use super::patient;
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

#[test]
fn callers_are_served_in_the_order_in_which_they_came() {
    let server = Server::start();
    let sessions = patient(&server).max_size(1).build().unwrap();
    let accounts = sessions.transactional();
    let held = accounts.begin().unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let callers: Vec<_> = (0..12)
        .map(|nth| {
            let (accounts, served) = (accounts.clone(), Arc::clone(&served));
            let caller = thread::spawn(move || {
                let tx = accounts.begin().unwrap();
                served.lock().unwrap().push(nth);
                drop(tx);
            });
            let waiting = || sessions.status().transactional.waiting;
            eventually(SOON, "the caller waits", || waiting() == nth + 1);
            caller
        })
        .collect();
    drop(held);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    assert_eq!(*served.lock().unwrap(), (0..12).collect::<Vec<_>>());
    assert_eq!(server.clients(), 1, "all of them on one connection");
}

#[test]
fn single_commands_wait_in_the_same_order() {
    let server = Server::start();
    let sessions = patient(&server).max_size(1).build().unwrap();
    let (let_go, held) = mpsc::channel::<()>();
    let db = sessions.pooled();
    let holder = thread::spawn(move || db.with_raw(|_| held.recv().unwrap_err()).unwrap());
    eventually(SOON, "it is held", || sessions.status().pooled.in_use == 1);
    let callers: Vec<_> = (0..8)
        .map(|nth| {
            let mut db = sessions.pooled();
            let caller = thread::spawn(move || db.rpush::<_, _, ()>("served", nth).unwrap());
            eventually(SOON, "the caller waits", || sessions.status().pooled.waiting == nth + 1);
            caller
        })
        .collect();
    drop(let_go);
    holder.join().unwrap();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let served: Vec<usize> = server.ask(&["LRANGE", "served", "0", "-1"]);
    assert_eq!(served, (0..8).collect::<Vec<_>>());
}

#[test]
fn a_waiting_caller_is_served_however_the_holder_ends() {
    let server = Server::start();
    let sessions =
        patient(&server).max_size(1).max_pin_time(Duration::from_millis(300)).build().unwrap();
    let accounts = sessions.transactional();
    type End = fn(Transactional, mpsc::Receiver<()>);
    let ends: [(&str, End); 6] = [
        ("dropped", |accounts, go| {
            let _tx = accounts.begin().unwrap();
            go.recv().unwrap();
        }),
        ("committed", |accounts, go| {
            let mut tx = accounts.begin().unwrap();
            tx.set("a", 1);
            go.recv().unwrap();
            tx.commit().unwrap();
        }),
        ("in MULTI and dropped", |accounts, go| {
            let _tx = accounts.begin_with(immediate()).unwrap();
            go.recv().unwrap();
        }),
        ("forgotten", |accounts, go| {
            std::mem::forget(accounts.begin().unwrap());
            go.recv().unwrap();
        }),
        ("forgotten in MULTI by a thread that died", |accounts, go| {
            std::mem::forget(accounts.begin_with(immediate()).unwrap());
            go.recv().unwrap();
            panic!("on purpose");
        }),
        ("held by a thread that died", |accounts, go| {
            let _tx = accounts.watch(["a"]).begin().unwrap().multi();
            go.recv().unwrap();
            panic!("on purpose");
        }),
    ];
    for (how, end) in ends {
        let (go, reported) = mpsc::channel();
        let holder = thread::spawn({
            let accounts = accounts.clone();
            move || end(accounts, reported)
        });
        eventually(SOON, how, || sessions.status().transactional.in_use == 1);
        let waiter = thread::spawn({
            let accounts = accounts.clone();
            move || accounts.run(|tx| Ok(tx.incr("served", 1)))
        });
        eventually(SOON, how, || sessions.status().transactional.waiting == 1);
        go.send(()).unwrap();
        let _ = holder.join();
        waiter.join().unwrap().unwrap_or_else(|error| panic!("{how}: {error}"));
        eventually(SOON, how, || sessions.status().transactional.in_use == 0);
        assert!(server.clients() <= 1, "{how}: a connection too much");
    }
}
