//! What travels together in one write: blocks, each its own MULTI…EXEC, and single reads.
//!
//! Never: one's reply in another one's. Never: an order other than that of the queue.

use crate::protocol::connection_state::Expect;

/// What whoever has a link may send along with his own.
pub(crate) struct BatchRequest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) what: RequestKind,
}

/// What a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// From MULTI to EXEC, with so many commands in between.
    Block { commands: u32 },
    /// One command that changes nothing.
    Read,
    /// So many commands that may all be sent again.
    Calls { count: u32 },
}

/// With fewer commands, callers who give way before they sleep gain little, and the longest waits
/// grow by as much as half (decision 86).
const LONG: u32 = 6;

impl RequestKind {
    /// Whether its caller does well to let other threads run before he sleeps.
    pub(crate) fn is_long(self) -> bool {
        matches!(self, Self::Block { commands } if commands >= LONG)
    }

    /// The replies it will have.
    pub(crate) fn expected(self) -> [(Expect, u32); 3] {
        match self {
            Self::Block { commands } => {
                [(Expect::Multi, 1), (Expect::Queued, commands), (Expect::Exec, 1)]
            }
            Self::Read => [(Expect::Plain, 1), (Expect::Queued, 0), (Expect::Exec, 0)],
            Self::Calls { count } => {
                [(Expect::Plain, count), (Expect::Queued, 0), (Expect::Exec, 0)]
            }
        }
    }
}

/// Shows how much, never what.
impl std::fmt::Debug for BatchRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("what", &self.what).finish_non_exhaustive()
    }
}

/// The most commands and bytes of a block that joins a group: what it adds to the others' wait.
const MAX_IN_BATCH: (u32, usize) = (64, 8 * 1024);

/// Whether a block is small enough to join a group.
pub(crate) fn fits_in_batch(commands: u32, bytes: usize) -> bool {
    commands <= MAX_IN_BATCH.0 && bytes <= MAX_IN_BATCH.1
}

/// Whether a read may travel with others: it is one command, and its reply one value.
pub(crate) fn is_batchable_read(name: &str) -> bool {
    matches!(
        name,
        "EXISTS"
            | "GET"
            | "GETBIT"
            | "HEXISTS"
            | "HGET"
            | "HLEN"
            | "HSTRLEN"
            | "LLEN"
            | "PTTL"
            | "SCARD"
            | "SISMEMBER"
            | "STRLEN"
            | "TTL"
            | "TYPE"
            | "XLEN"
            | "ZCARD"
            | "ZRANK"
            | "ZSCORE"
    )
}

/// Whether a command of the table may join a group: its work is constant or logarithmic in the
/// size of its key, and its reply is one value or less.
pub(crate) const fn is_batchable(words: &[&str]) -> bool {
    let [word] = words else { return false };
    matches!(
        word.as_bytes(),
        b"APPEND"
            | b"DECRBY"
            | b"DEL"
            | b"EXISTS"
            | b"EXPIRE"
            | b"EXPIREAT"
            | b"GET"
            | b"GETBIT"
            | b"GETDEL"
            | b"GETEX"
            | b"GETSET"
            | b"HDEL"
            | b"HEXISTS"
            | b"HGET"
            | b"HINCRBY"
            | b"HINCRBYFLOAT"
            | b"HLEN"
            | b"HMGET"
            | b"HSET"
            | b"HSETNX"
            | b"HSTRLEN"
            | b"INCRBY"
            | b"INCRBYFLOAT"
            | b"LLEN"
            | b"LPOP"
            | b"LPUSH"
            | b"LPUSHX"
            | b"MGET"
            | b"MSET"
            | b"PERSIST"
            | b"PEXPIRE"
            | b"PEXPIREAT"
            | b"PFADD"
            | b"PSETEX"
            | b"PTTL"
            | b"RPOP"
            | b"RPUSH"
            | b"RPUSHX"
            | b"SADD"
            | b"SCARD"
            | b"SET"
            | b"SETBIT"
            | b"SETEX"
            | b"SETNX"
            | b"SISMEMBER"
            | b"SMISMEMBER"
            | b"SREM"
            | b"STRLEN"
            | b"TTL"
            | b"TYPE"
            | b"UNLINK"
            | b"XADD"
            | b"XLEN"
            | b"ZADD"
            | b"ZCARD"
            | b"ZINCRBY"
            | b"ZRANK"
            | b"ZREM"
            | b"ZREVRANK"
            | b"ZSCORE"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_six_commands_and_more_are_long() {
        assert!(!RequestKind::Block { commands: 5 }.is_long());
        assert!(RequestKind::Block { commands: 6 }.is_long());
        assert!(!RequestKind::Read.is_long());
    }
}
