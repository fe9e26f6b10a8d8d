//! The rights that `docs/cluster.md` names besides those of one server.
//!
//! Guarantee: rights

use crate::fixture::SOON;
use crate::side::{BuildSide as _, SessionManager};
use std::collections::BTreeSet;
use std::time::Duration;

use rediscope::{Error, TransactionOptions, prelude::*};

use super::documents::{besides, line};
use super::fixture::{nothing_is_held, summary};
use super::forms::{Form, N};
use rediscope_testing::cluster::Cluster;

/// A cluster whose user `app` has the rights that a test gives.
struct RestrictedCluster {
    cluster: Cluster,
}

impl RestrictedCluster {
    fn may(&self, rules: &BTreeSet<String>) {
        let user = ["SETUSER", "app", "reset", "on", ">secret", "resetchannels", "-@all"];
        let rules: Vec<_> = user.into_iter().chain(rules.iter().map(String::as_str)).collect();
        for node in self.cluster.nodes().iter() {
            node.server.acl(&rules);
        }
    }

    fn sessions(&self) -> SessionManager {
        let url = self.cluster.url().replace("redis+cluster://", "redis+cluster://app:secret@");
        SessionManager::builder(url)
            .connect_timeout(Duration::from_secs(1))
            .response_timeout(Duration::from_secs(1))
            .checkout_timeout(Duration::from_secs(4))
            .build_side()
            .unwrap()
    }
}

/// Every form, and what goes where a slot will be.
fn all(fixture: &RestrictedCluster, forms: &[Form]) -> Result<(), Error> {
    let sessions = fixture.sessions();
    forms.iter().try_for_each(|form| form.play(&sessions))?;
    let slot = fixture.cluster.slot(N);
    let from = fixture.cluster.owner(slot).unwrap();
    for key in ["app:{x}:new", "app:{x}:newer", "app:{x}:last"] {
        fixture.cluster.read::<i64>(&["DEL", key]);
    }
    fixture.cluster.begin_migration(slot, (from + 1) % 3);
    let ended = while_it_moves(&sessions);
    fixture.cluster.end_migration(slot, from, (from + 1) % 3);
    nothing_is_held(&sessions);
    ended
}

fn while_it_moves(sessions: &SessionManager) -> Result<(), Error> {
    use rediscope::redis::Commands;
    let accounts = sessions.transactional();
    let _: i64 = sessions.pooled().incr("app:{x}:new", 1)?;
    accounts.run(|tx| Ok(tx.incr("app:{x}:newer", 1)))?;
    accounts.watch(["app:{x}:last"]).run(|read, tx| {
        let _: Option<i64> = read.get("app:{x}:last")?;
        Ok(tx.incr("app:{x}:last", 1))
    })?;
    Ok(())
}

#[test]
fn the_rights_of_a_cluster_are_enough_and_none_can_be_left_out() {
    let fixture = RestrictedCluster { cluster: Cluster::start(3, 0) };
    let own = besides("cluster", "+cluster|slots");
    let rules: BTreeSet<_> = line().union(&own).cloned().collect();
    fixture.may(&rules);
    all(&fixture, &Form::ALL).unwrap();
    for left_out in &own {
        let rest = rules.iter().filter(|rule| *rule != left_out).cloned().collect();
        fixture.may(&rest);
        let refused = all(&fixture, &[Form::Watch, Form::Single]);
        let Err(error) = refused else { panic!("nothing needs {left_out}") };
        assert!(summary(&error).contains("NOPERM"), "{left_out}: {error:?}");
        assert!(!error.is_retryable(), "{left_out}: {error:?}");
    }
    fixture.may(&rules);
    all(&fixture, &Form::ALL).unwrap();
}

#[test]
fn a_user_without_the_right_to_asking_fails_at_once_in_every_form() {
    use rediscope::redis::Commands;

    let fixture = RestrictedCluster { cluster: Cluster::start(3, 0) };
    let rules: BTreeSet<_> = line().union(&besides("cluster", "+cluster|slots")).cloned().collect();
    fixture.may(&rules.iter().filter(|rule| *rule != "+asking").cloned().collect());
    let sessions = fixture.sessions();
    // Before the slot moves, where its keys are.
    let guard = sessions.lock("x").acquire(SOON).unwrap();
    Form::Once.play(&sessions).unwrap();
    let slot = fixture.cluster.slot(N);
    let from = fixture.cluster.owner(slot).unwrap();
    let to = (from + 1) % 3;
    fixture.cluster.begin_migration(slot, to);
    let accounts = sessions.transactional();
    let once = accounts.with(TransactionOptions::new().exactly_once());
    let mut db = sessions.pooled();
    let single = Error::from(db.incr::<_, _, i64>("app:{x}:1", 1).unwrap_err());
    let run = accounts.run(|tx| Ok(tx.incr("app:{x}:2", 1))).unwrap_err();
    let exactly = once.run(|tx| Ok(tx.incr("app:{x}:3", 1))).unwrap_err();
    let watch = accounts.watch(["app:{x}:4"]).run(|_, tx| Ok(tx.incr("app:{x}:4", 1)));
    // All of the lock's keys have moved on.
    while fixture.cluster.move_keys(slot, from, to, 10) > 0 {}
    let held = guard.ensure_held().unwrap_err();
    // The register is where it was, and the key is not. From Valkey 9.0 on, EXEC is what is refused then.
    if summary(&exactly) != "Rejected EXEC TRYAGAIN, applied No, retryable" {
        assert_eq!(summary(&exactly), "Rejected ASKING NOPERM, applied No", "{exactly:?}");
    }
    let refusals = [
        (single, "Command INCRBY NOPERM, applied No"),
        (run, "Rejected ASKING NOPERM, applied No"),
        (watch.unwrap_err(), "Command ASKING NOPERM, applied No"),
        (held, "Lock ensure_held NOPERM, applied No"),
    ];
    for (error, expected) in refusals {
        assert_eq!(summary(&error), expected, "{error:?}");
    }
    nothing_is_held(&sessions);
    fixture.may(&rules);
    guard.ensure_held().unwrap();
    accounts.run(|tx| Ok(tx.incr("app:{x}:2", 1))).unwrap();
    fixture.cluster.end_migration(slot, from, to);
    guard.release().unwrap();
    assert_eq!(fixture.cluster.read::<i64>(&["GET", "app:{x}:2"]), 1);
}
