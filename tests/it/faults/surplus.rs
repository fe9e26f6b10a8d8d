//! A surplus reply that comes while no call is running is never the next caller's, whatever that call does and
//! over every transport. A RESP3 push without a request has no effect.
//!
//! Guarantee: clean-connections

use crate::fixture::{Fixture, LONG, OF_ONE, SOON, Way};
use crate::side::{BuildSide as _, open_lanes, open_pooled_lanes};
use std::thread;
use std::time::Duration;

use crate::side::Transactional;
use rediscope::prelude::*;
use rediscope::status::PoolStatus;
use rediscope::{Builder, Condition, Error, TransactionOptions};

use rediscope_testing::front::Front;
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, try_for};

/// Pools of one connection. `trust`: how long a connection is used without a check.
fn start(way: Way, protocol: &str, trust: Option<Duration>) -> Fixture {
    start_with(way, protocol, |builder| match trust {
        Some(trust) => builder.trust_window(trust),
        None => builder,
    })
}

fn start_with(way: Way, protocol: &str, change: impl FnOnce(Builder) -> Builder) -> Fixture {
    let fixture = Fixture::over(way, Server::start(), protocol, |builder| {
        change(builder.connect_timeout(Duration::from_secs(5)).checkout_timeout(SOON))
    });
    fixture.warm();
    fixture
}

impl Fixture {
    fn warm(&self) {
        self.server.ask::<()>(&["SET", "right", "right"]);
        let mut pipe = redis::pipe();
        pipe.get("right").get("right");
        let right: [String; 2] = pipe.query(&mut self.sessions.pooled()).unwrap();
        let mut tx = self.accounts().begin().unwrap();
        let other = tx.get::<_, String>("right");
        let other = tx.commit().unwrap().get(other).unwrap();
        assert_eq!([&right[0], &right[1], &other], ["right"; 3]);
        open_lanes(&self.sessions, "right");
        open_pooled_lanes(&self.sessions, "right");
    }

    fn replied(&self) -> Option<u64> {
        self.front.as_ref().map_or(Some(0), Front::replied)
    }

    /// Waits until the connections of the pools are the only ones. One that is being closed might end before it
    /// has what is sent to all, or behind that.
    fn has_no_other_connection(&self) {
        eventually(SOON, "no other connection is open", || {
            let status = self.sessions.status();
            let of = |pool: &PoolStatus| pool.size as usize + pool.lanes.open;
            let open = of(&status.pooled) + of(&status.transactional);
            self.front.is_none() || self.proxy.connections() == open
        });
    }

    /// Every connection is sent this, and has it when this returns.
    fn comes(&self, bytes: &[u8]) {
        let before = try_for(SOON, || self.replied()).unwrap();
        let connections = self.proxy.send_to_clients(bytes);
        assert!(connections >= 1);
        if self.front.is_some() {
            let came = before + (bytes.len() * connections) as u64;
            eventually(SOON, "it was passed on", || {
                self.replied().is_some_and(|replied| replied >= came)
            });
        }
        // A busy kernel delivers later what was written here, and in order: behind this it is there.
        self.server.ask::<String>(&["PING"]);
    }
}

/// What the next caller does. Each compares what its call returns with what the server holds.
type Use = fn(&Fixture);

fn reads(fixture: &Fixture) {
    let right = fixture.sessions.pooled().get::<_, String>("right");
    assert_eq!(right.map_err(Error::from).unwrap(), "right");
}

fn writes(fixture: &Fixture) {
    let reported = fixture.sessions.pooled().incr::<_, _, i64>("n", 1);
    let reported = reported.map_err(Error::from).unwrap();
    assert_eq!(reported, fixture.server.ask::<i64>(&["GET", "n"]));
}

fn pipelines(fixture: &Fixture) {
    let mut pipe = redis::pipe();
    pipe.get("right").incr("n", 1).get("right");
    let (one, n, other): (String, i64, String) =
        pipe.query(&mut fixture.sessions.pooled()).unwrap();
    assert_eq!((&*one, &*other), ("right", "right"));
    assert_eq!(n, fixture.server.ask::<i64>(&["GET", "n"]));
}

fn block(fixture: &Fixture, accounts: &Transactional) {
    let run = accounts.run(|tx| Ok((tx.incr("n", 1), tx.get::<_, String>("right"))));
    let (n, right) = run.unwrap();
    assert_eq!((n, &*right), (fixture.server.ask::<i64>(&["GET", "n"]), "right"));
}

