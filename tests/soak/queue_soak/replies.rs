//! Random blocks of many callers on few connections, compared with a model: each reply and each declared read is the caller's
//! own, and each block is applied whole or not at all.
//!
//! Some are merged, some watch and read a key of their own, some watch a hot key that another process writes too. Some have a
//! command that the server refuses when it is queued, or one that fails at run time, and some give up after a time so
//! short that they are withdrawn at any point.
//!
//! `REDISCOPE_QUEUE_MODEL` is the number of blocks.
//!
//! Guarantee: committed, grouped, pools

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use redis::Value;
use rediscope::error::{Applied, Resolution};
use rediscope::prelude::*;
use rediscope::redis::cmd;
use rediscope::{Block, CommitError, Error, TransactionOptions};
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

use super::block_model::Call;
use super::side::{BuildSide, SessionManager};
use super::worker::{Counts, USER, Worker, add};
use crate::SOON;

const WORKERS: u64 = 64;
const HOT_KEYS: usize = 2;
/// One block in so many gives up after a short time.
const SHORT: u8 = 16;
/// What a write of another process adds to a hot key.
const FOREIGN: u64 = 1_000_000;

#[derive(Clone, Copy, Debug)]
enum Form {
    Run,
    Grouped,
    Watch,
    Hot(usize),
}

/// Number of blocks on a hot key that were applied, and that may have been.
#[derive(Clone, Copy, Default)]
struct OnHot {
    applied: u64,
    unknown: u64,
}

/// A caller, and a key of its own that holds the name of its last block.
struct Caller {
    worker: Worker,
    mark: Option<String>,
    hot: [OnHot; HOT_KEYS],
    withdrawn: u64,
}

impl Caller {
    fn new(nth: u64) -> Self {
        let hot = [OnHot::default(); HOT_KEYS];
        Self { worker: Worker::new(nth), mark: None, hot, withdrawn: 0 }
    }

    fn mark_key(&self) -> String {
        format!("{}:mark", self.worker.keys[0])
    }

    fn step(&mut self, sessions: &SessionManager, rng: &mut Rng, counts: &Counts) {
        let mut block = self.worker.block(rng);
        let form = match rng.u8(..8) {
            0..2 => Form::Run,
            2..4 => Form::Grouped,
            4..6 => Form::Watch,
            _ => Form::Hot(rng.usize(..HOT_KEYS)),
        };
        if matches!(form, Form::Hot(_)) {
            block.retain(|call| !matches!(call, Call::Denied(_)));
        }
        let short = (rng.u8(..SHORT) == 0).then(|| Duration::from_micros(rng.u64(..4_000)));
        let options = TransactionOptions::new();
        let options = if rng.bool() { options.exactly_once() } else { options };
        let options = if matches!(form, Form::Grouped) { options.grouped() } else { options };
        let options = short.map_or(options.clone(), |short| options.within(short));
        let (mut handles, next) = (Vec::new(), format!("{}.{}", self.worker.nth, rng.u64(..)));
        let end = self.run(sessions, form, options, (&block, &next), &mut handles);
        self.ended(sessions, form, (&block, next), (end, &handles, short.is_some()), counts);
    }

    fn run(
        &mut self,
        sessions: &SessionManager,
        form: Form,
        options: TransactionOptions,
        (block, next): (&[Call], &str),
        handles: &mut Vec<Queued<Value>>,
    ) -> Result<Vec<Value>, Error> {
        let accounts = sessions.transactional().with(options);
        let (keys, mark) = (self.worker.keys.clone(), self.mark_key());
        let mut queue = |tx: &mut Block| {
            *handles = block.iter().map(|call| call.queue(tx, &keys)).collect();
            tx.set(&mark, next);
            handles.clone()
        };
        let watched = match form {
            Form::Run | Form::Grouped => return accounts.run(|tx| Ok(queue(tx))),
            Form::Watch => mark.clone(),
            Form::Hot(hot) => format!("hot:{hot}"),
        };
        let mut watch = accounts.watch([&watched]);
        let read = watch.declare::<Option<String>>(cmd("GET").arg(&watched).to_owned())?;
        let (expected, mut differs) = (&self.mark, None);
        let end = watch.run(|reads, tx| {
            let found: Option<String> = reads.declared(read)?;
            match form {
                Form::Hot(_) => {
                    let number = found.as_deref().unwrap_or("0").parse::<u64>();
                    match number {
                        Ok(number) => _ = tx.set(&watched, number + 1),
                        Err(_) => differs = Some(found),
                    }
                }
                _ if found != *expected => differs = Some(found),
                _ => {}
            }
            Ok(queue(tx))
        });
        if let Some(found) = differs {
            let expected = self.mark.clone();
            self.worker.differs(block, &(form, expected), &found);
        }
        end
    }

