//! The replies of an applied transaction.
//!
//! Never: a reply handed to a handle of another transaction, or to a forgotten command.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use redis::{FromRedisValue, Value};

use crate::protocol::command::display_name::display_name;
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::server_error::ServerError;
use crate::reply::error::{DecodeError, ReplyError};

/// The replies of an applied transaction.
///
/// Cheap to clone. Its `Debug` shows kinds and counts, never values.
#[derive(Clone)]
pub struct Replies {
    inner: Arc<Inner>,
}

struct Inner {
    transaction: u64,
    values: Vec<Value>,
    /// Ascending and disjoint.
    holes: Vec<Hole>,
    failures: Vec<ReplyError>,
    /// All commands failed, and each is one that changes nothing then.
    changed_nothing: bool,
    acks: Option<ReplicaAcks>,
    /// It was applied, and that is all that is known.
    lost: bool,
    /// Of a transaction whose replies are the caller's: the commands' names, each behind its length.
    names: Vec<u8>,
}

/// Identifiers of forgotten commands, half open, and how many are missing up to the end of this.
struct Hole {
    from: u32,
    to: u32,
    missing: u32,
}

impl Replies {
    pub(crate) fn new(
        transaction: u64,
        values: Vec<Value>,
        holes: Vec<(u32, u32)>,
        failures: Vec<ReplyError>,
    ) -> Self {
        let mut missing = 0;
        let number = |(from, to)| {
            missing += to - from;
            Hole { from, to, missing }
        };
        let holes = holes.into_iter().map(number).collect();
        let (changed_nothing, acks, lost, names) = (false, None, false, Vec::new());
        let inner =
            Inner { transaction, values, holes, failures, changed_nothing, acks, lost, names };
        Self { inner: Arc::new(inner) }
    }

    /// Of a transaction that had no command.
    pub(crate) fn none(transaction: u64) -> Self {
        Self::new(transaction, Vec::new(), Vec::new(), Vec::new())
    }

    /// Of a transaction that was applied and whose replies are lost.
    pub(crate) fn lost(transaction: u64) -> Self {
        let mut replies = Self::none(transaction);
        if let Some(inner) = Arc::get_mut(&mut replies.inner) {
            inner.lost = true;
        }
        replies
    }

    pub(crate) fn changing_nothing(mut self, changed_nothing: bool) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.changed_nothing = changed_nothing;
        }
        self
    }

    /// With the commands' names, for a caller who may ask for a reply as a type that it is not of.
    pub(crate) fn named<'n>(mut self, names: impl Iterator<Item = &'n [u8]>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            for name in names {
                // What is longer is no command of the server's.
                let name = name.get(..name.len().min(u8::MAX.into())).unwrap_or_default();
                inner.names.push(name.len() as u8);
                inner.names.extend_from_slice(name);
            }
        }
        self
    }

    fn name(&self, index: usize) -> Option<String> {
        let mut names = self.inner.names.as_slice();
        let mut next = || {
            let (length, rest) = names.split_first()?;
            let (name, rest) = rest.split_at_checked((*length).into())?;
            names = rest;
            Some(name)
        };
        for _ in 0..index {
            next()?;
        }
        next().map(display_name)
    }

    pub(crate) fn acknowledged_by(mut self, acks: Option<ReplicaAcks>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.acks = acks;
        }
        self
    }

    /// Who has the transaction, as WAIT or WAITAOF counted them. `None` where nobody asked:
    /// [`wait_replicas`](crate::TransactionOptions::wait_replicas),
    /// [`wait_aof`](crate::TransactionOptions::wait_aof).
    pub fn acknowledged(&self) -> Option<ReplicaAcks> {
        self.inner.acks
    }

    /// Reads the reply of the command at `index`, from 0 in the order in which the commands were sent.
    /// Commands of a forgotten part are not counted: they were not sent.
    ///
    /// For a caller who has no handle: after a failed [`run`](crate::Transactional::run), whose handles
    /// are gone with its closure, and beside the index of
    /// [`ReplyError::Failed`](crate::ReplyError::Failed).
    ///
    /// ```no_run
    /// # use rediscope::{CommitError, Error, SessionManager, prelude::*};
    /// # fn main() -> Result<(), Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let told = accounts.run(|tx| Ok((tx.incr("hits", 1), tx.lpush("log", "hit"))));
    /// if let Err(Error::Commit(error)) = &told
    ///     && let CommitError::PartlyApplied { replies, .. } = &**error
    /// {
    ///     let hits: i64 = replies.at(0)?;
    ///     println!("{error:#}; but the {hits}th hit was counted");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get); [`ReplyError::OutOfRange`] where there was no such command.
    pub fn at<T: FromRedisValue>(&self, index: usize) -> Result<T, ReplyError> {
        if self.inner.lost {
            return Err(ReplyError::Lost);
        }
        let value = self.inner.values.get(index);
        let commands = self.len();
        self.read(index, value.ok_or(ReplyError::OutOfRange { index, commands })?)
    }

    pub(crate) fn transaction(&self) -> u64 {
        self.inner.transaction
    }

    /// How many commands were applied, the failed ones included.
    pub fn len(&self) -> usize {
        self.inner.values.len()
    }

    /// Whether the transaction had no command.
    pub fn is_empty(&self) -> bool {
        self.inner.values.is_empty()
    }

    /// How many of them failed. Above 0 only in
    /// [`PartlyApplied`](crate::CommitError::PartlyApplied) and
    /// [`NotIsolated`](crate::CommitError::NotIsolated).
    pub fn failures(&self) -> usize {
        self.inner.failures.len()
    }

    /// The commands that failed, as [`ReplyError::Failed`].
    pub fn errors(&self) -> impl Iterator<Item = ReplyError> + '_ {
        self.inner.failures.iter().cloned()
    }

    /// The first command that failed.
    pub(crate) fn first_error(&self) -> Option<&ReplyError> {
        self.inner.failures.first()
    }

    /// Whether there were commands, and each failed and changed nothing by that.
    pub(crate) fn changed_nothing(&self) -> bool {
        self.inner.changed_nothing
    }

    /// What the server said of the first command that failed.
    pub(crate) fn first_failure(&self) -> Option<&ServerError> {
        match self.first_error()? {
            ReplyError::Failed { error, .. } => Some(error),
            _ => None,
        }
    }

    /// One reply as the type that is asked for.
    pub(crate) fn read<T: FromRedisValue>(
        &self,
        index: usize,
        value: &Value,
    ) -> Result<T, ReplyError> {
        if let Value::ServerError(_) = value {
            let is_this = |failure: &&ReplyError| matches!(failure, ReplyError::Failed { index: at, .. } if *at == index);
            let failed = self.inner.failures.iter().find(is_this);
            return Err(failed.cloned().unwrap_or(ReplyError::Forgotten));
        }
        T::from_redis_value_ref(value).map_err(|error| ReplyError::Unexpected {
            index,
            command: self.name(index).unwrap_or_else(|| "the command".to_owned()),
            expected: type_name::<T>(),
            found: reply_kind(value),
            source: DecodeError::of(&error.to_string()),
        })
    }

    pub(crate) fn value(&self, id: u32) -> Result<(usize, &Value), ReplyError> {
        if self.inner.lost {
            return Err(ReplyError::Lost);
        }
        let before = self.inner.holes.partition_point(|hole| hole.from <= id);
        let hole = before.checked_sub(1).and_then(|last| self.inner.holes.get(last));
        let index = match hole {
            Some(hole) if id < hole.to => return Err(ReplyError::Forgotten),
            Some(hole) => id - hole.missing,
            None => id,
        };
        let index = index as usize;
        // An identifier past the end was given out after the commit's bytes were fixed.
        self.inner.values.get(index).map(|value| (index, value)).ok_or(ReplyError::Forgotten)
    }
}

