//! redis-rs's blocking connections: one a worker, and behind r2d2.

use redis::{Client, Commands, ConnectionLike};
use tokio::runtime::Runtime;

use super::threads;
use crate::measure::{Clock, Crew, Log};
use crate::scenario::{BATCH, Job, POOL, Row, Scenario};
use crate::server::Server;
use crate::tens;
use crate::work;

pub fn dedicated(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    let client = server.client(row.via);
    threads(row, |job| {
        let mut connection = client.get_connection().expect("connect");
        Box::new(move |clock| work_with(&job, clock, |each| each.on(&mut connection)))
    })
}

pub fn checked(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    pooled(server, row, true)
}

pub fn unchecked(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    pooled(server, row, false)
}

fn pool(server: &Server, row: &Row, check: bool) -> r2d2::Pool<Client> {
    r2d2::Pool::builder()
        .max_size(POOL as u32)
        .test_on_check_out(check)
        .build(server.client(row.via))
        .expect("a pool")
}

fn pooled(server: &Server, row: &Row, check: bool) -> Option<Crew> {
    let pool = pool(server, row, check);
    threads(row, |job| {
        let pool = pool.clone();
        Box::new(move |clock| {
            work_with(&job, clock, |each| each.on(&mut *pool.get().expect("a connection")))
        })
    })
}

/// One operation, for whichever connection it is given.
struct Each<'a>(&'a Job);

fn work_with(job: &Job, clock: Clock, mut operate: impl FnMut(Each<'_>) -> u32) -> Log {
    work!(clock, operate(Each(job)))
}

impl Each<'_> {
    fn on(self, connection: &mut impl ConnectionLike) -> u32 {
        let Job { first, second, ten, .. } = self.0;
        match self.0.scenario {
            Scenario::Two => {
                let mut pipe = redis::pipe();
                pipe.atomic().incr(first, 1).incr(second, 1);
                let _: (i64, i64) = pipe.query(connection).expect("two INCRs");
                1
            }
            Scenario::Ten => {
                let _: tens::Replies = tens::pipe(ten).query(connection).expect("ten mixed");
                1
            }
            Scenario::Get => {
                let _: i64 = connection_get(connection, first);
                1
            }
            Scenario::Batch => {
                let mut pipe = redis::pipe();
                pipe.atomic();
                for _ in 0..BATCH {
                    pipe.incr(first, 1);
                }
                let all: Vec<i64> = pipe.query(connection).expect("a batch");
                assert_eq!(all.len(), BATCH);
                1
            }
            Scenario::Watch(_) => watch(connection, self.0),
        }
    }
}

fn connection_get(connection: &mut impl ConnectionLike, key: &str) -> i64 {
    redis::cmd("GET").arg(key).query(connection).expect("GET")
}

/// As an expert writes it by hand: on one connection until it is committed, WATCH and GET in one
/// packet, a conflict retried at once.
fn watch(connection: &mut impl ConnectionLike, job: &Job) -> u32 {
    let key = job.any();
    for tries in 1.. {
        let mut ask = redis::pipe();
        ask.cmd("WATCH").arg(key).ignore().get(key);
        let (value,): (i64,) = ask.query(connection).expect("WATCH and GET");
        let mut pipe = redis::pipe();
        pipe.atomic().set(key, value + 1).incr(&job.first, 1);
        let committed: Option<((), i64)> = pipe.query(connection).expect("a transaction");
        if committed.is_some() {
            return tries;
        }
    }
    unreachable!("the tries do not end")
}

pub fn transaction(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    if !matches!(row.scenario, Scenario::Two | Scenario::Watch(_)) {
        return None;
    }
    let pool = pool(server, row, false);
    threads(row, |job| {
        let pool = pool.clone();
        Box::new(move |clock| {
            work!(clock, {
                let mut connection = pool.get().expect("a connection");
                let Job { first, second, .. } = &job;
                let mut tries = 0;
                if job.scenario == Scenario::Two {
                    let keys = [first, second];
                    let _: (i64, i64) =
                        redis::transaction(&mut *connection, &keys, |connection, pipe| {
                            pipe.incr(first, 1).incr(second, 1).query(connection)
                        })
                        .expect("two INCRs");
                    tries = 1;
                } else {
                    let key = job.any();
                    let _: ((), i64) =
                        redis::transaction(&mut *connection, &[key], |connection, pipe| {
                            tries += 1;
                            let value: i64 = connection.get(key)?;
                            pipe.set(key, value + 1).incr(first, 1).query(connection)
                        })
                        .expect("a transaction");
                }
                tries
            })
        })
    })
}
