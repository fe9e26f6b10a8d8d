//! Calls with a timeout: the token of each that was dropped is resolved, here and by another process, and each resolution is
//! compared with the server then and in the end.
//!
//! Guarantee: exactly-once, tasks

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rediscope::aio::SessionManager;
use rediscope::error::CommitToken;
use rediscope::prelude::*;
use rediscope::{CommitError, Error, TransactionOptions};

use super::queue_soak::cut::wrong;
use super::resolver::{self, OtherProcess, answer};
use super::{LANES, number, runtime};
use crate::SOON;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

const WORKERS: u64 = 64;
/// Delay of a reply, in which most of the timeouts pass.
const DELAY: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Ledger {
    ended: AtomicU64,
    timed_out: AtomicU64,
    not_sent: AtomicU64,
    unknown: AtomicU64,
    /// Keys, and whether their blocks were told as applied.
    ends: Mutex<Vec<(String, bool)>>,
}

async fn worker(
    nth: u64,
    calls: u64,
    (here, elsewhere): (SessionManager, Arc<OtherProcess>),
    ledger: Arc<Ledger>,
    mut random: fastrand::Rng,
) {
    let once = here.transactional().with(TransactionOptions::new().exactly_once());
    for call in 0..calls {
        let key = format!("call:{nth}:{call}");
        let sent = once.submit(|tx| Ok(tx.incr(&key, 1))).unwrap();
        let token = sent.token();
        let limit = Duration::from_micros(random.u64(..4_000));
        let end = match tokio::time::timeout(limit, sent).await {
            Ok(Ok(count)) => {
                assert_eq!(count, 1, "{key}");
                ledger.ended.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Ok(Err(Error::Commit(CommitError::InDoubt(doubt)))) => {
                answer(&here.resolve(doubt.token().expect("exactly once"), SOON).await)
            }
            Ok(Err(error)) => {
                assert!(error.is_retryable(), "{error}");
                Ok(false)
            }
            Err(_) => {
                ledger.timed_out.fetch_add(1, Ordering::Relaxed);
                let known: Option<CommitToken> = token.get();
                let first = match &known {
                    Some(known) if random.bool() => Some(elsewhere.resolve(known).await),
                    _ => None,
                };
                let here = answer(&here.resolve(&token, SOON).await);
                match (known, first) {
                    (None, _) => _ = ledger.not_sent.fetch_add(1, Ordering::Relaxed),
                    (Some(_), Some(first)) => assert_eq!(first, here, "{key}"),
                    (Some(known), None) => {
                        assert_eq!(elsewhere.resolve(&known).await, here, "{key}");
                    }
                }
                here
            }
        };
        match end {
            Ok(applied) => ledger.ends.lock().unwrap().push((key, applied)),
            Err(why) => {
                println!("{key}: {why}");
                ledger.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[test]
fn the_token_of_every_call_that_timed_out_is_resolved_to_what_the_server_holds() {
    rediscope_testing::own_process!(alone);
    if resolver::serve() {
        return;
    }
    let seed = rediscope_testing::soak::seed();
    let count = number("REDISCOPE_TASK_TIMEOUTS", 2_000);
    let (runtime, server) = (runtime(), Server::start());
    let proxy = Proxy::to(&server);
    proxy.set_delays(Duration::ZERO, DELAY);
    let here = {
        let _runtime = runtime.enter();
        let builder = rediscope::SessionManager::builder(proxy.url()).lanes(LANES);
        builder.checkout_timeout(SOON).build_async().unwrap()
    };
    let elsewhere = Arc::new(OtherProcess::of(&server));
    let ledger = Arc::new(Ledger::default());
    let mut random = fastrand::Rng::with_seed(seed);
    let spawn = |nth| {
        let managers = (here.clone(), Arc::clone(&elsewhere));
        runtime.spawn(worker(nth, count / WORKERS, managers, Arc::clone(&ledger), random.fork()))
    };
    let workers: Vec<_> = (0..WORKERS).map(spawn).collect();
    for worker in workers {
        runtime.block_on(worker).unwrap();
    }
    runtime.block_on(here.close(SOON));
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (timed_out, not_sent) = (of(&ledger.timed_out), of(&ledger.not_sent));
    println!("{} ended, {timed_out} timed out, {not_sent} of them unsent", of(&ledger.ended));
    assert!(timed_out > count / 10, "too few to mean anything: {timed_out}");
    let ends = ledger.ends.lock().unwrap();
    let wrong = wrong(&server, ends.iter());
    assert!(wrong.is_empty(), "{} wrong: {wrong:?}", wrong.len());
    assert_eq!(of(&ledger.unknown), 0, "unknown");
}