    fn ended(
        &mut self,
        sessions: &SessionManager,
        form: Form,
        (block, next): (&[Call], String),
        (end, handles, is_short): (Result<Vec<Value>, Error>, &[Queued<Value>], bool),
        counts: &Counts,
    ) {
        let is_withdrawn = |error: &Error| {
            is_short
                && error.applied() == Applied::No
                && !matches!(error, Error::Commit(CommitError::Rejected { .. }))
        };
        match end {
            Err(error) if is_withdrawn(&error) => return self.withdrawn += 1,
            Err(Error::Commit(CommitError::InDoubt(doubt))) if is_short => {
                let Some(token) = doubt.token() else {
                    add(&counts.dropped);
                    self.worker.abandon(block);
                    self.mark = None;
                    if let Form::Hot(hot) = form {
                        self.hot[hot].unknown += 1;
                    }
                    return;
                };
                add(&counts.resolved);
                match sessions.resolve(token, SOON) {
                    Resolution::Committed => _ = self.worker.model.apply(block),
                    Resolution::NotCommitted => return,
                    other => return self.worker.differs(block, &"a resolution", &other),
                }
            }
            end => {
                // The replies of a block whose outcome was resolved are lost.
                let is_refused = block.iter().any(|call| matches!(call, Call::Denied(_)));
                self.worker.compare(block, end, handles, counts);
                if is_refused {
                    return;
                }
            }
        }
        self.mark = Some(next);
        if let Form::Hot(hot) = form {
            self.hot[hot].applied += 1;
        }
    }
}

#[test]
fn each_reply_is_of_its_own_caller_and_no_block_is_applied_in_part() {
    rediscope_testing::own_process!(alone);
    let mut rng = Rng::with_seed(rediscope_testing::soak::seed());
    let blocks = rediscope_testing::soak::number("REDISCOPE_QUEUE_MODEL").unwrap_or(30_000);
    let server = Server::start();
    let (user, password) = USER;
    server.acl(&["SETUSER", user, "on", &format!(">{password}"), "~*", "&*", "+@all", "-persist"]);
    let sessions = rediscope::SessionManager::builder(server.url_as(user, password))
        .max_size(8)
        .checkout_timeout(SOON)
        .build_side()
        .unwrap();
    let (counts, is_over) = (Counts::default(), AtomicBool::new(false));
    let mut callers = Vec::new();
    let foreign = thread::scope(|scope| {
        let spawn = |nth| {
            let (sessions, counts, mut rng) = (&sessions, &counts, rng.fork());
            scope.spawn(move || {
                let mut caller = Caller::new(nth);
                (0..blocks.div_ceil(WORKERS)).for_each(|_| caller.step(sessions, &mut rng, counts));
                caller
            })
        };
        let workers: Vec<_> = (0..WORKERS).map(spawn).collect();
        let foreign = scope.spawn(|| {
            let (mut db, mut writes) = (server.connection(), 0_u64);
            while !is_over.load(Ordering::Relaxed) {
                let hot = format!("hot:{}", writes % HOT_KEYS as u64);
                let _: u64 = cmd("INCRBY").arg(hot).arg(FOREIGN).query(&mut db).unwrap();
                writes += 1;
                thread::sleep(Duration::from_millis(2));
            }
            writes
        });
        callers.extend(workers.into_iter().map(|worker| worker.join().unwrap()));
        is_over.store(true, Ordering::Relaxed);
        foreign.join().unwrap()
    });
    let retries = sessions.status().transactional.counts.retries;
    sessions.close(SOON);
    eventually(SOON, "no connection is left", || server.clients() == 0);
    let mut db = server.connection();
    let mut wrong: Vec<String> = Vec::new();
    for hot in 0..HOT_KEYS {
        let of = |count: fn(&OnHot) -> u64| {
            callers.iter().map(|caller| count(&caller.hot[hot])).sum::<u64>()
        };
        let (applied, unknown) = (of(|hot| hot.applied), of(|hot| hot.unknown));
        let found: Option<u64> = cmd("GET").arg(format!("hot:{hot}")).query(&mut db).unwrap();
        let found = found.unwrap_or(0) % FOREIGN;
        if !(applied..=applied + unknown).contains(&found) {
            wrong.push(format!("hot:{hot} holds {found}, {applied} applied, {unknown} unknown"));
        }
    }
    let late: usize = callers.iter_mut().map(|caller| caller.worker.audit(&mut db)).sum();
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "{blocks} blocks: {} applied, {} with a failed command, {} refused, {} withdrawn, {} resolved, {} unknown ({late} of \
         them applied); {retries} attempts more, {foreign} writes of another process",
        of(&counts.applied),
        of(&counts.failed),
        of(&counts.refused),
        callers.iter().map(|caller| caller.withdrawn).sum::<u64>(),
        of(&counts.resolved),
        of(&counts.dropped),
    );
    wrong.extend(callers.into_iter().flat_map(|caller| caller.worker.wrong));
    let some: Vec<_> = wrong.iter().take(5).collect();
    assert!(wrong.is_empty(), "{} wrong, for example {some:#?}", wrong.len());
    assert!(of(&counts.applied) > 0 && of(&counts.refused) > 0, "a kind is missing");
}
