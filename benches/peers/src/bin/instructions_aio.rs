//! N operations of 64 tasks on one thread, for callgrind: `instructions_aio WHAT N [TASKS]`, where WHAT is
//! `run`, `once`, `get`, `watch` or `hot` (a watch of one key for all), or `multiplexed` or `multiplexed-get`
//! for redis-rs.
//! The difference between two N, divided by the difference of the N, is the cost of one.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a measuring program")]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use redis::AsyncCommands;
use rediscope::aio::SessionManager;
use rediscope::{TransactionOptions, prelude::*};
use rediscope_peers::server::{Server, Via};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().expect("what");
    let count: usize = arguments.next().expect("count").parse().expect("count");
    let workers: usize = arguments.next().map_or(64, |n| n.parse().unwrap());
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let sessions = SessionManager::builder(server.info(Via::Tcp))
            .max_size(8)
            .trust_window(Duration::from_secs(60))
            .build_async()
            .unwrap();
        let plain = sessions.transactional();
        let handle = if what == "once" {
            plain.with(TransactionOptions::new().exactly_once())
        } else {
            plain
        };
        let multiplexed = server
            .client(Via::Tcp)
            .get_multiplexed_async_connection_with_config(
                &redis::AsyncConnectionConfig::new()
                    .set_response_timeout(None)
                    .set_pipeline_buffer_size(256),
            )
            .await
            .unwrap();
        let left = Rc::new(Cell::new(count));
        let mut tasks = Vec::new();
        for n in 0..workers {
            let (handle, what, left) = (handle.clone(), what.clone(), Rc::clone(&left));
            let mut pooled = sessions.pooled();
            let mut multiplexed = multiplexed.clone();
            let watched = if what == "hot" { 0 } else { n };
            let (a, b) = (format!("a:{watched}"), format!("b:{n}"));
            tasks.push(tokio::task::spawn_local(async move {
                if what.ends_with("get") {
                    let _: () = multiplexed.set(&a, 1).await.unwrap();
                }
                while left.get() > 0 {
                    left.set(left.get() - 1);
                    match what.as_str() {
                        "get" => {
                            let _: i64 = pooled.get(&a).await.unwrap();
                        }
                        "multiplexed-get" => {
                            let _: i64 = multiplexed.get(&a).await.unwrap();
                        }
                        "multiplexed" => {
                            let mut pipe = redis::pipe();
                            pipe.atomic().incr(&a, 1).incr(&b, 1);
                            let _: (i64, i64) = pipe.query_async(&mut multiplexed).await.unwrap();
                        }
                        "watch" | "hot" => {
                            let mut watch = handle.watch([&a]);
                            let get = redis::cmd("GET").arg(&a).take();
                            let value = watch.declare::<Option<i64>>(get).unwrap();
                            let (a, b) = (&a, &b);
                            let _: i64 = watch
                                .run(async |read, tx| {
                                    let value = read.declared(value)?;
                                    tx.set(a, value.unwrap_or(0) + 1);
                                    Ok(tx.incr(b, 1))
                                })
                                .await
                                .unwrap();
                        }
                        _ => {
                            let _ = handle
                                .run(|tx| Ok((tx.incr(&a, 1), tx.incr(&b, 1))))
                                .await
                                .unwrap();
                        }
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}
