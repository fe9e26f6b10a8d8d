//! How many connections carry groups, and who leads one.
//!
//! Guarantee: grouped

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rediscope::error::{Applied, CheckoutError};
use rediscope::prelude::*;
use rediscope::{Error, TransactionOptions};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};

use super::fixture::{push, start_with};
use crate::fixture::SOON;

#[test]
fn no_more_connections_carry_groups_than_the_limit_and_others_stay_free() {
    let fixture =
        start_with(|builder| builder.max_size(4).max_leaders(1).response_timeout(SOON / 4));
    let grouped = fixture.grouped();
    assert_eq!(push(0)(&grouped).unwrap(), 1);
    fixture.proxy.take_journal();
    let held = Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies)).once();
    fixture.proxy.arm(held);
    let status = || fixture.sessions.status().transactional;
    thread::scope(|scope| {
        let first = scope.spawn(|| push(1)(&grouped));
        eventually(SOON, "the first block is sent", || fixture.list("list").len() == 2);
        let others: Vec<_> = (2..7)
            .map(|nth| {
                let grouped = &grouped;
                let other = scope.spawn(move || push(nth)(grouped));
                eventually(SOON, "it waits", || status().waiting == nth - 1);
                other
            })
            .collect();
        assert_eq!(status().in_use, 1, "the other connections carry no group");
        // A block that is not grouped does not wait.
        let plain = fixture.sessions.transactional();
        assert_eq!(plain.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
        assert_eq!(status().waiting, 5);
        fixture.proxy.release();
        assert_eq!(first.join().unwrap().unwrap(), 2);
        let lengths: Vec<_> = others.into_iter().map(|one| one.join().unwrap().unwrap()).collect();
        assert_eq!(lengths, [3, 4, 5, 6, 7]);
    });
    let sent: Vec<_> = fixture.sent().into_iter().filter(|word| word == "EXEC").collect();
    assert_eq!(sent.len(), 3, "the first block, the plain one, and the group");
}

/// The first caller of a group gives up before there is a connection: the next one leads it.
#[test]
fn a_group_goes_on_without_a_leader_that_gives_up() {
    let short = Duration::from_millis(100);
    let fixture = start_with(|builder| {
        builder.connect_timeout(short).response_timeout(short).checkout_timeout(4 * short)
    });
    fixture.sessions.transactional().run(|tx| Ok(tx.exists("nothing"))).unwrap();
    let held = fixture.sessions.transactional().begin().unwrap();
    let grouped = fixture.grouped();
    let waiting = || fixture.sessions.status().transactional.waiting;
    thread::scope(|scope| {
        let first = scope.spawn(|| push(0)(&grouped));
        eventually(SOON, "the first one waits", || waiting() == 1);
        thread::sleep(2 * short);
        let others = [1, 2].map(|nth| {
            let grouped = &grouped;
            scope.spawn(move || push(nth)(grouped))
        });
        let first = first.join().unwrap();
        assert!(matches!(first, Err(Error::Checkout(CheckoutError::Timeout(_)))), "{first:?}");
        drop(held);
        // On a busy machine they may have been late too.
        let applied = others.into_iter().map(|one| one.join().unwrap());
        let applied = applied.filter(Result::is_ok).count();
        assert_eq!(fixture.list("list").len(), applied);
    });
    assert_eq!(waiting(), 0);
    assert!(push(3)(&grouped).is_ok());
}

/// There is no connection for the leader: each caller fails by itself, and the next group is served.
#[test]
fn callers_of_a_group_without_a_server_fail_in_time_and_nothing_is_applied() {
    let short = Duration::from_millis(100);
    let fixture = start_with(|builder| {
        let builder = builder.connect_timeout(short).response_timeout(short);
        builder.checkout_timeout(4 * short).max_leaders(1)
    });
    fixture.proxy.refuse_new(true);
    fixture.proxy.cut_all();
    let grouped = fixture.sessions.transactional().with(TransactionOptions::new().grouped());
    thread::scope(|scope| {
        let calls = [0, 1, 2, 3].map(|nth| {
            let grouped = &grouped;
            scope.spawn(move || push(nth)(grouped))
        });
        for call in calls {
            let failed = call.join().unwrap();
            assert!(matches!(failed, Err(Error::Checkout(_))), "{failed:?}");
        }
    });
    fixture.proxy.refuse_new(false);
    // On a busy machine a connection may not be opened in time.
    eventually(SOON, "the server is reached", || match push(4)(&grouped) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.applied(), Applied::No, "{error:#}");
            false
        }
    });
    assert_eq!(fixture.list("list"), ["4"]);
    let status = fixture.sessions.status().transactional;
    assert_eq!((status.in_use, status.waiting), (0, 0));
}

/// A caller that has given up does not wait, although the group in which it has waited still does.
#[test]
fn a_caller_that_has_left_its_group_is_no_part_of_a_deadlock() {
    let fixture = start_with(|builder| builder.max_size(2));
    let accounts = fixture.sessions.transactional();
    let short = TransactionOptions::new().within(Duration::from_millis(500));
    let (grouped, short) = (fixture.grouped(), fixture.grouped().with(short));
    let (accounts, grouped, short) = (&accounts, &grouped, &short);
    let waiting = || fixture.sessions.status().transactional.waiting;
    let waiting = &waiting;
    let [(holds, held), (begins, begun), (leaves, left)] = [(); 3].map(|()| mpsc::channel());
    thread::scope(|scope| {
        let gives_up = scope.spawn(move || {
            accounts.watch(["left"]).run(|_, tx| {
                held.recv_timeout(SOON).unwrap();
                begins.send(()).unwrap();
                let late = push(0)(short);
                let is_late = matches!(late, Err(Error::Checkout(CheckoutError::Timeout(_))));
                assert!(is_late, "{late:?}");
                leaves.send(()).unwrap();
                eventually(SOON, "the others wait", || waiting() == 2);
                Ok(tx.incr("left", 1))
            })
        });
        let stays = scope.spawn(move || {
            accounts.watch(["right"]).run(|_, tx| {
                holds.send(()).unwrap();
                begun.recv_timeout(SOON).unwrap();
                // It waits in the group of the one that leaves.
                let member = scope.spawn(move || push(1)(grouped));
                left.recv_timeout(SOON).unwrap();
                eventually(SOON, "the member waits", || waiting() == 1);
                assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1)))?, 1);
                assert_eq!(member.join().unwrap()?, 1);
                Ok(tx.incr("right", 1))
            })
        });
        assert_eq!(gives_up.join().unwrap().unwrap(), 1);
        assert_eq!(stays.join().unwrap().unwrap(), 1);
    });
}
