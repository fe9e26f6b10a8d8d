//! Masters are killed, frozen and replaced under 16 writers. What anybody was told must be what the
//! surviving master holds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::prelude::*;
use rediscope::{
    CheckoutError, CommitError, Error, Resolution, SessionManager, TransactionOptions,
};

use crate::support::sentinel::{Group, clients};
use crate::support::{eventually, try_for};

const WRITERS: u64 = 16;
const SOON: Duration = Duration::from_secs(60);
const CHECKOUT: Duration = Duration::from_secs(4);
/// How far past its deadline a checkout error may be told, on a machine that does much else.
const LATE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Kill,
    Stop,
    Order,
}

/// What one transaction was told: an element of one list was added in it.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    There,
    NotThere,
    /// Applied on a server that not enough others follow.
    Unsafe,
    Unknown,
}

fn rounds() -> u64 {
    std::env::var("REDISCOPE_FAILOVERS").map_or(1, |text| text.parse().unwrap())
}

#[test]
fn whatever_replaces_the_master_nobody_is_told_what_the_survivor_does_not_hold() {
    for round in 0..rounds() {
        for trouble in [Trouble::Kill, Trouble::Stop, Trouble::Order] {
            survive(round, trouble);
        }
    }
}

fn survive(round: u64, trouble: Trouble) {
    let group = Group::start();
    let sessions = SessionManager::builder(group.url())
        .response_timeout(Duration::from_millis(800))
        .checkout_timeout(CHECKOUT)
        .build()
        .unwrap();
    let options =
        TransactionOptions::new().exactly_once().wait_replicas(2, Duration::from_millis(500));
    let once = sessions.transactional().with(options);
    let (over, committed) = (AtomicBool::new(false), AtomicU64::new(0));
    let former = &group.servers[0];
    let begun = Instant::now();
    let books: Vec<(String, Told)> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (once, over, committed, sessions) = (&once, &over, &committed, &sessions);
                scope.spawn(move || {
                    let mut told = Vec::new();
                    for nth in 0..100_000 {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        let id = format!("{writer}:{nth}");
                        let answer = write(sessions, once, &id);
                        let good = matches!(answer, Told::There | Told::Unsafe);
                        committed.fetch_add(u64::from(good), Ordering::Relaxed);
                        told.push((id, answer));
                    }
                    told
                })
            })
            .collect();
        let grows = |by: u64| {
            let enough = committed.load(Ordering::Relaxed) + by;
            eventually(SOON, "the writers write", || committed.load(Ordering::Relaxed) >= enough);
        };
        grows(200);
        match trouble {
            Trouble::Kill => former.sigkill(),
            Trouble::Stop => former.sigstop(),
            Trouble::Order => group.fail_over(),
        }
        let successor = group.successor_of(former.port());
        match trouble {
            Trouble::Kill => former.restart_on_same_port(),
            Trouble::Stop => former.sigcont(),
            Trouble::Order => {}
        }
        let port = format!(":{}", successor.port());
        eventually(SOON, "the switch is known", || sessions.status().server.ends_with(&port));
        eventually(Duration::from_secs(2), "no connection to the former master is left", || {
            clients(former) == 0
        });
        grows(200);
        over.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().expect("a writer died")).collect()
    });
    sessions.close(Duration::ZERO);
    let survivor = group.successor_of(former.port());
    let mut there = BTreeMap::<String, u64>::new();
    for id in survivor.ask::<Vec<String>>(&["LRANGE", "done", "0", "-1"]) {
        *there.entry(id).or_default() += 1;
    }
    let count = |wanted: &Told| books.iter().filter(|(_, told)| told == wanted).count();
    println!(
        "| {round} | {trouble:?} | {} there | {} not there | {} with too few replicas | {} unknown | {:.1} s |",
        count(&Told::There),
        count(&Told::NotThere),
        count(&Told::Unsafe),
        count(&Told::Unknown),
        begun.elapsed().as_secs_f64()
    );
    let wrong: Vec<_> = books
        .iter()
        .filter(|(id, told)| {
            let times = there.get(id).copied().unwrap_or(0);
            times > 1 || *told == Told::There && times == 0 || *told == Told::NotThere && times > 0
        })
        .take(20)
        .collect();
    assert!(wrong.is_empty(), "{trouble:?}: {wrong:#?}");
    assert!(count(&Told::There) > 200, "{trouble:?}: too few to prove anything");
}

fn write(sessions: &SessionManager, once: &rediscope::Transactional, id: &str) -> Told {
    let begun = Instant::now();
    let error = match once.run(|tx| Ok(tx.rpush("done", id))) {
        Ok(_) => return Told::There,
        Err(error) => error,
    };
    match &error {
        Error::Checkout(CheckoutError::Connect { .. } | CheckoutError::Timeout(_)) => {
            // Its policy may have repeated it, up to the policy's own deadline.
            let limit = Duration::from_secs(10) + 2 * CHECKOUT + LATE;
            assert!(begun.elapsed() < limit, "{:?}: {error}", begun.elapsed());
            Told::NotThere
        }
        Error::Commit(commit) => match &**commit {
            CommitError::NotReplicated { .. } => Told::Unsafe,
            CommitError::NotSent { source, .. } if matches!(**source, Error::Checkout(_)) => {
                Told::NotThere
            }
            CommitError::InDoubt(doubt) => {
                let resolved = doubt.token().and_then(|token| {
                    try_for(SOON, || match sessions.resolve(token) {
                        Resolution::StillUnknown { .. } => None,
                        known => Some(known),
                    })
                });
                match resolved {
                    Some(Resolution::NotCommitted) => Told::NotThere,
                    // Applied, but nobody knows on how many.
                    Some(Resolution::Committed) => Told::Unsafe,
                    _ => Told::Unknown,
                }
            }
            _ => panic!("{error}"),
        },
        _ => panic!("{error}"),
    }
}
