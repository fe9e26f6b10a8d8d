//! The two INCRs and the ten mixed commands, as the crate and as redis-rs say them, and the
//! [`CASES`] of the crate whose cost is counted.

use std::hint::black_box;

use r2d2::Pool;
use redis::{Client, Pipeline};
use rediscope::{SessionManager, TransactionOptions, Transactional, prelude::*};

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

/// One kind of transaction of the crate whose instructions and allocations are counted.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The name on a command line.
    pub name: &'static str,
    /// What the case does.
    pub title: &'static str,
    pub exactly_once: bool,
    pub transaction: fn(&Transactional),
}

pub const CASES: [Case; 4] = [
    Case {
        name: "run",
        title: "rediscope run, two INCRs",
        exactly_once: false,
        transaction: run_two,
    },
    Case {
        name: "once",
        title: "rediscope run exactly once, two INCRs",
        exactly_once: true,
        transaction: run_two,
    },
    Case {
        name: "watch",
        title: "rediscope watch, one GET, one SET",
        exactly_once: false,
        transaction: watch_one,
    },
    Case {
        name: "guard",
        title: "rediscope begin and commit, two INCRs",
        exactly_once: false,
        transaction: guard_two,
    },
];

impl Case {
    pub fn named(name: &str) -> Option<Self> {
        CASES.into_iter().find(|case| case.name == name)
    }

    /// The handle on which the transaction runs.
    pub fn handle(&self, sessions: &SessionManager) -> Transactional {
        let plain = sessions.transactional();
        if self.exactly_once {
            return plain.with(TransactionOptions::new().exactly_once());
        }
        plain
    }
}

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

pub fn watch_one(transactional: &Transactional) {
    let write = transactional.watch(["w:0"]).run(|read, tx| {
        let value: Option<i64> = read.get("w:0")?;
        Ok(tx.set("w:0", value.unwrap_or_default() + 1))
    });
    write.expect("a watched write");
}

pub fn guard_two(transactional: &Transactional) {
    let mut tx = transactional.begin().expect("a connection");
    let both = (tx.incr("a:0", 1), tx.incr("b:0", 1));
    let replies = tx.commit().expect("two INCRs");
    black_box(replies.get(both).expect("both values"));
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