fn runs(fixture: &Fixture) {
    block(fixture, &fixture.accounts());
}

fn runs_exactly_once(fixture: &Fixture) {
    block(fixture, &fixture.accounts().with(TransactionOptions::new().exactly_once()));
}

fn commits(fixture: &Fixture) {
    let mut tx = fixture.accounts().begin().unwrap();
    let (n, right) = (tx.incr("n", 1), tx.get::<_, String>("right"));
    let replies = tx.commit().unwrap();
    assert_eq!(replies.get(n).unwrap(), fixture.server.ask::<i64>(&["GET", "n"]));
    assert_eq!(replies.get(right).unwrap(), "right");
}

fn watches(fixture: &Fixture) {
    let read = fixture.accounts().watch(["right"]).run(|read, tx| {
        assert_eq!(read.get::<_, String>("right")?, "right");
        Ok(tx.get::<_, String>("right"))
    });
    assert_eq!(read.unwrap(), "right");
}

fn reads_in_a_scope(fixture: &Fixture) {
    let mut reading = fixture.accounts().reading().begin().unwrap();
    assert_eq!(reading.get::<_, String>("right").unwrap(), "right");
}

fn requires(fixture: &Fixture) {
    let required = fixture.accounts().require(Condition::equals("right", "right"));
    assert_eq!(required.run(|tx| Ok(tx.get::<_, String>("right"))).unwrap(), "right");
}

fn locks(fixture: &Fixture) {
    let held = fixture.sessions.lock("l").acquire(SOON).unwrap();
    assert!(held.fencing_token() > 0);
    held.release().unwrap();
}

const USES: &[(&str, Use)] = &[
    ("a read", reads),
    ("a write", writes),
    ("a pipeline", pipelines),
    ("run", runs),
    ("run, exactly once", runs_exactly_once),
    ("a guard", commits),
    ("watch().run", watches),
    ("a reading scope", reads_in_a_scope),
    ("require().run", requires),
    ("a lock", locks),
];

/// Legal as replies; here no reply is awaited. The last ones are parts of replies.
const SURPLUS: &[&str] = &[
    "$5\r\nWRONG\r\n",
    "+OK\r\n",
    "+PONG\r\n",
    "+QUEUED\r\n",
    "*1\r\n:99\r\n",
    ":99\r\n",
    "*-1\r\n",
    "-ERR wrong\r\n",
    "+OK\r\n+QUEUED\r\n*1\r\n:99\r\n",
    "$5\r\nWR",
    "+",
];

/// All ways with all uses, on a thread for each way.
fn for_all(trust: Option<Duration>, protocol: &'static str, check: fn(&Fixture, Way, &str, Use)) {
    thread::scope(|scope| {
        for &way in Way::ALL {
            scope.spawn(move || {
                let fixture = start(way, protocol, trust);
                for &(name, each) in USES {
                    check(&fixture, way, name, each);
                }
            });
        }
    });
}

fn never_handed_on(fixture: &Fixture, way: Way, name: &str, each: Use) {
    // Locks delete keys in the background. Behind a front the replies to that would be counted as
    // what is passed on, so that a call may come before it.
    if name == "a lock" && fixture.front.is_some() {
        return;
    }
    for surplus in SURPLUS {
        fixture.warm();
        fixture.has_no_other_connection();
        fixture.comes(surplus.as_bytes());
        println!("{way:?}, {name}, {surplus:?}");
        each(fixture);
        // Nor is what comes behind the first one of any consequence.
        each(fixture);
    }
}

#[test]
fn a_surplus_reply_is_never_the_next_callers() {
    for_all(None, "", never_handed_on);
}

#[test]
fn a_surplus_reply_is_never_the_next_callers_on_a_connection_used_without_a_check() {
    for_all(Some(LONG), "", never_handed_on);
}

#[test]
fn a_surplus_reply_is_never_the_next_callers_in_resp3() {
    for_all(Some(LONG), "?protocol=resp3", never_handed_on);
}

