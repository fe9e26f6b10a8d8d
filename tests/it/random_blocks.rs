//! Blocks of random commands, and what their outcomes must be.

use std::collections::BTreeMap;

use fastrand::Rng;
use rediscope::prelude::*;
use rediscope::redis::Value;
use rediscope::{Block, CommitError, Error, Queued};
use rediscope_testing::server::Server;

pub(crate) fn server_with_user() -> Server {
    let server = Server::start();
    // It may use the keys of these tests, but for `closed`.
    let user = ["ACL", "SETUSER", "caller", "on", ">secret", "~open:*", "~rediscope:*", "+@all"];
    let _: () = server.ask(&user);
    server
}

/// One command of a random block.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Incr(String),
    Push(String, u64),
    /// INCR of a list: it fails at run time.
    Fails,
    /// A key that the user may not use: refused while it is queued.
    Forbidden,
    /// SADD without a member: refused while it is queued.
    WrongArity,
    Read(String),
}

impl Step {
    pub(crate) fn random(rng: &mut Rng, caller: u64, allows_refusal: bool) -> Self {
        let key = format!("open:{}", rng.u8(..4));
        let own = format!("open:own:{caller}");
        match rng.u8(..if allows_refusal { 20 } else { 18 }) {
            0..8 => Self::Incr(key),
            8..12 => Self::Push(own, rng.u64(..)),
            12..14 => Self::Fails,
            14..18 => Self::Read(key),
            18 => Self::Forbidden,
            _ => Self::WrongArity,
        }
    }

    fn is_refused(&self) -> bool {
        matches!(self, Self::Forbidden | Self::WrongArity)
    }

    pub(crate) fn queue(&self, tx: &mut Block) -> Queued<Value> {
        match self {
            Self::Incr(key) => tx.incr(key, 1).cast(),
            Self::Push(key, value) => tx.rpush(key, *value).cast(),
            Self::Fails => tx.incr("open:list", 1).cast(),
            Self::Forbidden => tx.incr("closed", 1).cast(),
            Self::WrongArity => tx.sadd("open:set", &[] as &[&str]).cast(),
            Self::Read(key) => tx.get(key),
        }
    }
}

/// The sums that the outcomes add up to.
#[derive(Default)]
pub(crate) struct Sums {
    counters: BTreeMap<String, i64>,
    lists: BTreeMap<String, Vec<u64>>,
}

impl Sums {
    pub(crate) fn add(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Incr(key) => *self.counters.entry(key.clone()).or_default() += 1,
                Step::Push(key, value) => self.lists.entry(key.clone()).or_default().push(*value),
                _ => {}
            }
        }
    }

    #[track_caller]
    pub(crate) fn assert_held_by(&self, server: &Server) {
        for (key, sum) in &self.counters {
            let found: Option<i64> = server.ask(&["GET", key]);
            assert_eq!(found.unwrap_or_default(), *sum, "{key}");
        }
        for (key, values) in &self.lists {
            let found: Vec<u64> = server.ask(&["LRANGE", key, "0", "-1"]);
            assert_eq!(&found, values, "{key}");
        }
    }
}

/// Checks the outcome of a block against its commands. Returns whether it was applied.
pub(crate) fn check(steps: &[Step], outcome: &Result<Vec<Value>, Error>) -> bool {
    let refused = steps.iter().position(Step::is_refused);
    let fails = steps.iter().any(|step| matches!(step, Step::Fails));
    match outcome {
        Ok(values) => {
            assert!(refused.is_none() && !fails, "{steps:?}: {values:?}");
            check_replies(steps, values);
            true
        }
        Err(Error::Commit(CommitError::Rejected { index, code, .. })) => {
            assert_eq!(*index, refused, "{steps:?}");
            let expected = match &steps[refused.unwrap()] {
                Step::Forbidden => "NOPERM",
                _ => "ERR",
            };
            assert_eq!(code, expected);
            false
        }
        Err(Error::Commit(CommitError::PartlyApplied { replies, .. })) => {
            assert!(refused.is_none() && fails, "{steps:?}");
            assert_eq!(replies.len(), steps.len());
            true
        }
        Err(error) => panic!("{steps:?}: {error:#}"),
    }
}

/// Each reply has the type of its own command.
fn check_replies(steps: &[Step], values: &[Value]) {
    assert_eq!(steps.len(), values.len());
    for (step, value) in steps.iter().zip(values) {
        let fits = match step {
            Step::Incr(_) | Step::Push(..) => matches!(value, Value::Int(n) if *n > 0),
            Step::Read(_) => matches!(value, Value::BulkString(_) | Value::Nil),
            Step::Fails | Step::Forbidden | Step::WrongArity => false,
        };
        assert!(fits, "{step:?}: {value:?}");
    }
}
