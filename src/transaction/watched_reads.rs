//! The reads that a watch sends along with WATCH: the declared reads, and the conditions' reads.
//!
//! Each attempt reads all values anew, and a handle is valid for its own watch only.

use std::any::type_name;
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::{Arg, Cmd, FromRedisValue, Value};

use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::protocol::command::blocking::{Blocking, blocking};
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::refused::{SendContext, is_refused};
use crate::protocol::command::table::{self, is_read_only};
use crate::protocol::server_error::ServerError;
use crate::reply::error::DecodeError;
use crate::reply::queued::handle_traits;
use crate::reply::replies::reply_kind;
use crate::text::opaque_debug;
use crate::transaction::condition::Condition;

/// Number of the next read; it distinguishes the handles of different reads.
static READS: AtomicU64 = AtomicU64::new(1);

/// A handle of a read that was declared on a [`Watch`](crate::Watch), with the type of its value.
///
/// [`Watching::declared`](crate::Watching::declared) returns the value inside the watching scope.
pub struct WatchedRead<T> {
    number: u64,
    index: usize,
    reply: PhantomData<fn() -> T>,
}

handle_traits!(WatchedRead: number, index);

impl<T> fmt::Debug for WatchedRead<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WatchedRead<{}>({})", type_name::<T>(), self.index)
    }
}

/// The reads that a watch sends along with WATCH.
#[derive(Clone, Default)]
pub(crate) struct WatchReads {
    reads: Vec<Read>,
    conditions: usize,
    bytes: Vec<u8>,
    /// Whether one of them may take long.
    has_large: bool,
}

#[derive(Clone)]
enum Read {
    /// A declared read, with the number of its handle.
    WatchedRead(u64, Cow<'static, str>),
    /// The read of a condition, which has this number among the conditions.
    Required(usize, Condition),
}

impl WatchReads {
    pub(crate) fn declare<T>(&mut self, cmd: &Cmd) -> Result<WatchedRead<T>, Error> {
        let small = name_of_small_read(cmd);
        let name = match small {
            Some(name) => Cow::Borrowed(name),
            None => name_of_read(&cmd.get_packed_command())?.into(),
        };
        self.has_large |= small.is_none();
        // Each number stands for one read: a clone of a watch may declare others at the same
        // position.
        let number = READS.fetch_add(1, Ordering::Relaxed);
        self.reads.push(Read::WatchedRead(number, name));
        cmd.write_packed_command(&mut self.bytes);
        Ok(WatchedRead { number, index: self.reads.len() - 1, reply: PhantomData })
    }

    pub(crate) fn require(&mut self, condition: Condition) {
        self.has_large |= !is_small(&args_of(condition.read()));
        self.bytes.extend_from_slice(condition.read());
        self.reads.push(Read::Required(self.conditions, condition));
        self.conditions += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.reads.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether each takes as short a time as those that callers send for each other.
    pub(crate) fn are_small(&self) -> bool {
        !self.has_large
    }

    /// Whether there are conditions.
    pub(crate) fn has_conditions(&self) -> bool {
        self.conditions > 0
    }
}

/// The name of a read of the table that is small. It neither blocks nor changes the connection, whatever its
/// arguments are.
fn name_of_small_read(cmd: &Cmd) -> Option<&'static str> {
    let Some(Arg::Simple(name)) = cmd.args_iter().next() else { return None };
    let command = table::find(name)?;
    (command.is_small() && command.has(table::READ)).then_some(command.name)
}

/// The arguments of one encoded command.
fn args_of(bytes: &[u8]) -> Vec<&[u8]> {
    CommandReader::new(bytes).next().and_then(Result::ok).unwrap_or_default()
}

fn is_small(args: &[&[u8]]) -> bool {
    let command = args.first().and_then(|name| table::find(name));
    command.is_some_and(|command| command.is_small())
}

/// Returns the name of a command that may be sent as a read.
pub(crate) fn name_of_read(bytes: &[u8]) -> Result<String, Error> {
    name_of(&args_of(bytes), not_a_read)
}

/// Why a command is not sent as a read.
fn not_a_read(name: &[u8], sub: Option<&[u8]>) -> Option<&'static str> {
    if is_read_only(name, sub) {
        return None;
    }
    Some(match table::is_server_command(name) {
        true => "a watching scope only reads; queue writes on its transaction",
        false => {
            "it is not known to be a read; if it is one, ask with query_as_read(cmd), else queue \
             it on the transaction"
        }
    })
}

