//! Blocks that travel in one write, each its own MULTI…EXEC.
//!
//! Never: one block's reply in another one's. Never: an order other than that of the queue.

use super::exec::Verdict;
use crate::error::LinkError;

/// A block that whoever has a link may send along with his own.
pub(crate) struct Job {
    /// From MULTI to EXEC.
    pub(crate) bytes: Vec<u8>,
    pub(crate) commands: u32,
}

/// What came of a block that somebody else sent.
#[derive(Debug, PartialEq)]
pub(crate) enum Settled {
    /// What its replies prove.
    Answered(Verdict),
    /// Its EXEC did not leave.
    NotSent(LinkError),
    /// Its EXEC may have left, and its answer was lost.
    InDoubt(LinkError),
}

/// Shows how much, never what.
impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("commands", &self.commands).finish_non_exhaustive()
    }
}

/// The most commands and bytes of a block that joins a group: what it adds to the others' wait.
const SMALL: (u32, usize) = (64, 8 * 1024);

/// Whether a block is small enough to join a group.
pub(crate) fn is_small(commands: u32, bytes: usize) -> bool {
    commands <= SMALL.0 && bytes <= SMALL.1
}

/// Whether a command of the table may join a group: its work is constant or logarithmic in the
/// size of its key, and its reply is one value or less.
pub(crate) fn may_join(words: &[&str]) -> bool {
    let [word] = words else { return false };
    matches!(
        *word,
        "APPEND"
            | "DECRBY"
            | "DEL"
            | "EXISTS"
            | "EXPIRE"
            | "EXPIREAT"
            | "GET"
            | "GETBIT"
            | "GETDEL"
            | "GETEX"
            | "GETSET"
            | "HDEL"
            | "HEXISTS"
            | "HGET"
            | "HINCRBY"
            | "HINCRBYFLOAT"
            | "HLEN"
            | "HMGET"
            | "HSET"
            | "HSETNX"
            | "HSTRLEN"
            | "INCRBY"
            | "INCRBYFLOAT"
            | "LLEN"
            | "LPOP"
            | "LPUSH"
            | "LPUSHX"
            | "MGET"
            | "MSET"
            | "PERSIST"
            | "PEXPIRE"
            | "PEXPIREAT"
            | "PFADD"
            | "PSETEX"
            | "PTTL"
            | "RPOP"
            | "RPUSH"
            | "RPUSHX"
            | "SADD"
            | "SCARD"
            | "SET"
            | "SETBIT"
            | "SETEX"
            | "SETNX"
            | "SISMEMBER"
            | "SMISMEMBER"
            | "SREM"
            | "STRLEN"
            | "TTL"
            | "TYPE"
            | "UNLINK"
            | "XADD"
            | "XLEN"
            | "ZADD"
            | "ZCARD"
            | "ZINCRBY"
            | "ZRANK"
            | "ZREM"
            | "ZREVRANK"
            | "ZSCORE"
    )
}
