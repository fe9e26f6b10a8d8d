//! Cuts of groups of threads: the connection of a group is cut at a random byte, its bytes arrive late, in part or never,
//! and the blocks are resolved in between, by their callers and by another session manager.
//!
//! `REDISCOPE_GROUP_CUTS` is the number of groups. The controls, which are wrong, are those of the groups of tasks.
//!
//! Guarantee: exactly-once, grouped

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rediscope::error::{Applied, Resolution};
use rediscope::prelude::*;
use rediscope::{CommitError, Error, SessionManager, TransactionOptions, Transactional};
use rediscope_testing::eventually;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

use crate::SOON;
use crate::queue_soak::cut::{Cut, wait_for_late_bytes, wrong};

/// Most groups wait for a timeout, so more at a time cost little.
const WORKERS: u64 = 8;
/// Time after which a leader gives a silent server up.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(80);

#[derive(Default)]
struct Ledger {
    groups: AtomicU64,
    cuts: AtomicU64,
    asked: AtomicU64,
    unknown: Mutex<Vec<String>>,
    /// Keys, and whether their blocks were reported as applied.
    ends: Mutex<Vec<(String, bool)>>,
}

/// One block, to its end as its caller knows it.
fn member(key: String, handle: &Transactional, elsewhere: &SessionManager, ledger: &Ledger) {
    let end = match handle.run(|tx| Ok(tx.incr(&key, 1))) {
        Ok(_) => Ok(true),
        Err(Error::Commit(CommitError::InDoubt(doubt))) => {
            ledger.asked.fetch_add(1, Ordering::Relaxed);
            match doubt.token().map(|token| elsewhere.resolve(token, SOON)) {
                Some(Resolution::Committed) => Ok(true),
                Some(Resolution::NotCommitted) => Ok(false),
                other => Err(format!("{other:?}: {doubt}")),
            }
        }
        Err(error) => match error.applied() {
            Applied::Yes => Ok(true),
            Applied::No => Ok(false),
            other => panic!("{other:?}: {error:#}"),
        },
    };
    match end {
        Ok(end) => ledger.ends.lock().unwrap().push((key, end)),
        Err(why) => ledger.unknown.lock().unwrap().push(format!("{key}: {why}")),
    }
}

fn worker(nth: u64, groups: u64, server: &Server, ledger: &Ledger, mut rng: Rng) {
    let (proxy, elsewhere) = (Proxy::to(server), SessionManager::connect(server.url()).unwrap());
    let here = SessionManager::builder(proxy.url())
        .max_size(1)
        .connect_timeout(Duration::from_secs(1))
        .response_timeout(RESPONSE_TIMEOUT)
        .checkout_timeout(SOON)
        // Some leaders ask the connection with MULTI first.
        .trust_window([Duration::ZERO, SOON][nth as usize % 2])
        .build()
        .unwrap();
    let once = here.transactional().with(TransactionOptions::new().exactly_once().grouped());
    for group in 0..groups {
        let members = rng.usize(2..17);
        let cut = Cut::any(&mut rng);
        let fired = proxy.fired();
        let held = here.transactional().begin().unwrap();
        thread::scope(|scope| {
            let (once, elsewhere) = (&once, &elsewhere);
            for number in 0..members {
                let key = format!("key:{nth}:{group}:{number}");
                scope.spawn(move || member(key, once, elsewhere, ledger));
            }
            let waiting = || here.status().transactional.waiting;
            eventually(SOON, "all members wait", || waiting() == members);
            proxy.arm(cut.script(150 + 90 * members as u64, &mut rng));
            drop(held);
        });
        proxy.disarm();
        cut.end(&proxy);
        ledger.groups.fetch_add(1, Ordering::Relaxed);
        ledger.cuts.fetch_add((proxy.fired() - fired) as u64, Ordering::Relaxed);
    }
    proxy.release();
}

#[test]
fn no_block_of_a_group_of_threads_is_resolved_wrongly_however_late_its_bytes_arrive() {
    rediscope_testing::own_process!(alone);
    let groups = rediscope_testing::soak::number("REDISCOPE_GROUP_CUTS").unwrap_or(120);
    let (server, ledger) = (Server::start(), Ledger::default());
    let mut rng = Rng::with_seed(rediscope_testing::soak::seed());
    thread::scope(|scope| {
        for nth in 0..WORKERS {
            let (rng, server, ledger) = (rng.fork(), &server, &ledger);
            scope.spawn(move || worker(nth, groups.div_ceil(WORKERS), server, ledger, rng));
        }
    });
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let ends = ledger.ends.into_inner().unwrap();
    println!(
        "{} groups, {} cuts, {} blocks, {} asked elsewhere, {} committed",
        of(&ledger.groups),
        of(&ledger.cuts),
        ends.len(),
        of(&ledger.asked),
        ends.iter().filter(|(_, applied)| *applied).count()
    );
    assert!(of(&ledger.cuts) > groups / 4, "too few cuts to mean anything");
    let unknown = ledger.unknown.into_inner().unwrap();
    assert!(unknown.is_empty(), "{} unknown: {unknown:?}", unknown.len());
    wait_for_late_bytes(&server);
    let wrong = wrong(&server, &ends);
    assert!(wrong.is_empty(), "{} wrong: {wrong:?}", wrong.len());
}
