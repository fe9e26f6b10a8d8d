//! Blocks of random commands of many tasks in shared writes, compared with a model: each reply is the block's own, and each block
//! is applied whole or not at all. Some have a command that the server refuses when it is queued, or one that fails at run
//! time, and some are dropped at a random poll.
//!
//! `REDISCOPE_TASK_MODEL` is the number of blocks.
//!
//! Guarantee: committed, grouped

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use redis::Value;
use rediscope::TransactionOptions;
use rediscope::aio::SessionManager;
use rediscope::error::Resolution;
use rediscope::prelude::*;
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

use super::dropped::DropAfter;
use super::queue_soak::block_model::{Call, KEYS};
use super::queue_soak::worker::{Counts, USER, Worker, add, code};
use super::{LANES, number, runtime};
use crate::SOON;

const WORKERS: u64 = 64;
/// One block in so many is dropped at one of its polls.
const DROPPED: u16 = 50;
/// Number of polls after which a block is dropped at the latest.
const MOST_POLLS: u32 = 40;

/// `None`: dropped after this number of polls.
async fn ended<F: Future>(polls: Option<u32>, call: F) -> Option<F::Output> {
    match polls {
        Some(polls) => DropAfter::eager(polls, call).await,
        None => Some(call.await),
    }
}

impl Worker {
    async fn step(&mut self, sessions: &SessionManager, rng: &mut Rng, counts: &Counts) {
        if rng.u8(..32) == 0 {
            // A short command of the pooled handle travels in the same way.
            let key = rng.usize(..KEYS);
            let found = sessions.pooled().get::<_, Value>(&self.keys[key]).await;
            let found = found.map_err(|error| code(error.code(), &error));
            if found != self.model.get(key) {
                self.differs(&[Call::Get(key)], &self.model.get(key), &found);
            }
        }
        let block = self.block(rng);
        let is_dropped = rng.u16(..DROPPED) == 0;
        let polls = rng.u32(..MOST_POLLS);
        let accounts = sessions.transactional();
        let mut handles = Vec::new();
        let keys = self.keys.clone();
        let queue = |tx: &mut rediscope::Block| {
            handles.extend(block.iter().map(|call| call.queue(tx, &keys)));
            Ok(handles.clone())
        };
        if rng.bool() {
            let end = ended(is_dropped.then_some(polls), accounts.run(queue)).await;
            match end {
                Some(end) => self.compare(&block, end, &handles, counts),
                None => {
                    add(&counts.dropped);
                    self.abandon(&block);
                }
            }
            return;
        }
        let once = accounts.with(TransactionOptions::new().exactly_once());
        let sent = once.submit(queue).unwrap();
        let token = sent.token();
        match ended(is_dropped.then_some(polls), sent).await {
            Some(end) => self.compare(&block, end, &handles, counts),
            None => {
                add(&counts.dropped);
                add(&counts.resolved);
                match sessions.resolve(&token, SOON).await {
                    Resolution::Committed => _ = self.model.apply(&block),
                    Resolution::NotCommitted => {}
                    other => self.differs(&block, &"a resolution", &other),
                }
            }
        }
    }
}

#[test]
fn each_reply_is_of_its_own_block_and_no_block_is_applied_in_part() {
    rediscope_testing::own_process!(alone);
    let seed = rediscope_testing::soak::seed();
    let blocks = number("REDISCOPE_TASK_MODEL", 30_000);
    let (runtime, server) = (runtime(), Server::start());
    let (user, password) = USER;
    server.acl(&["SETUSER", user, "on", &format!(">{password}"), "~*", "&*", "+@all", "-persist"]);
    let sessions = {
        let _runtime = runtime.enter();
        let builder = rediscope::SessionManager::builder(server.url_as(user, password));
        builder.lanes(LANES).checkout_timeout(SOON).build_async().unwrap()
    };
    let counts = Arc::new(Counts::default());
    let mut rng = Rng::with_seed(seed);
    let each = blocks.div_ceil(WORKERS);
    let spawn = |nth| {
        let (sessions, counts, mut rng) = (sessions.clone(), Arc::clone(&counts), rng.fork());
        runtime.spawn(async move {
            let mut worker = Worker::new(nth);
            for _ in 0..each {
                worker.step(&sessions, &mut rng, &counts).await;
            }
            worker
        })
    };
    let workers: Vec<_> = (0..WORKERS).map(spawn).collect();
    let mut workers: Vec<_> =
        workers.into_iter().map(|worker| runtime.block_on(worker).unwrap()).collect();
    runtime.block_on(sessions.close(SOON));
    eventually(SOON, "no connection is left", || server.clients() == 0);
    let written = server.calls("exec");
    let mut db = server.connection();
    let late: usize = workers.iter_mut().map(|worker| worker.audit(&mut db)).sum();
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "{} blocks in {written} transactions: {} applied, {} with a failed command, {} refused, {} dropped ({} resolved, \
         {late} of the others applied)",
        each * WORKERS,
        of(&counts.applied),
        of(&counts.failed),
        of(&counts.refused),
        of(&counts.dropped),
        of(&counts.resolved)
    );
    let wrong: Vec<_> = workers.iter().flat_map(|worker| &worker.wrong).collect();
    let some: Vec<_> = wrong.iter().take(5).collect();
    assert!(wrong.is_empty(), "{} wrong, for example {some:#?}", wrong.len());
    assert!(written < each * WORKERS / 2, "too few shared writes to mean anything: {written}");
    let kinds = [&counts.applied, &counts.failed, &counts.refused, &counts.dropped];
    assert!(kinds.iter().all(|count| of(count) > 0), "a kind is missing");
}

/// The control: the replies of two blocks of one write, exchanged, are found wrong.
#[test]
fn replies_of_another_block_differ_from_the_model() {
    let counts = Counts::default();
    let (mut one, mut other) = (Worker::new(1), Worker::new(2));
    for key in 0..KEYS {
        let block = |of: &str| [Call::Set(key, of.to_owned()), Call::Get(key)];
        let theirs: Result<Vec<_>, _> = other.model.apply(&block("theirs")).into_iter().collect();
        one.compare(&block("ours"), Ok(theirs.unwrap()), &[], &counts);
        assert_eq!(one.wrong.len(), key + 1, "an exchange was not found");
    }
    let refused = [Call::Denied(0)];
    one.wrong.clear();
    one.compare(&refused, Ok(Vec::new()), &[], &counts);
    assert_eq!(one.wrong.len(), 1, "a refusal that was not returned was not found");
    assert_eq!(counts.refused.load(Ordering::Relaxed), 1);
}
