//! Reads that a watch sends along with WATCH, and the handles that name them.
//!
//! Never: a value of another watch, or of an earlier attempt.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::{Cmd, FromRedisValue, Value};

use crate::error::{Error, ServerError};
use crate::reply;
use crate::wire::command::{self, Blocking, Requests};

/// Numbers the reads, so that a handle of one is not taken for a handle of another.
static READS: AtomicU64 = AtomicU64::new(1);

/// A read that was declared on a [`Watch`](crate::Watch), and the type of its value.
///
/// It is worth its value inside the watching scope: [`Watching::declared`](crate::Watching::declared).
pub struct Declared<T> {
    number: u64,
    index: usize,
    reply: PhantomData<fn() -> T>,
}

impl<T> Clone for Declared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Declared<T> {}

impl<T> fmt::Debug for Declared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Declared<{}>({})", type_name::<T>(), self.index)
    }
}

/// The reads that a watch sends along with WATCH.
#[derive(Clone, Default)]
pub(crate) struct Reads {
    names: Vec<(u64, Arc<str>)>,
    bytes: Vec<u8>,
}

impl Reads {
    pub(crate) fn declare<T>(&mut self, cmd: &Cmd) -> Result<Declared<T>, Error> {
        let bytes = cmd.get_packed_command();
        let name = check(&bytes)?;
        // Of one read each: a clone of a watch may declare others in the same place.
        let number = READS.fetch_add(1, Ordering::Relaxed);
        self.names.push((number, name.into()));
        self.bytes.extend_from_slice(&bytes);
        Ok(Declared { number, index: self.names.len() - 1, reply: PhantomData })
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The name of a command that may be sent as a read.
pub(crate) fn check(bytes: &[u8]) -> Result<String, Error> {
    let Some(Ok(args)) = Requests::new(bytes).next() else {
        return Err(Error::refused("a command without a name".to_owned()));
    };
    let name = args.first().copied().unwrap_or_default();
    let refused = |hint| Err(Error::Refused { command: command::printable(name), hint });
    if !command::is_read_only(name, args.get(1).copied()) {
        return refused("a watching scope only reads; queue writes on its transaction");
    }
    if command::blocking(&args) != Blocking::No {
        return refused("a watching scope does not block; leave BLOCK out");
    }
    Ok(command::printable(name))
}

/// What the declared reads answered in one attempt.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) reads: Reads,
    pub(crate) values: Vec<Value>,
}

impl Answers {
    pub(crate) fn get<T: FromRedisValue>(&self, handle: Declared<T>) -> Result<T, Error> {
        let found = self.values.get(handle.index).zip(self.reads.names.get(handle.index));
        let Some((value, (_, name))) = found.filter(|(_, (number, _))| *number == handle.number)
        else {
            return Err(Error::Refused {
                command: "a read that another watch declared".to_owned(),
                hint: "declare it on this one",
            });
        };
        value_of(name, value)
    }
}

/// A read's answer as the caller wants it.
pub(crate) fn value_of<T: FromRedisValue>(name: &str, value: &Value) -> Result<T, Error> {
    match value {
        Value::ServerError(error) => Err(Error::Command {
            error: ServerError::from_reply(error, command::is_script(name.as_bytes())),
            command: name.to_owned(),
        }),
        value => T::from_redis_value_ref(value).map_err(|_| Error::Decode {
            command: name.to_owned(),
            expected: type_name::<T>(),
            found: reply::kind(value),
        }),
    }
}

/// Shows which commands, never on what.
impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names.iter().map(|(_, name)| name)).finish()
    }
}
