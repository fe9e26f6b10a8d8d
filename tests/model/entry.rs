//! The entry of an open scope under a model checker: take, put back, expire and end against each
//! other, on one entry that one scope after the other has. `scripts/model` runs this.
//!
//! A lost permit ends in a deadlock or is missing at the end. Ten planted mistakes show that the
//! checks can fail.
//!
//! Guarantee: pin-expired

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test code, which clippy does not see through `cfg(all(test, …))`"
)]

use std::sync::Arc as Plain;
use std::sync::Mutex as Log;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shuttle::thread;

use super::*;
use crate::pool::model::{assert_found, check};
use crate::pool::semaphore::{FairSemaphore, IsWaiting};

type WatchedEntry = Entry<Token, Info>;

/// The connection and the permit of one scope.
struct Token {
    world: Plain<World>,
    scope: usize,
}

#[derive(Clone, Copy)]
struct Info {
    generation: u64,
}

/// The operations, of which a planted mistake replaces one.
#[derive(Clone, Copy)]
struct Operations {
    take: fn(&WatchedEntry, u64) -> Taken<Token>,
    take_last: fn(&WatchedEntry, u64) -> Taken<Token>,
    put_back: fn(&WatchedEntry, u64, Token) -> Left<Token, Info>,
    expire: fn(&WatchedEntry, u64) -> Expired<Token, Info>,
    end: fn(&WatchedEntry, u64),
}

const RIGHT: Operations = Operations {
    take: WatchedEntry::take,
    take_last: WatchedEntry::take_last,
    put_back: WatchedEntry::put_back,
    expire: WatchedEntry::expire,
    end: |entry, generation| drop(entry.end(generation)),
};

struct World {
    gate: FairSemaphore<(), ()>,
    entry: WatchedEntry,
    operations: Operations,
    in_call: AtomicBool,
    /// Scopes that were to be reclaimed during a call, and those that were, or ended, at a call's end.
    marked: Log<Vec<u64>>,
    obeyed: Log<Vec<u64>>,
}

impl Kept for Token {
    type Ender = ();

    fn set_ender(&self, _: &mut Option<()>) {}
}

impl Drop for Token {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert!(!self.world.in_call.load(Ordering::SeqCst), "returned during a call");
        let free = lock(&self.world.entry.state).scope.is_none();
        assert!(free, "the permit was passed on before its entry was free");
        self.world.gate.release(0);
    }
}

impl World {
    fn new(operations: Operations) -> Plain<Self> {
        Plain::new(Self {
            gate: FairSemaphore::new(1),
            entry: Entry::default(),
            operations,
            in_call: AtomicBool::new(false),
            marked: Log::default(),
            obeyed: Log::default(),
        })
    }

    fn open(self: &Plain<Self>, scope: usize) -> u64 {
        if self.gate.try_acquire().is_none() {
            let patient = Instant::now() + Duration::from_secs(3600);
            let may_wait = |_: &IsWaiting<'_>| Ok::<(), ()>(());
            assert!(self.gate.acquire(patient, may_wait).is_ok(), "a patient caller gave up");
        }
        assert!(self.entry.read(|_, _| ()).is_none(), "another scope is in the entry");
        let token = Token { world: Plain::clone(self), scope };
        self.entry.open(token, |generation, _| Info { generation })
    }

    fn call(&self, scope: usize, generation: u64) {
        self.call_on((self.operations.take)(&self.entry, generation), scope, generation);
    }

    /// The call that ends the scope.
    fn last_call(&self, scope: usize, generation: u64) {
        self.call_on((self.operations.take_last)(&self.entry, generation), scope, generation);
    }

    fn call_on(&self, taken: Taken<Token>, scope: usize, generation: u64) {
        let token = match taken {
            Taken::Kept(token) => token,
            Taken::Gone => return,
            Taken::Busy => panic!("the only call met another one"),
        };
        assert_eq!(token.scope, scope, "a call took another scope's connection");
        assert!(!self.in_call.swap(true, Ordering::SeqCst), "two calls have one connection");
        thread::yield_now();
        assert!(self.in_call.swap(false, Ordering::SeqCst), "two calls have one connection");
        if let Left::Expired(_token, info) | Left::Ended(_token, Some(info)) =
            (self.operations.put_back)(&self.entry, generation, token)
        {
            assert_eq!(info.generation, generation, "another scope was reclaimed");
            self.obeyed.lock().unwrap().push(generation);
        }
    }

    /// As the reaper and `close` do it.
    fn expire(&self) {
        let Some(generation) = self.entry.read(|info, _| info.generation) else { return };
        thread::yield_now();
        match (self.operations.expire)(&self.entry, generation) {
            Expired::Reclaimed(_token, info) => {
                assert_eq!(info.generation, generation, "another scope was reclaimed");
            }
            Expired::Marked(_) => self.marked.lock().unwrap().push(generation),
            Expired::Gone => {}
        }
    }

