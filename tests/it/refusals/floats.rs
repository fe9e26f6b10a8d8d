//! A float that is added to an integer is refused while it is queued.
//!
//! Guarantee: refused

use crate::side::Transaction;
use rediscope::Error;
use rediscope::prelude::*;
use rediscope::{redis, redis::RedisWrite, redis::ToRedisArgs, redis::ToSingleRedisArg};

use super::fixture::{Quiet, unsent};

/// A float by another name: the compiler does not see one.
#[derive(Clone)]
struct Price(f64);

impl ToRedisArgs for Price {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        self.0.write_redis_args(out);
    }
}

impl ToSingleRedisArg for Price {}

fn generic<V: ToSingleRedisArg>(tx: &mut Transaction, by: V) {
    tx.incr("n", by);
}

type Add = (&'static str, &'static str, fn(&mut Transaction));

const FLOATS: [Add; 14] = [
    ("INCRBY", "incr_float", |tx| _ = tx.incr("n", Price(1.5))),
    ("INCRBY", "incr_float", |tx| _ = tx.incr("n", Price(1.0))),
    ("INCRBY", "incr_float", |tx| _ = tx.incr("n", Price(-1e300))),
    ("INCRBY", "incr_float", |tx| _ = tx.incr("n", Price(f64::NAN))),
    ("INCRBY", "incr_float", |tx| _ = tx.incr("n", "1.5")),
    ("INCRBY", "incr_float", |tx| _ = tx.incr("n", "1e3")),
    ("INCRBY", "incr_float", |tx| _ = tx.incr("n", "inf".to_owned())),
    ("INCRBY", "incr_float", |tx| generic(tx, 0.5)),
    ("INCRBY", "incr_float", |tx| {
        _ = tx.queue::<()>(redis::cmd("incrby").arg("n").arg(0.5).take())
    }),
    ("DECRBY", "incr_float", |tx| _ = tx.decr("n", Price(2.5))),
    ("HINCRBY", "hincr_float", |tx| _ = tx.hincr("h", "f", Price(2.5))),
    ("HINCRBY", "hincr_float", |tx| _ = tx.hincr("h", "f", ".5")),
    ("HINCRBY", "hincr_float", |tx| {
        _ = tx.queue::<()>(redis::cmd("HINCRBY").arg("h").arg("f").arg(0.5).take())
    }),
    ("INCRBY", "incr_float", |tx| {
        let mut part = tx.savepoint();
        part.incr("n", Price(0.5));
        part.release();
    }),
];

#[test]
fn a_float_added_to_an_integer_is_refused_while_it_is_queued_and_nothing_is_sent() {
    let mut quiet = Quiet::start();
    let accounts = quiet.sessions.transactional();
    for (nth, (name, method, add)) in FLOATS.into_iter().enumerate() {
        let mut tx = accounts.begin().unwrap();
        tx.set("before", 1);
        tx.check().unwrap();
        add(&mut tx);
        let refused = |error: &Error| match unsent(error) {
            Error::Refused { command, hint, .. } => {
                assert_eq!(command, name, "{nth}");
                assert!(hint.contains(&format!(" {method} ")), "{nth}: {hint}");
            }
            error => panic!("{nth}: {error:?}"),
        };
        refused(&tx.check().unwrap_err());
        refused(&tx.commit().unwrap_err());
    }
    let by_run = accounts.run(|tx| {
        tx.set("before", 1);
        Ok(tx.incr("n", Price(1.5)))
    });
    assert!(matches!(unsent(&by_run.unwrap_err()), Error::Refused { .. }));
    quiet.nothing_was_sent();
    quiet.nothing_was_lost();
}

#[test]
fn whatever_is_no_float_is_added() {
    let mut quiet = Quiet::start();
    let accounts = quiet.sessions.transactional();
    let n = accounts.run(|tx| {
        tx.incr("n", 1);
        tx.incr("n", 1_u8);
        tx.incr("n", i64::MAX / 2);
        tx.incr("n", 3_usize);
        tx.incr("n", "4");
        tx.incr("n", String::from("-5"));
        tx.incr("n", b"6");
        tx.decr("n", i64::MAX / 2);
        tx.hincr("h", "1.5", 7);
        tx.incr_float("f", 0.5);
        tx.incr_float("f", Price(0.25));
        tx.hincr_float("h", "f", 0.5_f32);
        Ok((tx.decr("n", 1_i16), tx.hincr("h", "1.5", "1")))
    });
    assert_eq!(n.unwrap(), (9, 8));
    // What is no number at all is the server's to refuse.
    let partly = accounts.run(|tx| Ok(tx.incr("n", "one"))).unwrap_err();
    assert!(partly.as_commit().is_some(), "{partly:?}");
    quiet.nothing_was_lost();
}
