//! Reads that find no free connection are sent along by the next caller that gets one.
//!
//! Guarantee: the-pooled-handle

use crate::side::Pooled;
use crate::fixture::{Fixture, SOON};
use std::thread;

use rediscope::redis::{RedisResult, cmd};

use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};

type Call<'c> = Box<dyn FnOnce(&mut Pooled) -> RedisResult<i64> + Send + 'c>;

fn start() -> Fixture {
    let fixture = Fixture::new(|builder| builder.checkout_timeout(SOON).trust_window(SOON));
    for n in 0..8 {
        fixture.server.ask::<()>(&["SET", &format!("k{n}"), &n.to_string()]);
    }
    fixture
}

impl Fixture {
    /// Makes all calls wait in this order for the one connection, which a blocking command holds.
    fn reads_at_once(&self, calls: Vec<Call<'_>>, before: impl FnOnce()) -> Vec<RedisResult<i64>> {
        thread::scope(|scope| {
            let holding = scope.spawn(|| {
                cmd("BLPOP").arg("bell").arg(20).query::<Vec<String>>(&mut self.sessions.pooled())
            });
            let blocked = || self.server.info("blocked_clients").as_deref() == Some("1");
            eventually(SOON, "the connection is held", blocked);
            let calling: Vec<_> = calls
                .into_iter()
                .enumerate()
                .map(|(nth, call)| {
                    let mut handle = self.sessions.pooled();
                    let calling = scope.spawn(move || call(&mut handle));
                    let waiting = || self.sessions.status().pooled.waiting;
                    eventually(SOON, "the next one waits", || waiting() == nth + 1);
                    calling
                })
                .collect();
            self.proxy.take_journal();
            before();
            self.server.ask::<i64>(&["RPUSH", "bell", "rings"]);
            assert_eq!(holding.join().unwrap().unwrap(), ["bell", "rings"]);
            calling.into_iter().map(|calling| calling.join().unwrap()).collect()
        })
    }
}

fn get(nth: i64) -> Call<'static> {
    Box::new(move |db| cmd("GET").arg(format!("k{nth}")).query(db))
}

#[test]
fn reads_that_wait_are_sent_in_one_write_and_each_gets_its_own_reply() {
    let fixture = start();
    let mut turns = 0;
    let reported =
        fixture.reads_at_once((0..8).map(get).collect(), || turns = fixture.proxy.turns());
    let values: Vec<_> = reported.into_iter().map(Result::unwrap).collect();
    assert_eq!(values, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(fixture.proxy.turns() - turns, 1, "one round trip");
    assert_eq!(fixture.proxy.take_journal().len(), 8);
}

#[test]
fn a_servers_error_is_one_readers_own() {
    let fixture = start();
    let wrong: Call<'_> = Box::new(|db| cmd("LLEN").arg("k0").query(db));
    let reported = fixture.reads_at_once(vec![get(1), wrong, get(2)], || {});
    assert_eq!((reported[0].as_ref().unwrap(), reported[2].as_ref().unwrap()), (&1, &2));
    assert_eq!(reported[1].as_ref().unwrap_err().code(), Some("WRONGTYPE"));
}

#[test]
fn reads_whose_connection_dies_under_them_are_sent_again() {
    let fixture = start();
    let reported = fixture.reads_at_once((0..6).map(get).collect(), || {
        // BLPOP's own reply comes first.
        fixture.proxy.arm(Script::from((Trigger::BeforeReply(4), Fault::Cut)).once());
    });
    let values: Vec<_> = reported.into_iter().map(Result::unwrap).collect();
    assert_eq!(values, [0, 1, 2, 3, 4, 5]);
    assert_eq!(fixture.sessions.status().pooled.in_use, 0);
}

#[test]
fn a_write_and_a_range_are_not_sent_along_and_are_not_passed_over() {
    let fixture = start();
    let write: Call<'_> = Box::new(|db| cmd("INCR").arg("k1").query(db));
    let range: Call<'_> = Box::new(|db| cmd("STRLEN").arg("k1").query(db));
    let long: Call<'_> = Box::new(|db| {
        cmd("GETRANGE").arg("k1").arg(0).arg(-1).query::<String>(db).map(|text| text.len() as i64)
    });
    let mut turns = 0;
    let calls = vec![get(1), write, get(1), long, range];
    let reported = fixture.reads_at_once(calls, || turns = fixture.proxy.turns());
    let values: Vec<_> = reported.into_iter().map(Result::unwrap).collect();
    assert_eq!(values, [1, 2, 2, 1, 1]);
    assert_eq!(fixture.proxy.turns() - turns, 5, "each by itself");
}
