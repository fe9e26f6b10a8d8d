//! The replies of an applied transaction.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use redis::{FromRedisValue, Value};

use crate::protocol::command::display_name::display_name;
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::resp::reply::is_too_large;
use crate::protocol::server_error::ServerError;
use crate::reply::error::{DecodeError, ReplyError};

/// The replies of an applied transaction.
///
/// It is cheap to clone. Its `Debug` shows kinds and counts, never values.
#[derive(Clone)]
pub struct Replies {
    inner: Arc<Inner>,
}

#[derive(Clone, Default)]
struct Inner {
    transaction: u64,
    values: Vec<Value>,
    /// Ascending and disjoint.
    dropped: Vec<DroppedIds>,
    failures: Vec<ReplyError>,
    /// All commands failed, each without an effect.
    changed_nothing: bool,
    /// The key of `exactly_once_as` was written with them.
    kept_key: bool,
    acks: Option<ReplicaAcks>,
    /// The transaction was applied; its replies are not known.
    lost: bool,
    /// The commands' names, each after its length, if the caller reads the replies itself.
    names: Vec<u8>,
}

/// Identifiers of forgotten commands, half open, and how many there are up to the end of these.
#[derive(Clone)]
struct DroppedIds {
    from: u32,
    to: u32,
    missing: u32,
}

impl Replies {
    pub(crate) fn new(
        transaction: u64,
        values: Vec<Value>,
        dropped: Vec<(u32, u32)>,
        failures: Vec<ReplyError>,
    ) -> Self {
        let mut missing = 0;
        let number = |(from, to)| {
            missing += to - from;
            DroppedIds { from, to, missing }
        };
        let dropped = dropped.into_iter().map(number).collect();
        let inner = Inner { transaction, values, dropped, failures, ..Inner::default() };
        Self { inner: Arc::new(inner) }
    }