/// Returns the name of a command that the caller declares as a read, unless its name is known to
/// write, block or change the connection.
pub(crate) fn name_of_assumed_read(bytes: &[u8]) -> Result<String, Error> {
    name_of(&args_of(bytes), |name, _| {
        table::is_known_write(name).then_some("it may write; queue it on the scope's transaction")
    })
}

/// Returns the command's name, unless it changes the connection, `writes` or blocks.
fn name_of(
    args: &[&[u8]],
    writes: impl FnOnce(&[u8], Option<&[u8]>) -> Option<&'static str>,
) -> Result<String, Error> {
    let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
    if name.is_empty() {
        let command = "a command without a name".to_owned();
        return Err(Error::Refused { command, hint: "build it with redis::cmd(name)" });
    }
    if is_refused(name, sub, SendContext::Alone) {
        return Err(Error::refused(display_name(name), SendContext::Alone));
    }
    let blocks = blocking(args) != Blocking::No;
    let blocks = blocks.then_some("a watching scope does not block; leave BLOCK out");
    match writes(name, sub).or(blocks) {
        Some(hint) => Err(Error::Refused { command: display_name(name), hint }),
        None => Ok(display_name(name)),
    }
}

/// Replies to the declared reads in one attempt.
#[derive(Default)]
pub(crate) struct ReadReplies {
    reads: Arc<WatchReads>,
    values: Vec<Value>,
}

opaque_debug!(ReadReplies);

impl ReadReplies {
    /// Returns the replies, or the first condition that does not hold.
    pub(crate) fn of(reads: Arc<WatchReads>, values: Vec<Value>) -> Result<Self, Error> {
        for (read, value) in reads.reads.iter().zip(&values) {
            if let Read::Required(index, condition) = read {
                condition.check(*index, value)?;
            }
        }
        Ok(Self { reads, values })
    }

    /// Whether they are replies to the reads of this watch.
    pub(crate) fn are_of(&self, reads: &Arc<WatchReads>) -> bool {
        Arc::ptr_eq(&self.reads, reads)
    }

    /// The replies in the order of the reads.
    pub(crate) fn values(&self) -> &[Value] {
        &self.values
    }

    pub(crate) fn get<T: FromRedisValue>(&self, handle: WatchedRead<T>) -> Result<T, Error> {
        match self.values.get(handle.index).zip(self.reads.reads.get(handle.index)) {
            Some((value, Read::WatchedRead(number, name))) if *number == handle.number => {
                value_of(name, value)
            }
            _ => Err(Error::Refused {
                command: "a read that another watch declared".to_owned(),
                hint: "declare it on this one",
            }),
        }
    }
}

/// Converts the reply to a read into the type that the caller chose.
pub(crate) fn value_of<T: FromRedisValue>(name: &str, value: &Value) -> Result<T, Error> {
    match value {
        Value::ServerError(error) => Err(Error::Command {
            error: ServerError::of_read(name.as_bytes(), error),
            command: name.to_owned(),
        }),
        value => T::from_redis_value_ref(value).map_err(|error| Error::Decode {
            command: name.to_owned(),
            expected: type_name::<T>(),
            found: reply_kind(value),
            applied: Applied::No,
            source: DecodeError::of_value(&error, value),
        }),
    }
}

/// Shows the commands' names, never their arguments.
impl fmt::Debug for WatchReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.reads).finish()
    }
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WatchedRead(_, name) => name.fmt(f),
            Self::Required(index, condition) => f.write_str(&condition.label(*index)),
        }
    }
}
