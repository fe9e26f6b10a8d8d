//! Cuts of groups of exactly-once blocks: a lane's connection is cut at a random byte, its bytes arrive late, in part or
//! never, and the blocks are resolved in between, by their callers and by another process.
//!
//! `REDISCOPE_LANE_CUTS` is the number of groups. A control sends two blocks behind one another instead of
//! merging them, and is wrong; more are in `group_controls.rs`.
//!
//! Guarantee: exactly-once, grouped

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use rediscope::aio::SessionManager;
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::redis::{self, ConnectionLike as _};
use rediscope::{CommitError, Error, TransactionOptions};
use rediscope_testing::packed;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

use super::dropped::{DropAfter, join_all};
use super::queue_soak::cut::{Cut, wait_for_late_bytes, wrong};
use super::resolver::{self, OtherProcess};
use super::{number, runtime};
use crate::SOON;

/// Most groups wait for a timeout, so more at a time cost little.
const WORKERS: u64 = 16;
/// Time after which a lane gives a silent server up.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_millis(60);

#[derive(Default)]
struct Ledger {
    groups: AtomicU64,
    cuts: AtomicU64,
    asked: AtomicU64,
    dropped: AtomicU64,
    unsent: AtomicU64,
    unknown: Mutex<Vec<String>>,
    /// Keys, and whether their blocks were told as applied.
    ends: Mutex<Vec<(String, bool)>>,
}

/// One block, to its end as its caller knows it.
async fn member(
    key: String,
    (here, elsewhere): (&SessionManager, &OtherProcess),
    polls: u32,
    ledger: &Ledger,
) {
    let once = here.transactional().with(TransactionOptions::new().exactly_once());
    let sent = once.submit(|tx| Ok(tx.incr(&key, 1))).unwrap();
    let token = sent.token();
    let end = match DropAfter::new(polls, sent).await {
        Some(Ok(_)) => Ok(true),
        Some(Err(Error::Commit(CommitError::InDoubt(doubt)))) => {
            ledger.asked.fetch_add(1, Ordering::Relaxed);
            elsewhere.resolve(doubt.token().expect("exactly once")).await
        }
        Some(Err(error)) => match error.applied() {
            Applied::Yes => Ok(true),
            Applied::No => Ok(false),
            other => panic!("{other:?}: {error:#}"),
        },
        None => {
            ledger.dropped.fetch_add(1, Ordering::Relaxed);
            match token.get() {
                None => {
                    ledger.unsent.fetch_add(1, Ordering::Relaxed);
                    Ok(false)
                }
                Some(token) => {
                    ledger.asked.fetch_add(1, Ordering::Relaxed);
                    elsewhere.resolve(&token).await
                }
            }
        }
    };
    match end {
        Ok(end) => ledger.ends.lock().unwrap().push((key, end)),
        Err(why) => ledger.unknown.lock().unwrap().push(format!("{key}: {why}")),
    }
}

async fn worker(
    nth: u64,
    groups: u64,
    (server, elsewhere): (Arc<Server>, Arc<OtherProcess>),
    ledger: Arc<Ledger>,
    mut rng: Rng,
) {
    let proxy = Proxy::to(&server);
    let here = rediscope::SessionManager::builder(proxy.url())
        .lanes(1)
        .connect_timeout(Duration::from_secs(1))
        .response_timeout(RESPONSE_TIMEOUT)
        .checkout_timeout(SOON)
        .build_async()
        .unwrap();
    for group in 0..groups {
        let members = rng.u64(2..17);
        let cut = Cut::any(&mut rng);
        let fired = proxy.fired();
        proxy.arm(cut.script(150 + 90 * members, &mut rng));
        let calls = (0..members).map(|member_nth| {
            let polls = if rng.u8(..4) == 0 { rng.u32(1..5) } else { u32::MAX };
            let key = format!("key:{nth}:{group}:{member_nth}");
            member(key, (&here, &elsewhere), polls, &ledger)
        });
        join_all(calls.collect::<Vec<_>>()).await;
        proxy.disarm();
        cut.end(&proxy);
        ledger.groups.fetch_add(1, Ordering::Relaxed);
        ledger.cuts.fetch_add((proxy.fired() - fired) as u64, Ordering::Relaxed);
    }
    here.close(SOON).await;
    proxy.release();
}

