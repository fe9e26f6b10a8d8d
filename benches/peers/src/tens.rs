//! The two INCRs and the ten mixed commands, as the crate and as redis-rs say them.

use std::hint::black_box;

use r2d2::Pool;
use redis::{Client, Pipeline};
use rediscope::{Transactional, prelude::*};

/// The keys of one worker's ten commands.
#[derive(Clone, Debug)]
pub struct Ten {
    pub string: String,
    pub number: String,
    pub hash: String,
    pub list: String,
    pub set: String,
    pub sorted: String,
}

/// The replies of the ten commands, decoded.
pub type Replies = ((), String, i64, i64, String, i64, i64, i64, bool, i64);

/// The same before the commit.
pub type QueuedTen = (
    Queued<()>,
    Queued<String>,
    Queued<i64>,
    Queued<i64>,
    Queued<String>,
    Queued<i64>,
    Queued<i64>,
    Queued<i64>,
    Queued<bool>,
    Queued<i64>,
);

pub const VALUE: &str = "a value of some length";

impl Ten {
    pub fn of(worker: usize) -> Self {
        let key = |kind: &str| format!("{kind}:{worker}");
        Self {
            string: key("s"),
            number: key("n"),
            hash: key("h"),
            list: key("l"),
            set: key("t"),
            sorted: key("z"),
        }
    }
}

pub fn pipe(ten: &Ten) -> Pipeline {
    let mut pipe = redis::pipe();
    pipe.atomic()
        .set(&ten.string, VALUE)
        .get(&ten.string)
        .incr(&ten.number, 1)
        .hset(&ten.hash, "field", VALUE)
        .hget(&ten.hash, "field")
        .lpush(&ten.list, "element")
        .llen(&ten.list)
        .sadd(&ten.set, "member")
        .expire(&ten.string, 1_000)
        .zadd(&ten.sorted, "member", 1);
    pipe
}

pub fn block(tx: &mut impl QueueCommands, ten: &Ten) -> QueuedTen {
    (
        tx.set(&ten.string, VALUE),
        tx.get(&ten.string),
        tx.incr(&ten.number, 1),
        tx.hset(&ten.hash, "field", VALUE),
        tx.hget(&ten.hash, "field"),
        tx.lpush(&ten.list, "element"),
        tx.llen(&ten.list),
        tx.sadd(&ten.set, "member"),
        tx.expire(&ten.string, 1_000),
        tx.zadd(&ten.sorted, "member", 1),
    )
}

pub fn run_two(transactional: &Transactional) {
    let replies = transactional.run(|tx| Ok((tx.incr("a:0", 1), tx.incr("b:0", 1))));
    black_box(replies.expect("two INCRs"));
}

pub fn pipe_two(pool: &Pool<Client>) {
    let mut connection = pool.get().expect("a connection");
    let replies: (i64, i64) = redis::pipe()
        .atomic()
        .incr("a:0", 1)
        .incr("b:0", 1)
        .query(&mut connection)
        .expect("two INCRs");
    black_box(replies);
}

pub fn run_ten(transactional: &Transactional, ten: &Ten) -> Replies {
    transactional.run(|tx| Ok(block(tx, ten))).expect("ten mixed")
}

pub fn pipe_ten(pool: &Pool<Client>, ten: &Ten) -> Replies {
    let mut connection = pool.get().expect("a connection");
    pipe(ten).query(&mut connection).expect("ten mixed")
}