#[test]
fn a_batch_and_its_leader_never_receive_a_surplus_reply() {
    for &way in Way::ALL {
        // Lanes carry batches too, and have their connections at once: see the other tests.
        let fixture = start_with(way, "", |builder| builder.trust_window(LONG).without_lanes());
        let grouped = fixture.accounts().with(TransactionOptions::new().grouped());
        for surplus in SURPLUS {
            let held = fixture.accounts().begin().unwrap();
            thread::scope(|scope| {
                let run = || grouped.run(|tx| Ok(tx.get::<_, String>("right"))).unwrap();
                let callers = [scope.spawn(run), scope.spawn(run), scope.spawn(run)];
                eventually(SOON, "they wait", || {
                    fixture.sessions.status().transactional.waiting == 3
                });
                fixture.has_no_other_connection();
                fixture.comes(surplus.as_bytes());
                drop(held);
                for caller in callers {
                    assert_eq!(caller.join().unwrap(), "right", "{way:?}, {surplus:?}");
                }
            });
            // The pooled pool had it too.
            fixture.warm();
        }
    }
}

#[test]
fn a_surplus_reply_inside_a_scope_ends_it_before_anything_is_sent() {
    for &way in Way::ALL {
        let fixture = start(way, "", Some(LONG));
        for surplus in SURPLUS {
            let watching = fixture.accounts().watch(["right"]).begin().unwrap();
            fixture.has_no_other_connection();
            fixture.comes(surplus.as_bytes());
            let mut tx = watching.multi();
            tx.incr("never", 1);
            let error = tx.commit().unwrap_err();
            assert_eq!(
                error.applied(),
                rediscope::error::Applied::No,
                "{way:?}, {surplus:?}: {error}"
            );
            assert!(error.is_retryable(), "{way:?}, {surplus:?}: {error}");
        }
        assert_eq!(fixture.server.ask::<i64>(&["EXISTS", "never"]), 0);
    }
}

/// Whole and in two parts, alone and several.
const PUSHES: &[&[&str]] = &[
    &[">2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n"],
    &[">1\r\n+a\r\n>1\r\n+b\r\n"],
    &["|1\r\n+ttl\r\n:3\r\n"],
    &[">2\r\n+inval", "idate\r\n_\r\n"],
    &[">", "1\r\n+a\r\n"],
    &[">2\r\n$3\r\nabc\r\n", "$3\r\ndef\r\n>1\r\n+a\r\n"],
];

fn costs_nothing(fixture: &Fixture, way: Way, name: &str, each: Use) {
    each(fixture);
    fixture.warm();
    let before = fixture.proxy.accepted();
    for parts in PUSHES {
        // Locks delete keys in the background: the reply to that would be the rest of what is half there.
        if name == "a lock" && parts.len() > 1 {
            continue;
        }
        for part in *parts {
            fixture.comes(part.as_bytes());
            // What is half there waits for the rest.
            if parts.len() > 1 {
                continue;
            }
            each(fixture);
        }
        each(fixture);
        assert_eq!(fixture.proxy.accepted(), before, "{way:?}, {name}, {parts:?}");
    }
}

#[test]
fn a_resp3_push_between_two_calls_costs_no_connection() {
    for_all(Some(LONG), "?protocol=resp3", costs_nothing);
}

#[test]
fn half_a_push_is_kept_while_calls_go_on_and_its_rest_is_no_reply() {
    for &way in Way::ALL {
        let fixture = start(way, "?protocol=resp3", Some(LONG));
        // Once before: locks open a connection of their own.
        USES.iter().for_each(|(_, each)| each(&fixture));
        fixture.warm();
        let before = fixture.proxy.accepted();
        fixture.comes(b">2\r\n+inval");
        let status = fixture.sessions.status();
        assert_eq!((status.pooled.idle, status.transactional.idle), (1, 1));
        fixture.comes(b"idate\r\n*0\r\n");
        USES.iter().for_each(|(_, each)| each(&fixture));
        assert_eq!(fixture.proxy.accepted(), before, "{way:?}");
    }
}

#[test]
fn a_push_in_resp2_is_not_the_servers_to_send() {
    for &way in Way::ALL {
        let fixture = start(way, "", Some(LONG));
        let before = fixture.proxy.accepted();
        fixture.comes(b">1\r\n+a\r\n");
        reads(&fixture);
        runs(&fixture);
        // Each is replaced when it is used next.
        fixture.warm();
        assert_eq!(fixture.proxy.accepted(), before + 2 * OF_ONE as u64, "{way:?}");
    }
}
