//! Steps of blocks that are merged, in an order that only a delayed leader brings about.
//!
//! Guarantee: turns

use std::time::Duration;

use super::*;

const SOON: Duration = Duration::from_secs(20);

fn step(place: &mut MergeEntry<'_>) -> Step {
    place.wait(Instant::now() + SOON, Instant::now)
}

#[test]
fn what_a_leader_gives_too_late_does_not_reach_the_next_run_of_a_block_that_gave_up() {
    let (table, reads) = (MergeTable::new(), redis::cmd("GET").arg("k").get_packed_command());
    let found = ReadValues::of(&reads, &[Value::Nil]).unwrap();
    let bytes = redis::cmd("SET").arg("k").arg("1").get_packed_command();
    let set = || Commands { bytes: bytes.clone(), count: 1, changing: vec![0] };
    let arrive = || table.arrive(b"k", &reads, 8).unwrap();
    let (mut leader, mut follower) = (arrive(), arrive());
    assert!(matches!(step(&mut leader), Step::Lead));
    assert!(!leader.has_run_on(Some(&found)));
    leader.append_first(set(), Some(found.clone()));
    assert!(matches!(step(&mut follower), Step::Run(..)));
    assert!(follower.append(set(), Some(found.clone())));
    let (_, mut followers) = leader.take();
    assert_eq!(followers.len(), 1);
    followers.sent();
    let gave_up = follower.wait(Instant::now(), Instant::now);
    assert!(matches!(gave_up, Step::Ended(Piece::Failed(CommitError::InDoubt(_)))));
    follower.rejoin();
    followers.end([Piece::Applied(Vec::new())].into_iter());
    leader.end_lead(true, false);
    drop(leader);
    assert!(matches!(step(&mut follower), Step::Run(..) | Step::Lead));
    drop(follower);
    assert!(table.shards.iter().all(|shard| lock(shard).is_empty()), "a watch is left");
}