    fn change(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.inner));
        self
    }

    /// The replies of a transaction without a command.
    pub(crate) fn none(transaction: u64) -> Self {
        Self::new(transaction, Vec::new(), Vec::new(), Vec::new())
    }

    /// Returns the values; `None`: they are lost.
    pub(crate) fn into_values(self) -> Option<Vec<Value>> {
        // An error that is logged later may have them too.
        let inner = Arc::unwrap_or_clone(self.inner);
        (!inner.lost).then_some(inner.values)
    }

    /// The replies of a transaction that was applied and whose replies are lost.
    pub(crate) fn lost(transaction: u64) -> Self {
        Self::none(transaction).change(|inner| inner.lost = true)
    }

    pub(crate) fn with_no_effect(self, changed_nothing: bool) -> Self {
        self.change(|inner| inner.changed_nothing = changed_nothing)
    }

    pub(crate) fn with_kept_key(self, kept_key: bool) -> Self {
        self.change(|inner| inner.kept_key = kept_key)
    }

    /// Adds the commands' names, for errors about a reply's type.
    pub(crate) fn with_names<'n>(self, names: impl Iterator<Item = &'n [u8]>) -> Self {
        self.change(|inner| {
            for name in names {
                // No command of the server has a longer name.
                let name = name.get(..name.len().min(u8::MAX.into())).unwrap_or_default();
                inner.names.push(name.len() as u8);
                inner.names.extend_from_slice(name);
            }
        })
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

    pub(crate) fn with_acks(self, acks: Option<ReplicaAcks>) -> Self {
        self.change(|inner| inner.acks = acks)
    }

    /// Returns the number of servers that have the transaction, as WAIT or WAITAOF counted them.
    /// `None` unless [`wait_replicas`](crate::TransactionOptions::wait_replicas) or
    /// [`wait_aof`](crate::TransactionOptions::wait_aof) was set.
    pub fn acknowledged(&self) -> Option<ReplicaAcks> {
        self.inner.acks
    }

    /// The reply of the command at `index`.
    pub(crate) fn value_at(&self, index: usize) -> Result<&Value, ReplyError> {
        if self.inner.lost {
            return Err(ReplyError::Lost);
        }
        let commands = self.len();
        self.inner.values.get(index).ok_or(ReplyError::OutOfRange { index, commands })
    }

    pub(crate) fn transaction(&self) -> u64 {
        self.inner.transaction
    }

    /// Number of applied commands, the failed ones included.
    pub fn len(&self) -> usize {
        self.inner.values.len()
    }

    /// Whether the transaction had no command.
    pub fn is_empty(&self) -> bool {
        self.inner.values.is_empty()
    }

    /// Number of failed commands. Above 0 only in
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

    /// Whether there were commands, all failed without an effect, and no key was kept.
    pub(crate) fn changed_nothing(&self) -> bool {
        self.inner.changed_nothing && !self.inner.kept_key
    }

    /// Whether there were commands, all failed without an effect, and the key was kept.
    pub(crate) fn changed_only_key(&self) -> bool {
        self.inner.changed_nothing && self.inner.kept_key
    }

    /// The server's error for the first command that failed.
    pub(crate) fn first_failure(&self) -> Option<&ServerError> {
        match self.first_error()? {
            ReplyError::Failed { error, .. } => Some(error),
            _ => None,
        }
    }

    /// Reads one reply as the requested type.
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
        if is_too_large(value) {
            return Err(ReplyError::Lost);
        }
        T::from_redis_value_ref(value).map_err(|error| ReplyError::Unexpected {
            index,
            command: self.name(index).unwrap_or_else(|| "the command".to_owned()),
            expected: type_name::<T>(),
            found: reply_kind(value),
            source: DecodeError::of_value(&error, value),
        })
    }

    pub(crate) fn value(&self, id: u32) -> Result<(usize, &Value), ReplyError> {
        if self.inner.lost {
            return Err(ReplyError::Lost);
        }
        let before = self.inner.dropped.partition_point(|range| range.from <= id);
        let range = before.checked_sub(1).and_then(|last| self.inner.dropped.get(last));
        let index = match range {
            Some(range) if id < range.to => return Err(ReplyError::Forgotten),
            Some(range) => id - range.missing,
            None => id,
        };
        let index = index as usize;
        // An identifier past the end was given out after the commit's bytes were complete.
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

/// The kind of a reply, for messages that must not show the reply.
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

    fn replies(values: Vec<Value>, dropped: Vec<(u32, u32)>) -> Replies {
        Replies::new(1, values, dropped, Vec::new())
    }

    #[test]
    fn identifiers_skip_forgotten_commands() {
        let replies =
            replies(vec![Value::Int(10), Value::Int(11), Value::Int(12)], vec![(1, 3), (4, 5)]);
        let get = |id| replies.get(Queued::<i64>::new(1, id));
        assert_eq!(get(0).unwrap(), 10);
        assert_eq!(get(1).unwrap_err().as_reply(), Some(&ReplyError::Forgotten));
        assert_eq!(get(2).unwrap_err().as_reply(), Some(&ReplyError::Forgotten));
        assert_eq!(get(3).unwrap(), 11);
        assert_eq!(get(4).unwrap_err().as_reply(), Some(&ReplyError::Forgotten));
        assert_eq!(get(5).unwrap(), 12);
    }

    #[test]
    fn handles_resolve_in_every_shape() {
        let replies = replies(vec![Value::Int(1), Value::Int(2)], vec![]);
        let (a, b) = (Queued::<i64>::new(1, 0), Queued::<String>::new(1, 1));
        assert_eq!(replies.get((a, b, Ready("x"), ())).unwrap(), (1, "2".into(), "x", ()));
        assert_eq!(replies.get([a, a]).unwrap(), [1, 1]);
        assert_eq!(replies.get(vec![a]).unwrap(), vec![1]);
        assert_eq!(replies.get(None::<Queued<i64>>).unwrap(), None);
        assert_eq!(
            replies.get(Queued::<i64>::new(2, 0)).unwrap_err().as_reply(),
            Some(&ReplyError::Foreign)
        );
        assert!(matches!(
            replies.get(a.cast::<Vec<(String, String)>>()),
            Err(crate::error::any::Error::Reply(ReplyError::Unexpected {
                index: 0,
                found: "an integer",
                ..
            }))
        ));
    }
}
