//! redis-rs's multiplexed connection: one for all, and behind bb8 and deadpool.

use bb8_redis::{RedisConnectionManager, bb8};
use redis::AsyncConnectionConfig;
use redis::aio::{ConnectionLike, ConnectionManagerConfig};
use tokio::runtime::Runtime;

use super::tasks;
use crate::measure::Crew;
use crate::scenario::{BATCH, Job, POOL, Row, Scenario};
use crate::server::Server;
use crate::tens;
use crate::work;

/// One operation but a watching one.
async fn plain(connection: &mut (impl ConnectionLike + Send), job: &Job) -> u32 {
    let Job { first, second, ten, .. } = job;
    match job.scenario {
        Scenario::Two => {
            let mut pipe = redis::pipe();
            pipe.atomic().incr(first, 1).incr(second, 1);
            let _: (i64, i64) = pipe.query_async(connection).await.expect("two INCRs");
        }
        Scenario::Ten => {
            let _: tens::Replies =
                tens::pipe(ten).query_async(connection).await.expect("ten mixed");
        }
        Scenario::Get => {
            let _: i64 = redis::cmd("GET").arg(first).query_async(connection).await.expect("GET");
        }
        Scenario::Batch => {
            let mut pipe = redis::pipe();
            pipe.atomic();
            for _ in 0..BATCH {
                pipe.incr(first, 1);
            }
            let all: Vec<i64> = pipe.query_async(connection).await.expect("a batch");
            assert_eq!(all.len(), BATCH);
        }
        Scenario::Watch(_) => unreachable!("not on a shared connection"),
    }
    1
}

/// One operation of any kind, on a connection that is the caller's alone.
async fn any(connection: &mut (impl ConnectionLike + Send), job: &Job) -> u32 {
    if !matches!(job.scenario, Scenario::Watch(_)) {
        return plain(connection, job).await;
    }
    let key = job.any();
    for tries in 1.. {
        let mut ask = redis::pipe();
        ask.cmd("WATCH").arg(key).ignore().get(key);
        let (value,): (i64,) = ask.query_async(connection).await.expect("WATCH and GET");
        let mut pipe = redis::pipe();
        pipe.atomic().set(key, value + 1).incr(&job.first, 1);
        let committed: Option<((), i64)> =
            pipe.query_async(connection).await.expect("a transaction");
        if committed.is_some() {
            return tries;
        }
    }
    unreachable!("the tries do not end")
}

fn patient() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None)
}

/// Requests that may wait in one multiplexed connection: more than there are tasks, so that none
/// waits for a place (50 by default).
fn buffer(row: &Row) -> usize {
    row.workers.next_power_of_two().max(256)
}

pub fn multiplexed(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    if matches!(row.scenario, Scenario::Watch(_)) {
        return None; // WATCH belongs to the connection, and all callers share this one
    }
    let client = server.client(row.via);
    let connection = runtime
        .block_on(client.get_multiplexed_async_connection_with_config(
            &patient().set_pipeline_buffer_size(buffer(row)),
        ))
        .expect("connect");
    tasks(row, |job| {
        let mut connection = connection.clone();
        Box::new(move |clock| {
            Box::pin(async move { work!(clock, plain(&mut connection, &job).await) })
        })
    })
}

pub fn manager(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    if matches!(row.scenario, Scenario::Watch(_)) {
        return None; // as of the multiplexed connection that it keeps
    }
    let client = server.client(row.via);
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None)
        .set_pipeline_buffer_size(buffer(row));
    let manager =
        runtime.block_on(client.get_connection_manager_with_config(config)).expect("connect");
    tasks(row, |job| {
        let mut manager = manager.clone();
        Box::new(move |clock| {
            Box::pin(async move { work!(clock, plain(&mut manager, &job).await) })
        })
    })
}

pub fn bb8(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    bb8_pooled(server, runtime, row, true)
}

pub fn bb8_unchecked(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    bb8_pooled(server, runtime, row, false)
}

fn bb8_pooled(server: &Server, runtime: &Runtime, row: &Row, check: bool) -> Option<Crew> {
    let manager = RedisConnectionManager::new(server.info(row.via)).expect("an address");
    let builder = bb8::Pool::builder()
        .max_size(POOL as u32)
        // As r2d2 has it by default.
        .min_idle(POOL as u32)
        .test_on_check_out(check);
    let pool = runtime.block_on(builder.build(manager)).expect("a pool");
    tasks(row, |job| {
        let pool = pool.clone();
        Box::new(move |clock| {
            Box::pin(async move {
                work!(clock, any(&mut *pool.get().await.expect("a connection"), &job).await)
            })
        })
    })
}

pub fn deadpool(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    let manager = deadpool_redis::Manager::new_with_config(server.info(row.via), patient())
        .expect("an address");
    let pool = deadpool_redis::Pool::builder(manager)
        .max_size(POOL)
        .runtime(deadpool_redis::Runtime::Tokio1)
        .build()
        .expect("a pool");
    tasks(row, |job| {
        let pool = pool.clone();
        Box::new(move |clock| {
            Box::pin(async move {
                work!(clock, any(&mut pool.get().await.expect("a connection"), &job).await)
            })
        })
    })
}
