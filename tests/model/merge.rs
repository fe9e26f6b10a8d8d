//! Blocks that are merged on a hot key, under a model checker: closures in their turns, groups, leaders that end or are
//! dropped at each point, members that are withdrawn or abandoned, turns and leads that are taken back, and conflicts.
//! `scripts/model` runs this.
//!
//! Each block adds one to a number. The server of the model applies a block only if its closure ran on the number that is there, so
//! a result that is void and was kept is found. A lost caller ends in a deadlock, which shuttle reports.
//!
//! Five planted mistakes show that the checks can fail.
//!
//! Guarantee: turns

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::future::poll_fn;
use std::sync::{Mutex as Log, MutexGuard as LogGuard, PoisonError};

use shuttle::future::block_on;
use shuttle::thread;

use super::*;
use crate::pool::model::{assert_found_at_random, check};

/// Maximum number of blocks in one EXEC.
const MOST: usize = 3;

/// What a caller does besides its block.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Nothing,
    /// Is dropped in its turn.
    DropInTurn,
    /// Looks once after it has appended its block, and is withdrawn if it was not taken.
    Withdraw,
    /// Is dropped after it has appended its block.
    DropAppended,
    /// Is dropped when it leads, before its reads.
    DropLead,
    /// The same, when it has taken its group, before or after the bytes may have left.
    DropGroup {
        is_sent: bool,
    },
}

/// The parts that a planted mistake replaces.
#[derive(Clone, Copy)]
struct Steps {
    append: fn(&mut MergeEntry, Commands, ReadValues) -> Append,
    /// Drops a caller in its turn.
    leave_turn: fn(MergeEntry),
    /// Ends the followers with the outcome of the group.
    end: fn(Followers, Vec<Piece>),
    /// The result is given out when the block is appended.
    ends_early: bool,
    /// The next block is led before the EXEC of the one before.
    leads_early: bool,
}

const RIGHT: Steps = Steps {
    append: |place, commands, after| place.append(commands, Some(after)),
    leave_turn: drop,
    end: |followers, pieces| followers.end(pieces.into_iter()),
    ends_early: false,
    leads_early: false,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Applied,
    NotApplied,
    /// It may be applied.
    Unknown,
}

#[derive(Default)]
struct Server {
    number: u64,
    version: usize,
    /// The callers whose blocks were applied.
    applied: Vec<u64>,
}

struct World {
    table: Arc<MergeTable>,
    reads: Vec<u8>,
    steps: Steps,
    server: Log<Server>,
    /// The leaders between their reads and their EXEC; `None`: a lead may be taken back.
    leaders: Option<Log<usize>>,
}

/// Waits without an end, or looks once.
struct Waits {
    looks_once: bool,
}