#[test]
fn no_block_of_a_group_is_resolved_wrongly_however_late_its_bytes_arrive() {
    rediscope_testing::own_process!(alone);
    if resolver::serve() {
        return;
    }
    let seed = rediscope_testing::soak::seed();
    let groups = number("REDISCOPE_LANE_CUTS", 200);
    let (runtime, server) = (runtime(), Arc::new(Server::start()));
    let elsewhere = Arc::new(OtherProcess::of(&server));
    let ledger = Arc::new(Ledger::default());
    let mut rng = Rng::with_seed(seed);
    let workers: Vec<_> = (0..WORKERS)
        .map(|nth| {
            let with = (Arc::clone(&server), Arc::clone(&elsewhere));
            let groups = groups.div_ceil(WORKERS);
            runtime.spawn(worker(nth, groups, with, Arc::clone(&ledger), rng.fork()))
        })
        .collect();
    for worker in workers {
        runtime.block_on(worker).unwrap();
    }
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let ends = std::mem::take(&mut *ledger.ends.lock().unwrap());
    println!(
        "{} groups, {} cuts, {} blocks, {} dropped ({} unsent), {} asked, {} committed",
        of(&ledger.groups),
        of(&ledger.cuts),
        ends.len(),
        of(&ledger.dropped),
        of(&ledger.unsent),
        of(&ledger.asked),
        ends.iter().filter(|(_, applied)| *applied).count()
    );
    assert!(of(&ledger.cuts) > groups / 4, "too few cuts to mean anything");
    let unknown = ledger.unknown.lock().unwrap();
    assert!(unknown.is_empty(), "{} unknown: {unknown:?}", unknown.len());
    wait_for_late_bytes(&server);
    let wrong = wrong(&server, &ends);
    assert!(wrong.is_empty(), "{} wrong: {wrong:?}", wrong.len());
}

/// The control: two blocks with a register write each, one behind the other on one connection, are held back while a
/// resolver asks.
#[test]
fn two_blocks_behind_one_another_are_applied_after_they_were_resolved_as_not_committed() {
    rediscope_testing::own_process!(alone);
    let server = Server::start();
    let (mut lane, mut resolver) = (server.connection(), server.connection());
    let arm = [packed(&["SET", "R", "1", "PX", "60000"]), packed(&["WATCH", "R"])].concat();
    let _: Vec<redis::Value> = lane.req_packed_commands(&arm, 0, 2).unwrap();
    let block = |key: &str, number: &str| {
        let words: [&[&str]; 5] = [
            &["MULTI"],
            &["INCR", key],
            &["SET", "R", number, "PX", "60000"],
            &["EXEC"],
            &["WATCH", "R"],
        ];
        words.map(packed).concat()
    };
    // The bytes are held, and a resolver asks about both numbers.
    let held = [block("first", "2"), block("second", "3")].concat();
    let question = [packed(&["PEXPIRE", "R", "60000"]), packed(&["GET", "R"])].concat();
    let answer: Vec<redis::Value> = resolver.req_packed_commands(&question, 0, 2).unwrap();
    assert_eq!(answer[0], redis::Value::Int(1));
    assert_eq!(answer[1], redis::Value::BulkString(b"1".to_vec()), "neither is committed");
    let _: Vec<redis::Value> = lane.req_packed_commands(&held, 0, 10).unwrap();
    let found = |key: &str| server.ask::<Option<i64>>(&["GET", key]);
    assert_eq!(found("first"), None);
    assert_eq!(found("second"), Some(1), "the control is right, so it shows nothing");
}
