//! rustis: one multiplexed client; for WATCH its bb8 pool of exclusive ones.

use rustis::client::{
    BatchPreparedCommand, Client, Config, ExclusiveClient, IntoConfig, PooledClientManager,
    Transaction,
};
use rustis::commands::{
    GenericCommands, HashCommands, ListCommands, SetCommands, SortedSetCommands, StringCommands,
    ZAddOptions,
};
use rustis::resp::cmd;
use rustis::{ErrorKind, bb8};
use tokio::runtime::Runtime;

use super::tasks;
use crate::measure::Crew;
use crate::scenario::{BATCH, Job, POOL, Row, Scenario};
use crate::server::{Server, Via};
use crate::tens::{self, VALUE};
use crate::work;

pub fn open(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    let url = match row.via {
        Via::Tcp => server.url(Via::Tcp),
        Via::Unix => format!("unix://{}", server.socket().display()),
    };
    let mut config: Config = url.into_config().expect("an address");
    config.no_delay = true;
    if matches!(row.scenario, Scenario::Watch(_)) {
        let manager = PooledClientManager::new(config).expect("an address");
        let pool = runtime
            .block_on(
                bb8::Pool::builder()
                    .max_size(POOL as u32)
                    .min_idle(POOL as u32)
                    .test_on_check_out(false)
                    .build(manager),
            )
            .expect("a pool");
        return tasks(row, |job| {
            let pool = pool.clone();
            Box::new(move |clock| {
                Box::pin(async move {
                    work!(clock, watch(&pool.get().await.expect("a connection"), &job).await)
                })
            })
        });
    }
    let client = runtime.block_on(Client::connect(config)).expect("connect");
    tasks(row, |job| {
        let client = client.clone();
        Box::new(move |clock| Box::pin(async move { work!(clock, plain(&client, &job).await) }))
    })
}

async fn plain(client: &Client, job: &Job) -> u32 {
    let Job { first, second, ten, .. } = job;
    match job.scenario {
        Scenario::Two => {
            let mut tx = client.create_transaction();
            tx.incr(first).queue();
            tx.incr(second).queue();
            let _: (i64, i64) = tx.execute().await.expect("two INCRs");
        }
        Scenario::Ten => {
            let mut tx = client.create_transaction();
            tx.set(&ten.string, VALUE).queue();
            tx.get::<String>(&ten.string).queue();
            tx.incr(&ten.number).queue();
            tx.hset(&ten.hash, ("field", VALUE)).queue();
            tx.hget::<String>(&ten.hash, "field").queue();
            tx.lpush(&ten.list, "element").queue();
            tx.llen(&ten.list).queue();
            tx.sadd(&ten.set, "member").queue();
            tx.expire(&ten.string, 1_000, None).queue();
            tx.zadd(&ten.sorted, (1.0, "member"), ZAddOptions::default()).queue();
            let _: tens::Replies = tx.execute().await.expect("ten mixed");
        }
        Scenario::Get => {
            let _: i64 = client.get(first).await.expect("GET");
        }
        Scenario::Batch => {
            let mut tx: Transaction = client.create_transaction();
            for _ in 0..BATCH {
                tx.incr(first).queue();
            }
            let all: Vec<i64> = tx.execute().await.expect("a batch");
            assert_eq!(all.len(), BATCH);
        }
        Scenario::Watch(_) => unreachable!("not on a shared connection"),
    }
    1
}

async fn watch(client: &ExclusiveClient, job: &Job) -> u32 {
    let key = job.any();
    for tries in 1.. {
        let mut ask = client.create_pipeline();
        ask.forget_command(cmd("WATCH").arg(key));
        ask.queue_command(cmd("GET").arg(key));
        let value: i64 = ask.execute().await.expect("WATCH and GET");
        let mut tx = client.create_transaction();
        tx.set(key, value + 1).queue();
        tx.incr(&job.first).queue();
        match tx.execute::<((), i64)>().await {
            Ok(_) => return tries,
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Aborted), "{error}"),
        }
    }
    unreachable!("the tries do not end")
}