impl StepWaiter for Waits {
    async fn wait(&mut self, caller: &Caller, _: Instant, _: bool) -> Option<Step> {
        poll_fn(|context| match caller.poll(context) {
            Poll::Ready(step) => Poll::Ready(Some(step)),
            Poll::Pending if self.looks_once => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    async fn leading<T: Send>(
        &mut self,
        _: &(impl Fn(Duration) + Sync),
        wait: impl Future<Output = T> + Send,
    ) -> T {
        wait.await
    }
}

fn step(place: &mut MergeEntry, looks_once: bool) -> Step {
    block_on(place.wait(&mut Waits { looks_once }, Instant::now(), Instant::now))
}

impl World {
    fn new(steps: Steps, takes_back: bool) -> Arc<Self> {
        Arc::new(Self {
            table: Arc::new(MergeTable::new()),
            reads: redis::cmd("GET").arg("k").get_packed_command(),
            steps,
            server: Log::default(),
            leaders: (!takes_back).then(Log::default),
        })
    }

    fn values(&self, number: u64) -> ReadValues {
        let reply = Value::BulkString(number.to_string().into_bytes());
        ReadValues::of(&self.reads, &[reply]).unwrap()
    }

    fn number(&self, values: &ReadValues) -> u64 {
        match &values.replies(&self.reads)[..] {
            [Value::BulkString(text)] => std::str::from_utf8(text).unwrap().parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Also after the check of another caller has failed.
    fn server(&self) -> LogGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what WATCH and GET reply.
    fn watch(&self) -> (usize, u64) {
        thread::yield_now();
        let server = self.server();
        (server.version, server.number)
    }

    /// Returns false after a conflict.
    fn exec<'c>(&self, version: usize, blocks: impl Iterator<Item = &'c Commands>) -> bool {
        thread::yield_now();
        let mut server = self.server();
        if server.version != version {
            return false;
        }
        for block in blocks {
            let [caller, ran_on] = block.bytes[..] else { panic!("a block is lost") };
            assert_eq!(server.number, u64::from(ran_on), "a closure ran on another number");
            server.number += 1;
            server.applied.push(caller.into());
        }
        server.version += 1;
        drop(server);
        thread::yield_now();
        true
    }

    /// How often the caller's block was applied.
    fn applied(&self, caller: u64) -> usize {
        let server = self.server();
        server.applied.iter().filter(|applied| **applied == caller).count()
    }

    fn alone(&self, caller: u64) -> End {
        loop {
            let (version, number) = self.watch();
            if self.exec(version, [commands(caller, number)].iter()) {
                return End::Applied;
            }
        }
    }

    fn leads(&self, one: isize) {
        if let Some(leaders) = &self.leaders {
            let mut leaders = leaders.lock().unwrap_or_else(PoisonError::into_inner);
            *leaders = leaders.checked_add_signed(one).unwrap();
            assert!(*leaders < 2, "two lead at once");
        }
    }

    /// Runs a block to its end.
    fn run(&self, caller: u64, act: Act) -> End {
        let steps = self.steps;
        let mut place = self.table.arrive(b"k", &self.reads, MOST).unwrap();
        let mut has_run = false;
        loop {
            match step(&mut place, act == Act::Withdraw && has_run) {
                Step::Alone if act == Act::Withdraw && has_run => return End::NotApplied,
                Step::Alone => return self.alone(caller),
                Step::Again => {
                    has_run = false;
                    place.rejoin();
                }
                Step::Run(values, _) => {
                    thread::yield_now();
                    if act == Act::DropInTurn {
                        (steps.leave_turn)(place);
                        return End::NotApplied;
                    }
                    let number = self.number(&values);
                    let after = self.values(number + 1);
                    match (steps.append)(&mut place, commands(caller, number), after) {
                        Append::Done if steps.ends_early => return End::Applied,
                        Append::Done if act == Act::DropAppended => return End::Unknown,
                        Append::Done => has_run = true,
                        Append::Void => place.rejoin(),
                        Append::Late => return self.alone(caller),
                    }
                }
                Step::Lead if act == Act::DropLead => return End::NotApplied,
                Step::Lead => match self.lead(&mut place, caller, act) {
                    Some(end) => return end,
                    None => {
                        has_run = false;
                        place.rejoin();
                    }
                },
                Step::Ended(Piece::Applied(_)) => return End::Applied,
                Step::Ended(Piece::Conflict) => {
                    has_run = false;
                    place.rejoin();
                }
                Step::Ended(_) => return End::Unknown,
            }
        }
    }

    /// Returns the end of the leader's block; `None`: it runs again.
    fn lead(&self, place: &mut MergeEntry, caller: u64, act: Act) -> Option<End> {
        let (version, number) = self.watch();
        let compared = place.compare(Some(&self.values(number)));
        if compared == Found::Late {
            place.end_lead(false, false);
            let own = [commands(caller, number)];
            return Some(if self.exec(version, own.iter()) {
                End::Applied
            } else {
                self.alone(caller)
            });
        }
        let own = commands(caller, number);
        let still_leads = compared == Found::HasRun || {
            thread::yield_now();
            place.append_first(own.clone(), Some(self.values(number + 1)))
        };
        let Some(group) = still_leads.then(|| place.take()).flatten() else {
            self.leads(isize::from(still_leads));
            let is_applied = self.exec(version, [own].iter());
            self.leads(-isize::from(still_leads));
            place.end_lead(is_applied, !is_applied);
            return is_applied.then_some(End::Applied);
        };
        let Group { own, mut followers, lead } = group;
        if act == (Act::DropGroup { is_sent: false }) {
            return Some(End::NotApplied);
        }
        followers.sent();
        if act == (Act::DropGroup { is_sent: true }) {
            return Some(End::NotApplied);
        }
        self.leads(1);
        let mut lead = Some(lead);
        if self.steps.leads_early {
            lead.take().unwrap().end(true, false);
        }
        let blocks = std::iter::once(&own).chain(followers.commands());
        let is_applied = self.exec(version, blocks);
        self.leads(-1);
        if let Some(lead) = lead {
            lead.end(is_applied, !is_applied);
        }
        let piece = if is_applied { Piece::Applied(Vec::new()) } else { Piece::Conflict };
        let pieces = followers.commands().map(|_| piece.clone()).collect();
        (self.steps.end)(followers, pieces);
        is_applied.then_some(End::Applied)
    }
}

fn commands(caller: u64, ran_on: u64) -> Commands {
    let bytes = vec![caller as u8, ran_on as u8];
    Commands { bytes, count: 1, changing: vec![0], has_outcome: true }
}

/// A caller for each act, with other processes that write, and callers that take turns back.
fn blocks(acts: &'static [Act], steps: Steps, writes: usize, looks: usize) {
    let world = World::new(steps, looks > 0);
    let mut threads: Vec<_> = (0..)
        .zip(acts)
        .map(|(caller, act)| {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let end = world.run(caller, *act);
                let applied = world.applied(caller);
                match end {
                    End::Applied => assert_eq!(applied, 1, "a result without its EXEC"),
                    End::NotApplied => assert_eq!(applied, 0, "it was applied"),
                    End::Unknown => assert!(applied <= 1, "it was applied twice"),
                }
                thread::yield_now();
                let later = world.applied(caller);
                assert!(end == End::Unknown || later == applied, "it was applied later");
            })
        })
        .collect();
    let of_writer = Arc::clone(&world);
    threads.push(thread::spawn(move || {
        for _ in 0..writes {
            thread::yield_now();
            let mut server = of_writer.server();
            server.number += 100;
            server.version += 1;
        }
    }));
    let of_looker = Arc::clone(&world);
    threads.push(thread::spawn(move || {
        for _ in 0..looks {
            thread::yield_now();
            let hots = lock(of_looker.table.shard(b"k").unwrap()).clone();
            let late = Instant::now() + Duration::from_secs(3600);
            hots.iter().for_each(|hot| hot.change(|state, woken| state.take_back(late, woken)));
        }
    }));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let server = world.server();
    let is_once = |caller: &u64| world_count(&server, *caller) == 1;
    assert!(server.applied.iter().all(is_once), "a block was applied twice");
    assert_eq!(server.number % 100, server.applied.len() as u64, "a block is lost");
    let left = world.table.shards.iter().filter(|shard| !lock(shard).is_empty()).count();
    assert_eq!(left, 0, "a watch is left");
}

fn world_count(server: &Server, caller: u64) -> usize {
    server.applied.iter().filter(|applied| **applied == caller).count()
}

const PLAIN: &[Act] = &[Act::Nothing; 4];
const DROPS: &[Act] =
    &[Act::Nothing, Act::DropInTurn, Act::DropAppended, Act::Nothing, Act::Withdraw];
const LEADERS: &[Act] = &[
    Act::Nothing,
    Act::DropLead,
    Act::DropGroup { is_sent: false },
    Act::DropGroup { is_sent: true },
    Act::Nothing,
];

#[test]
fn model_of_blocks_that_are_merged() {
    check(|| blocks(PLAIN, RIGHT, 0, 0));
}

#[test]
fn model_of_blocks_that_are_merged_beside_another_process() {
    check(|| blocks(PLAIN, RIGHT, 2, 0));
}

#[test]
fn model_of_members_that_are_dropped_and_withdrawn() {
    check(|| blocks(DROPS, RIGHT, 1, 0));
}

#[test]
fn model_of_leaders_that_are_dropped() {
    check(|| blocks(LEADERS, RIGHT, 1, 0));
}

#[test]
fn model_of_turns_and_leads_that_are_taken_back() {
    check(|| blocks(DROPS, RIGHT, 1, 3));
    check(|| blocks(LEADERS, RIGHT, 1, 3));
}

#[test]
fn model_of_groups_that_some_schedules_send() {
    static GROUPS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    const COUNTS: Steps = Steps {
        end: |followers, pieces| {
            GROUPS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            followers.end(pieces.into_iter());
        },
        ..RIGHT
    };
    check(|| blocks(PLAIN, COUNTS, 0, 0));
    let groups = GROUPS.load(std::sync::atomic::Ordering::Relaxed);
    assert!(groups > 1000, "{groups} groups, so nothing was checked");
}

/// The first planted mistake: a result is given out before its EXEC.
#[test]
fn model_finds_a_result_that_is_given_out_before_its_exec() {
    const MISTAKE: Steps = Steps { ends_early: true, ..RIGHT };
    let found = ["a result without its EXEC", "it was applied later", "deadlock"];
    assert_found_at_random(|| blocks(PLAIN, MISTAKE, 0, 0), &found);
}

/// The second: a member of a group has no outcome.
#[test]
fn model_finds_a_member_that_is_lost() {
    const MISTAKE: Steps = Steps {
        end: |mut followers, pieces| {
            followers.members.pop();
            followers.end(pieces.into_iter());
        },
        ..RIGHT
    };
    assert_found_at_random(|| blocks(PLAIN, MISTAKE, 0, 0), &["deadlock"]);
}

/// The third: a caller that is dropped keeps its turn, and no other takes it back.
#[test]
fn model_finds_a_turn_that_is_lost() {
    const MISTAKE: Steps = Steps { leave_turn: std::mem::forget, ..RIGHT };
    assert_found_at_random(|| blocks(DROPS, MISTAKE, 0, 0), &["deadlock", "a watch is left"]);
}

/// The fourth: a result is kept although the number that its closure ran on is void.
#[test]
fn model_finds_a_void_result_that_is_kept() {
    const MISTAKE: Steps = Steps {
        append: |place, commands, after| {
            place.hot.change(|state, _| {
                state.turn = None;
                state.push(&place.caller, commands, Some(after));
            });
            place.role = Role::Waits;
            Append::Done
        },
        ..RIGHT
    };
    let found = ["a closure ran on another number", "two lead at once", "deadlock"];
    assert_found_at_random(|| blocks(PLAIN, MISTAKE, 2, 0), &found);
}

/// The fifth: the next block is led before the EXEC of the one before.
#[test]
fn model_finds_two_that_lead_at_once() {
    const MISTAKE: Steps = Steps { leads_early: true, ..RIGHT };
    assert_found_at_random(|| blocks(PLAIN, MISTAKE, 0, 0), &["two lead at once"]);
}
