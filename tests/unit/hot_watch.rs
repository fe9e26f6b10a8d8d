//! Steps of blocks that are merged, in an order that only a delayed leader brings about.
//!
//! Guarantee: turns

use super::*;
use crate::sync::now::now;

/// Looks once.
struct Looks;

impl StepWaiter for Looks {
    async fn wait(&mut self, caller: &Caller, _: Instant, _: bool) -> Option<Step> {
        caller.take()
    }

    async fn leading<T: Send>(
        &mut self,
        _: &(impl Fn(Duration) + Sync),
        wait: impl Future<Output = T> + Send,
    ) -> T {
        wait.await
    }
}

/// The step that the caller has, which gives up without one.
fn step(place: &mut MergeEntry) -> Step {
    now(place.wait(&mut Looks, Instant::now(), Instant::now))
}

#[test]
fn a_caller_that_runs_again_meets_those_that_come_meanwhile() {
    let (table, reads) =
        (Arc::new(MergeTable::new()), redis::cmd("GET").arg("k").get_packed_command());
    let found = ReadValues::of(&reads, &[Value::Nil]).unwrap();
    let arrive = || table.arrive(b"k", &reads, 8).unwrap();
    let mut again = arrive();
    assert!(matches!(step(&mut again), Step::Lead));
    assert_eq!(again.compare(Some(&found)), Found::Runs);
    // Its own EXEC was a conflict. Another one comes and goes before it arrives again.
    again.end_lead(false, true);
    drop(arrive());
    let mut other = arrive();
    assert!(matches!(step(&mut other), Step::Lead));
    again.rejoin();
    assert!(matches!(step(&mut again), Step::Alone), "two lead at once");
    drop((again, other));
    assert!(table.shards.iter().all(|shard| lock(shard).is_empty()), "a watch is left");
}

#[test]
fn what_a_leader_gives_too_late_does_not_reach_the_next_run_of_a_block_that_gave_up() {
    let (table, reads) =
        (Arc::new(MergeTable::new()), redis::cmd("GET").arg("k").get_packed_command());
    let found = ReadValues::of(&reads, &[Value::Nil]).unwrap();
    let bytes = redis::cmd("SET").arg("k").arg("1").get_packed_command();
    let set = || Commands { bytes: bytes.clone(), count: 1, changing: vec![0], has_outcome: true };
    let arrive = || table.arrive(b"k", &reads, 8).unwrap();
    let (mut leader, mut follower) = (arrive(), arrive());
    assert!(matches!(step(&mut leader), Step::Lead));
    assert_eq!(leader.compare(Some(&found)), Found::Runs);
    assert!(leader.append_first(set(), Some(found.clone())));
    assert!(matches!(step(&mut follower), Step::Run(..)));
    assert_eq!(follower.append(set(), Some(found.clone())), Append::Done);
    let Group { mut followers, lead, .. } = leader.take().unwrap();
    assert_eq!(followers.len(), 1);
    followers.sent();
    assert!(matches!(step(&mut follower), Step::Ended(Piece::Failed(CommitError::InDoubt(_)))));
    follower.rejoin();
    followers.end([Piece::Applied(Vec::new())].into_iter());
    drop(leader);
    lead.end(true, false);
    assert!(matches!(step(&mut follower), Step::Run(..) | Step::Lead));
    drop(follower);
    assert!(table.shards.iter().all(|shard| lock(shard).is_empty()), "a watch is left");
}

#[test]
fn a_conflict_halves_the_size_of_a_group_and_a_commit_doubles_it() {
    let (table, reads) =
        (Arc::new(MergeTable::new()), redis::cmd("GET").arg("k").get_packed_command());
    let found = ReadValues::of(&reads, &[Value::Nil]).unwrap();
    let bytes = redis::cmd("SET").arg("k").arg("1").get_packed_command();
    let set = || Commands { bytes: bytes.clone(), count: 1, changing: vec![0], has_outcome: true };
    // The watch is known as long as one of its blocks has a place.
    let mut kept = None;
    let mut size = |is_committed: bool| {
        let mut places: Vec<_> = (0..8).map(|_| table.arrive(b"k", &reads, 8).unwrap()).collect();
        let (leader, others) = places.split_first_mut().unwrap();
        assert!(matches!(step(leader), Step::Lead));
        assert_eq!(leader.compare(Some(&found)), Found::Runs);
        assert!(leader.append_first(set(), Some(found.clone())));
        for place in others {
            assert!(matches!(step(place), Step::Run(..)));
            assert_eq!(place.append(set(), Some(found.clone())), Append::Done);
        }
        let size = match leader.take() {
            Some(Group { followers, lead, .. }) => {
                lead.end(is_committed, !is_committed);
                1 + followers.len()
            }
            None => {
                leader.end_lead(is_committed, !is_committed);
                1
            }
        };
        kept = places.into_iter().next();
        size
    };
    assert_eq!([false; 5].map(&mut size), [8, 4, 2, 1, 1], "conflicts");
    assert_eq!([true; 4].map(&mut size), [1, 2, 4, 8], "commits");
    drop(kept);
    assert!(table.shards.iter().all(|shard| lock(shard).is_empty()), "a watch is left");
}

#[test]
fn the_commands_of_a_group_are_bounded() {
    for (bytes, is_merged) in [(MAX_BYTES / 2, true), (MAX_BYTES / 2 + 1, false)] {
        let (table, reads) =
            (Arc::new(MergeTable::new()), redis::cmd("GET").arg("k").get_packed_command());
        let found = ReadValues::of(&reads, &[Value::Nil]).unwrap();
        let set =
            || Commands { bytes: vec![0; bytes], count: 1, changing: vec![0], has_outcome: true };
        let arrive = || table.arrive(b"k", &reads, 8).unwrap();
        let (mut leader, mut next) = (arrive(), arrive());
        assert!(matches!(step(&mut leader), Step::Lead));
        assert_eq!(leader.compare(Some(&found)), Found::Runs);
        assert!(leader.append_first(set(), Some(found.clone())));
        assert!(matches!(step(&mut next), Step::Run(..)));
        assert_eq!(next.append(set(), Some(found.clone())), Append::Done);
        let group = leader.take();
        assert_eq!(group.is_some(), is_merged, "{bytes}");
        if !is_merged {
            // It sends its own block, and the other one is led after it.
            leader.end_lead(true, false);
            assert!(matches!(step(&mut next), Step::Lead));
        }
    }
}

/// What its block would have left was never there.
#[test]
fn no_closure_runs_on_what_a_failed_lead_would_have_left() {
    for is_committed in [true, false] {
        let (table, reads) =
            (Arc::new(MergeTable::new()), redis::cmd("GET").arg("k").get_packed_command());
        let found = ReadValues::of(&reads, &[Value::Nil]).unwrap();
        let set = Commands { bytes: vec![0], count: 1, changing: vec![0], has_outcome: true };
        let arrive = || table.arrive(b"k", &reads, 8).unwrap();
        let mut leader = arrive();
        assert!(matches!(step(&mut leader), Step::Lead));
        assert_eq!(leader.compare(Some(&found)), Found::Runs);
        assert!(leader.append_first(set, Some(found)));
        assert!(leader.take().is_none(), "none follows it");
        leader.end_lead(is_committed, false);
        let mut next = arrive();
        match step(&mut next) {
            Step::Run(..) => assert!(is_committed),
            Step::Lead => assert!(!is_committed),
            _ => panic!("it neither runs nor leads"),
        }
    }
}
