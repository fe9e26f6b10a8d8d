//! One caller of the soaks of random blocks: its keys, what they hold by the model, and what has differed.

use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use redis::Value;
use rediscope::prelude::*;
use rediscope::{CommitError, Error};

use super::block_model::{Call, KEYS, Model, Reply};

/// Maximum number of commands of a block.
const MOST_CALLS: usize = 8;
/// One block in so many has a command that is refused.
const REFUSED: u16 = 100;
/// The user of the soak, who may not call PERSIST.
pub(crate) const USER: (&str, &str) = ("soak", "secret");

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) applied: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) resolved: AtomicU64,
}

pub(crate) fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn code(code: Option<&str>, error: &dyn std::fmt::Display) -> String {
    code.map_or_else(|| error.to_string(), str::to_owned)
}

/// Keys whose last block was dropped: it is applied whole or not at all.
pub(crate) struct Abandoned {
    keys: [String; KEYS],
    before: Model,
    after: Model,
}

/// The keys of one worker, and what they hold.
pub(crate) struct Worker {
    pub(crate) nth: u64,
    pub(crate) keys: [String; KEYS],
    pub(crate) model: Model,
    /// Number of values so far.
    pub(crate) values: u64,
    pub(crate) abandoned: Vec<Abandoned>,
    /// The first differences.
    pub(crate) wrong: Vec<String>,
}

fn keys(nth: u64, generation: usize) -> [String; KEYS] {
    std::array::from_fn(|key| format!("key:{nth}:{generation}:{key}"))
}

impl Worker {
    pub(crate) fn new(nth: u64) -> Self {
        let (keys, model) = (keys(nth, 0), Model::default());
        Self { nth, keys, model, values: 0, abandoned: Vec::new(), wrong: Vec::new() }
    }

    pub(crate) fn block(&mut self, rng: &mut Rng) -> Vec<Call> {
        let (nth, values) = (self.nth, &mut self.values);
        let mut any = || {
            Call::any(rng, || {
                *values += 1;
                format!("w{nth}.{values};")
            })
        };
        let mut block: Vec<_> = (0..MOST_CALLS).map(|_| any()).collect();
        block.truncate(rng.usize(1..=MOST_CALLS));
        if rng.u16(..REFUSED) == 0 {
            let at = rng.usize(..=block.len());
            block.insert(at, Call::Denied(rng.usize(..KEYS)));
        }
        block
    }

    /// Compares the end of a block with the model, which is changed if the block was applied.
    pub(crate) fn compare(
        &mut self,
        block: &[Call],
        end: Result<Vec<Value>, Error>,
        handles: &[Queued<Value>],
        counts: &Counts,
    ) {
        if let Some(at) = block.iter().position(|call| matches!(call, Call::Denied(_))) {
            add(&counts.refused);
            return match end {
                Err(Error::Commit(CommitError::Rejected { index, command, code, .. }))
                    if (index, command.as_str(), code.as_str())
                        == (Some(at), "PERSIST", "NOPERM") => {}
                end => self.differs(block, &format!("refused at {at}"), &end),
            };
        }
        let expected = self.model.apply(block);
        let failed = expected.iter().any(Result::is_err);
        add(if failed { &counts.failed } else { &counts.applied });
        let found: Option<Vec<Reply>> = match &end {
            Ok(values) => Some(values.iter().cloned().map(Ok).collect()),
            Err(error) => error.replies().map(|replies| {
                let of = |handle: &Queued<Value>| {
                    replies.get(*handle).map_err(|error| code(error.code(), &error))
                };
                handles.iter().map(of).collect()
            }),
        };
        if found.as_ref() != Some(&expected) || failed != end.is_err() {
            self.differs(block, &expected, &end);
        }
    }

    pub(crate) fn differs(
        &mut self,
        block: &[Call],
        expected: &dyn std::fmt::Debug,
        end: &dyn std::fmt::Debug,
    ) {
        self.wrong.push(format!("{block:?}: expected {expected:?}, found {end:?}"));
    }

    /// The block may be applied later, so the worker goes on with other keys.
    pub(crate) fn abandon(&mut self, block: &[Call]) {
        let before = std::mem::take(&mut self.model);
        let mut after = before.clone();
        if !block.iter().any(|call| matches!(call, Call::Denied(_))) {
            after.apply(block);
        }
        let next = keys(self.nth, self.abandoned.len() + 1);
        let keys = std::mem::replace(&mut self.keys, next);
        self.abandoned.push(Abandoned { keys, before, after });
    }

    /// Compares the keys with the server after all is over. Returns the number of abandoned blocks that were applied.
    pub(crate) fn audit(&mut self, db: &mut redis::Connection) -> usize {
        if !self.model.is_on(&self.keys, db) {
            self.wrong.push(format!("{:?} do not hold {:?}", self.keys, self.model));
        }
        let mut applied = 0;
        for Abandoned { keys, before, after } in &self.abandoned {
            if after != before && after.is_on(keys, db) {
                applied += 1;
            } else if !before.is_on(keys, db) {
                self.wrong.push(format!("{keys:?} hold neither {before:?} nor {after:?}"));
            }
        }
        applied
    }
}