    #[track_caller]
    fn nothing_is_lost(&self) {
        let (marked, obeyed) = (self.marked.lock().unwrap(), self.obeyed.lock().unwrap());
        assert!(marked.iter().all(|scope| obeyed.contains(scope)), "a mark was missed");
        assert!(lock(&self.entry.state).scope.is_none(), "a scope is left");
        assert_eq!(self.gate.free(), 1, "the permit was lost or doubled");
    }
}

fn every(threads: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = threads.into_iter().map(thread::spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Two scopes, one after the other, with two calls each; the reaper and `close` meanwhile.
fn scopes_that_are_expired(operations: Operations) {
    let world = World::new(operations);
    let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for scope in 0..2 {
        let world = Plain::clone(&world);
        threads.push(Box::new(move || {
            let generation = world.open(scope);
            world.call(scope, generation);
            world.call(scope, generation);
            (world.operations.end)(&world.entry, generation);
        }));
    }
    for _ in 0..2 {
        let world = Plain::clone(&world);
        threads.push(Box::new(move || {
            world.expire();
            world.expire();
        }));
    }
    every(threads);
    world.nothing_is_lost();
}

/// Two scopes, one after the other, each of which ends with its last call; the reaper meanwhile.
fn scopes_that_end_with_a_call(operations: Operations) {
    let world = World::new(operations);
    let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for scope in 0..2 {
        let world = Plain::clone(&world);
        threads.push(Box::new(move || {
            let generation = world.open(scope);
            world.call(scope, generation);
            world.last_call(scope, generation);
        }));
    }
    let reaping = Plain::clone(&world);
    threads.push(Box::new(move || {
        reaping.expire();
        reaping.expire();
    }));
    every(threads);
    world.nothing_is_lost();
}

/// A scope that ends while a call of it is under way.
fn a_scope_that_ends_inside_a_call(operations: Operations) {
    let world = World::new(operations);
    let generation = world.open(0);
    let [calling, ending] = [(); 2].map(|()| Plain::clone(&world));
    every(vec![
        Box::new(move || calling.call(0, generation)),
        Box::new(move || (ending.operations.end)(&ending.entry, generation)),
    ]);
    world.nothing_is_lost();
}

/// The same with the reaper; another scope waits for the permit.
fn a_scope_that_ends_and_expires_inside_a_call() {
    let world = World::new(RIGHT);
    let generation = world.open(0);
    let [calling, ending, reaping, next] = [(); 4].map(|()| Plain::clone(&world));
    every(vec![
        Box::new(move || calling.call(0, generation)),
        Box::new(move || drop(ending.entry.end(generation))),
        Box::new(move || reaping.expire()),
        Box::new(move || {
            let generation = next.open(1);
            next.call(1, generation);
            drop(next.entry.end(generation));
        }),
    ]);
    world.nothing_is_lost();
}

/// A second call during the first one gets no connection, and loses none.
fn two_calls_at_once() {
    let world = World::new(RIGHT);
    let generation = world.open(0);
    let calls = [(); 2].map(|()| Plain::clone(&world)).map(|world| {
        Box::new(move || {
            if let Taken::Kept(token) = world.entry.take(generation) {
                assert!(!world.in_call.swap(true, Ordering::SeqCst), "two calls at once");
                thread::yield_now();
                world.in_call.store(false, Ordering::SeqCst);
                assert!(matches!(world.entry.put_back(generation, token), Left::Not));
            }
        }) as Box<dyn FnOnce() + Send>
    });
    every(calls.into());
    drop(world.entry.end(generation));
    world.nothing_is_lost();
}

#[test]
fn model_of_scopes_that_are_expired_between_and_during_calls() {
    check(|| scopes_that_are_expired(RIGHT));
}

#[test]
fn model_of_a_scope_that_ends_inside_a_call() {
    check(|| a_scope_that_ends_inside_a_call(RIGHT));
    check(a_scope_that_ends_and_expires_inside_a_call);
}

#[test]
fn model_of_scopes_that_end_with_their_last_call() {
    check(|| scopes_that_end_with_a_call(RIGHT));
}

#[test]
fn model_finds_a_last_call_that_does_not_end_its_scope() {
    let planted = || {
        // The second scope then waits for the permit forever.
        scopes_that_end_with_a_call(Operations { take_last: WatchedEntry::take, ..RIGHT });
    };
    assert_found(planted, &["a scope is left", "deadlock"]);
}

#[test]
fn model_of_two_calls_of_one_scope_at_once() {
    check(two_calls_at_once);
}

/// A mark that is made between the look and the put is missed.
fn put_back_after_a_look(entry: &WatchedEntry, generation: u64, kept: Token) -> Left<Token, Info> {
    let open = lock(&entry.state).scope(generation).is_some_and(|scope| scope.mark == Mark::Open);
    if !open {
        return entry.put_back(generation, kept);
    }
    if let Some(scope) = lock(&entry.state).scope(generation) {
        scope.kept = Some(kept);
    }
    Left::Not
}

#[test]
fn model_finds_a_put_back_that_looks_for_the_mark_first() {
    let planted = || {
        scopes_that_are_expired(Operations { put_back: put_back_after_a_look, ..RIGHT });
    };
    assert_found(planted, &["a mark was missed"]);
}

/// A scope inside a call is left alone.
fn expire_without_a_mark(entry: &WatchedEntry, generation: u64) -> Expired<Token, Info> {
    let in_call = lock(&entry.state).scope(generation).is_some_and(|scope| scope.kept.is_none());
    if in_call { Expired::Marked(None) } else { entry.expire(generation) }
}

#[test]
fn model_finds_an_expiry_that_leaves_no_mark() {
    let planted = || {
        scopes_that_are_expired(Operations { expire: expire_without_a_mark, ..RIGHT });
    };
    assert_found(planted, &["a mark was missed"]);
}

/// The scope that has the entry is expired, whichever it is.
fn expire_any(entry: &WatchedEntry, _: u64) -> Expired<Token, Info> {
    let generation = lock(&entry.state).generation;
    entry.expire(generation)
}

#[test]
fn model_finds_an_expiry_of_the_next_scope() {
    let planted = || scopes_that_are_expired(Operations { expire: expire_any, ..RIGHT });
    assert_found(planted, &["another scope was reclaimed", "a mark was missed"]);
}

/// A late call of a scope that was reclaimed takes the connection of the next scope.
fn take_any(entry: &WatchedEntry, _: u64) -> Taken<Token> {
    let generation = lock(&entry.state).generation;
    entry.take(generation)
}

#[test]
fn model_finds_a_call_that_takes_the_next_scopes_connection() {
    let planted = || scopes_that_are_expired(Operations { take: take_any, ..RIGHT });
    assert_found(planted, &["a call took another scope's connection", "met another one"]);
}

/// The permit is passed on first.
fn end_in_the_wrong_order(entry: &WatchedEntry, generation: u64) {
    let kept = lock(&entry.state).scope(generation).and_then(|scope| scope.kept.take());
    if let Some(kept) = kept {
        drop(kept);
        lock(&entry.state).scope = None;
    }
}

#[test]
fn model_finds_a_permit_that_is_passed_on_before_the_entry_is_free() {
    let planted = || {
        scopes_that_are_expired(Operations { end: end_in_the_wrong_order, ..RIGHT });
    };
    assert_found(planted, &["before its entry was free"]);
}

/// The scope's end during a call is forgotten.
fn end_without_a_mark(entry: &WatchedEntry, generation: u64) {
    let in_call = lock(&entry.state).scope(generation).is_some_and(|scope| scope.kept.is_none());
    if !in_call {
        drop(entry.end(generation));
    }
}

#[test]
fn model_finds_an_end_that_a_call_in_progress_forgets() {
    let planted = || {
        a_scope_that_ends_inside_a_call(Operations { end: end_without_a_mark, ..RIGHT });
    };
    assert_found(planted, &["a scope is left"]);
}

/// A right to the permit that the pool can take back from a call that is not polled any more.
struct Right {
    held: Mutex<bool>,
}

/// The connection and the right of one scope of a task.
struct Lent {
    world: Plain<LendingWorld>,
    right: Plain<Right>,
}

type LendingEntry = Entry<Lent, Info>;

struct LendingWorld {
    gate: FairSemaphore<(), ()>,
    entry: LendingEntry,
    /// Whether a right to the permit is held.
    is_lent: AtomicBool,
    revoke: fn(&Plain<LendingWorld>, u64, &Plain<Right>),
    end: fn(&LendingWorld, &Right),
    revoked: Log<usize>,
}

impl Kept for Lent {
    type Ender = Plain<Right>;

    fn set_ender(&self, ender: &mut Option<Plain<Right>>) {
        ender.get_or_insert_with(|| Plain::clone(&self.right));
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            (self.world.end)(&self.world, &self.right);
        }
    }
}

impl LendingWorld {
    fn new(revoke: fn(&Plain<Self>, u64, &Plain<Right>), end: fn(&Self, &Right)) -> Plain<Self> {
        let entry = Entry::default();
        let (gate, is_lent) = (FairSemaphore::new(1), AtomicBool::new(false));
        Plain::new(Self { gate, entry, is_lent, revoke, end, revoked: Log::default() })
    }

    /// A scope with two calls. Another one may follow as soon as its right has ended.
    fn scope(self: &Plain<Self>) {
        if self.gate.try_acquire().is_none() {
            let patient = Instant::now() + Duration::from_secs(3600);
            let may_wait = |_: &IsWaiting<'_>| Ok::<(), ()>(());
            assert!(self.gate.acquire(patient, may_wait).is_ok(), "a patient caller gave up");
        }
        assert!(!self.is_lent.swap(true, Ordering::SeqCst), "two rights to one permit");
        assert!(self.entry.read(|_, _| ()).is_none(), "another scope is in the entry");
        let right = Plain::new(Right { held: Mutex::new(true) });
        let lent = Lent { world: Plain::clone(self), right };
        let generation = self.entry.open(lent, |generation, _| Info { generation });
        for last in [false, true] {
            let taken = match last {
                false => self.entry.take(generation),
                true => self.entry.take_last(generation),
            };
            let Taken::Kept(lent) = taken else { return };
            thread::yield_now();
            drop(self.entry.put_back(generation, lent));
        }
    }

    /// As the reaper does it.
    fn reap(self: &Plain<Self>) {
        let Some(generation) = self.entry.read(|info, _| info.generation) else { return };
        match self.entry.expire(generation) {
            Expired::Marked(Some(right)) => {
                thread::yield_now();
                (self.revoke)(self, generation, &right);
            }
            expired => drop(expired),
        }
    }

    fn take_back(&self, right: &Right) {
        (self.end)(self, right);
        *self.revoked.lock().unwrap() += 1;
    }
}

/// Takes the permit from a scope's call, after the scope has left its entry.
fn revoke(world: &Plain<LendingWorld>, generation: u64, right: &Plain<Right>) {
    match world.entry.revoke(generation) {
        Some((Some(kept), _)) => drop(kept),
        Some((None, _)) => world.take_back(right),
        None => {}
    }
}

/// Ends the right, unless it has ended, and passes the permit on.
fn end(world: &LendingWorld, right: &Right) {
    if !std::mem::replace(&mut *lock(&right.held), false) {
        return;
    }
    pass_on(world);
}

fn pass_on(world: &LendingWorld) {
    assert!(lock(&world.entry.state).scope.is_none(), "passed on before the entry was free");
    world.is_lent.store(false, Ordering::SeqCst);
    world.gate.release(0);
}

/// Two scopes, one after the other, and the reaper.
fn calls_that_are_revoked(
    revoke: fn(&Plain<LendingWorld>, u64, &Plain<Right>),
    end: fn(&LendingWorld, &Right),
) {
    let world = LendingWorld::new(revoke, end);
    let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for _ in 0..2 {
        let world = Plain::clone(&world);
        threads.push(Box::new(move || world.scope()));
    }
    for _ in 0..2 {
        let world = Plain::clone(&world);
        threads.push(Box::new(move || {
            world.reap();
            world.reap();
        }));
    }
    every(threads);
    assert!(lock(&world.entry.state).scope.is_none(), "a scope is left");
    assert_eq!(world.gate.free(), 1, "the permit was lost or doubled");
}

#[test]
fn model_of_calls_whose_permit_is_taken_back() {
    check(|| calls_that_are_revoked(revoke, end));
}

fn revoke_early(world: &Plain<LendingWorld>, generation: u64, right: &Plain<Right>) {
    world.take_back(right);
    drop(world.entry.revoke(generation));
}

#[test]
fn model_finds_a_permit_that_is_taken_back_before_the_scope_has_left() {
    let planted = || calls_that_are_revoked(revoke_early, end);
    assert_found(
        planted,
        &["passed on before the entry was free", "another scope is in the entry"],
    );
}

fn end_again(world: &LendingWorld, right: &Right) {
    *lock(&right.held) = false;
    pass_on(world);
}

/// The symptoms of a permit that is passed on twice.
const DOUBLED: &[&str] =
    &["lost or doubled", "two rights", "passed on before", "another scope", "subtract"];

#[test]
fn model_finds_a_right_that_ends_twice() {
    assert_found(|| calls_that_are_revoked(revoke, end_again), DOUBLED);
}

/// The end is not one step.
fn end_after_a_look(world: &LendingWorld, right: &Right) {
    if *lock(&right.held) {
        thread::yield_now();
        *lock(&right.held) = false;
        pass_on(world);
    }
}

#[test]
fn model_finds_a_look_at_the_right_before_its_end() {
    assert_found(|| calls_that_are_revoked(revoke, end_after_a_look), DOUBLED);
}
