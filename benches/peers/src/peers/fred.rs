//! fred: eight multiplexed clients in turn, one for a plain GET; for WATCH its pool of exclusive ones.

use std::sync::Arc;

use fred::clients::{Client, ExclusivePool, Pool};
use fred::cmd;
use fred::interfaces::{
    ClientLike, HashesInterface, KeysInterface, ListInterface, SetsInterface, SortedSetsInterface,
    TransactionInterface,
};
use fred::types::config::{Config, ConnectionConfig, TcpConfig};
use tokio::runtime::Runtime;
use tokio::sync::Barrier;

use super::tasks;
use crate::measure::Crew;
use crate::scenario::{BATCH, Job, POOL, Row, Scenario};
use crate::server::Server;
use crate::tens::{self, VALUE};
use crate::work;

pub fn open(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    let config = Config::from_url(&server.url(row.via)).expect("an address");
    let connection = ConnectionConfig {
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        ..ConnectionConfig::default()
    };
    // The clients live until the last worker leaves: then the slice is over.
    let left = Arc::new(Barrier::new(row.workers));
    if matches!(row.scenario, Scenario::Watch(_)) {
        let pool = runtime.block_on(async {
            let pool = ExclusivePool::new(config, None, Some(connection), None, POOL);
            let pool = pool.expect("a pool");
            pool.init().await.expect("connect");
            pool
        });
        return tasks(row, |job| {
            let (pool, left) = (pool.clone(), Arc::clone(&left));
            Box::new(move |clock| {
                Box::pin(async move {
                    let log = work!(clock, watch(&*pool.acquire().await, &job).await);
                    if left.wait().await.is_leader() {
                        let _ = pool.quit().await;
                    }
                    log
                })
            })
        });
    }
    // A transaction has its client to itself until EXEC is answered; other commands share one best.
    let clients = if row.scenario == Scenario::Get { 1 } else { POOL };
    let pool = runtime.block_on(async {
        let pool = Pool::new(config, None, Some(connection), None, clients).expect("a pool");
        pool.init().await.expect("connect");
        pool
    });
    tasks(row, |job| {
        let (pool, left) = (pool.clone(), Arc::clone(&left));
        Box::new(move |clock| {
            Box::pin(async move {
                let log = work!(clock, plain(pool.next(), &job).await);
                if left.wait().await.is_leader() {
                    let _ = pool.quit().await;
                }
                log
            })
        })
    })
}

async fn plain(client: &Client, job: &Job) -> u32 {
    let Job { first, second, ten, .. } = job;
    match job.scenario {
        Scenario::Two => {
            let tx = client.multi();
            let _: () = tx.incr(first).await.expect("queued");
            let _: () = tx.incr(second).await.expect("queued");
            let _: (i64, i64) = tx.exec(true).await.expect("two INCRs");
        }
        Scenario::Ten => {
            let tx = client.multi();
            let queued = "queued";
            let _: () = tx.set(&ten.string, VALUE, None, None, false).await.expect(queued);
            let _: () = tx.get(&ten.string).await.expect(queued);
            let _: () = tx.incr(&ten.number).await.expect(queued);
            let _: () = tx.hset(&ten.hash, ("field", VALUE)).await.expect(queued);
            let _: () = tx.hget(&ten.hash, "field").await.expect(queued);
            let _: () = tx.lpush(&ten.list, "element").await.expect(queued);
            let _: () = tx.llen(&ten.list).await.expect(queued);
            let _: () = tx.sadd(&ten.set, "member").await.expect(queued);
            let _: () = tx.expire(&ten.string, 1_000, None).await.expect(queued);
            let member = (1.0, "member");
            let _: () = tx.zadd(&ten.sorted, None, None, false, false, member).await.expect(queued);
            let _: tens::Replies = tx.exec(true).await.expect("ten mixed");
        }
        Scenario::Get => {
            let _: i64 = client.get(first).await.expect("GET");
        }
        Scenario::Batch => {
            let tx = client.multi();
            for _ in 0..BATCH {
                let _: () = tx.incr(first).await.expect("queued");
            }
            let all: Vec<i64> = tx.exec(true).await.expect("a batch");
            assert_eq!(all.len(), BATCH);
        }
        Scenario::Watch(_) => unreachable!("not on a shared connection"),
    }
    1
}

async fn watch(client: &Client, job: &Job) -> u32 {
    let key = job.any();
    for tries in 1.. {
        let ask = client.pipeline();
        // Its own `watch` cannot be queued: it expects an OK at once.
        let watch = cmd!("WATCH");
        let _: () = ask.custom(watch, vec![key]).await.expect("queued");
        let _: () = ask.get(key).await.expect("queued");
        let ((), value): ((), i64) = ask.all().await.expect("WATCH and GET");
        let tx = client.multi();
        let _: () = tx.set(key, value + 1, None, None, false).await.expect("queued");
        let _: () = tx.incr(&job.first).await.expect("queued");
        // A conflict is a nil here, as it comes.
        let committed: fred::types::Value = tx.exec(true).await.expect("a transaction");
        if !committed.is_null() {
            return tries;
        }
    }
    unreachable!("the tries do not end")
}