impl fmt::Debug for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replies")
            .field("transaction", &self.inner.transaction)
            .field("len", &self.len())
            .field("failures", &self.inner.failures)
            .finish_non_exhaustive()
    }
}

/// The kind of a reply, for messages that must not show the reply itself.
pub(crate) fn reply_kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nil",
        Value::Int(_) => "an integer",
        Value::BulkString(_) => "a bulk string",
        Value::Array(_) => "an array",
        Value::SimpleString(_) | Value::Okay => "a simple string",
        Value::Map(_) => "a map",
        Value::Set(_) => "a set",
        Value::Double(_) => "a double",
        Value::Boolean(_) => "a boolean",
        Value::VerbatimString { .. } => "a verbatim string",
        Value::Push { .. } => "a push",
        Value::ServerError(_) => "an error",
        _ => "a reply of another kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::queued::{Queued, Ready};

    fn replies(values: Vec<Value>, holes: Vec<(u32, u32)>) -> Replies {
        Replies::new(1, values, holes, Vec::new())
    }

    #[test]
    fn identifiers_skip_forgotten_commands() {
        let replies =
            replies(vec![Value::Int(10), Value::Int(11), Value::Int(12)], vec![(1, 3), (4, 5)]);
        let get = |id| replies.get(Queued::<i64>::new(1, id));
        assert_eq!(get(0), Ok(10));
        assert_eq!(get(1), Err(ReplyError::Forgotten));
        assert_eq!(get(2), Err(ReplyError::Forgotten));
        assert_eq!(get(3), Ok(11));
        assert_eq!(get(4), Err(ReplyError::Forgotten));
        assert_eq!(get(5), Ok(12));
    }

    #[test]
    fn handles_resolve_in_every_shape() {
        let replies = replies(vec![Value::Int(1), Value::Int(2)], vec![]);
        let (a, b) = (Queued::<i64>::new(1, 0), Queued::<String>::new(1, 1));
        assert_eq!(replies.get((a, b, Ready("x"), ())), Ok((1, "2".into(), "x", ())));
        assert_eq!(replies.get([a, a]), Ok([1, 1]));
        assert_eq!(replies.get(vec![a]), Ok(vec![1]));
        assert_eq!(replies.get(None::<Queued<i64>>), Ok(None));
        assert_eq!(replies.get(Queued::<i64>::new(2, 0)), Err(ReplyError::Foreign));
        assert!(matches!(
            replies.get(a.cast::<Vec<(String, String)>>()),
            Err(ReplyError::Unexpected { index: 0, found: "an integer", .. })
        ));
    }
}
