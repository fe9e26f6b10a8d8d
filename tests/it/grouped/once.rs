//! Exactly-once blocks of a group: one write of the register, one outcome, and one query for all.
//!
//! Guarantee: grouped, exactly-once

use rediscope::error::ReplyError;
use rediscope::prelude::*;
use rediscope::{Error, TransactionOptions};
use rediscope_testing::proxy::{Fault, Script, Trigger};

use super::fixture::{Call, push, start};
use crate::fixture::Fixture;

/// A block that is committed exactly once, and appends its number to the list.
fn once<'c>(number: usize) -> Call<'c, i64> {
    Box::new(move |handle| {
        let once = handle.with(TransactionOptions::new().exactly_once());
        once.run(|tx| Ok(tx.rpush("list", number)))
    })
}

#[test]
fn exactly_once_blocks_share_one_write_of_the_register() {
    let fixture = start();
    let reported = fixture.at_once((0..4).map(once).collect(), || {});
    let lengths: Vec<_> = reported.into_iter().map(Result::unwrap).collect();
    assert_eq!(lengths, [1, 2, 3, 4]);
    // The register is armed, and both replies are read before EXEC leaves.
    let arms = ["SET", "WATCH"];
    let group = ["MULTI", "RPUSH", "RPUSH", "RPUSH", "RPUSH", "SET", "EXEC", "WATCH"];
    assert_eq!(fixture.sent(), [&arms[..], &group[..]].concat());
    let mut turns = 0;
    let mut held = Vec::new();
    for _ in 0..2 {
        held = fixture.at_once_armed((0..4).map(once).collect(), || turns = fixture.proxy.turns());
    }
    assert!(held.iter().all(Result::is_ok), "{held:?}");
    assert_eq!(fixture.sent(), group, "an armed connection needs nothing before");
    assert_eq!(fixture.proxy.turns() - turns, 1);
}

#[test]
fn plain_blocks_travel_behind_the_exactly_once_blocks_of_the_same_write() {
    let fixture = start();
    let calls = vec![push(0), once(1), push(2), once(3)];
    let reported = fixture.at_once(calls, || {});
    assert!(reported.iter().all(Result::is_ok), "{reported:?}");
    let expected = [
        "SET", "WATCH", "MULTI", "RPUSH", "RPUSH", "SET", "EXEC", "MULTI", "RPUSH", "RPUSH",
        "EXEC", "WATCH",
    ];
    assert_eq!(fixture.sent(), expected);
    assert_eq!(fixture.list("list"), ["1", "3", "0", "2"]);
}

#[test]
fn a_group_whose_reply_is_lost_is_resolved_once_for_all_its_blocks() {
    let fixture = start();
    let reported = fixture.at_once((0..4).map(once).collect(), || {
        fixture.proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
    });
    for reported in reported {
        // Applied, with the replies lost.
        assert!(matches!(reported, Err(Error::Reply(ReplyError::Lost))), "{reported:?}");
    }
    assert_eq!(fixture.list("list").len(), 4);
    let counts = fixture.sessions.status().transactional.counts;
    assert_eq!((counts.resolved_committed, counts.resolved_not_committed), (1, 0), "{counts}");
}

#[test]
fn a_group_that_never_arrived_is_sent_again_after_one_resolution() {
    let fixture = start();
    let reported = fixture.at_once((0..4).map(once).collect(), || {
        fixture
            .proxy
            .arm(Script::from((Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests)).once());
    });
    let mut lengths: Vec<_> = reported.into_iter().map(Result::unwrap).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [1, 2, 3, 4]);
    // What was held arrives now, and is refused.
    fixture.proxy.release();
    assert_eq!(once(4)(&fixture.grouped()).unwrap(), 5);
    let counts = fixture.sessions.status().transactional.counts;
    assert_eq!((counts.resolved_committed, counts.resolved_not_committed), (0, 1), "{counts}");
}

#[test]
fn a_group_whose_register_was_touched_applied_nothing_and_goes_again() {
    let fixture = start();
    let first = once(0)(&fixture.grouped());
    assert_eq!(first.unwrap(), 1);
    let keys: Vec<String> = fixture.server.ask(&["KEYS", "rediscope:reg:*"]);
    let reported = fixture.at_once_armed((1..5).map(once).collect(), || {
        for key in &keys {
            assert_eq!(fixture.server.ask::<i64>(&["PEXPIRE", key, "600000"]), 1);
        }
    });
    let mut lengths: Vec<_> = reported.into_iter().map(Result::unwrap).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [2, 3, 4, 5]);
    let sent = fixture.sent();
    assert!(sent.iter().filter(|word| *word == "EXEC").count() >= 2, "{sent:?}");
    assert_eq!(fixture.list("list").len(), 5);
}

impl Fixture {
    /// As [`at_once`](Self::at_once), but the guard that holds the connection leaves its register armed.
    fn at_once_armed(
        &self,
        calls: Vec<Call<'_, i64>>,
        before: impl FnOnce(),
    ) -> Vec<Result<i64, Error>> {
        let once = self.sessions.transactional().with(TransactionOptions::new().exactly_once());
        self.at_once_held(|| once.begin().unwrap(), calls, before)
    }
}
