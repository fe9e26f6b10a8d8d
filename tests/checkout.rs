//! Checking out and in: who is served when, what a caller is told who is not, how a pool survives a
//! server that goes, comes back, changes its role or falls silent, and how a session ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod checkout {
    mod blocking;
    mod close;
    // Its token is read by serde.
    #[cfg(feature = "serde")]
    mod fork;
    mod names;
    mod order;
    mod server;
    mod shipping;
    mod silence;
}

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use rediscope::{Begin, Builder, SessionManager, TransactionOptions, Transactional, prelude::*};
use support::server::Server;

/// Longer than anything takes that is going to happen at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a loaded machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(4);

const HOUR: Duration = Duration::from_secs(3600);

const TRUST: Duration = Duration::from_millis(5);

const CHECKOUT: Duration = Duration::from_millis(800);

const RESPONSE: Duration = Duration::from_millis(250);

const CLEANUP: Duration = Duration::from_millis(150);

fn patient(server: &Server) -> Builder {
    SessionManager::builder(server.url()).checkout_timeout(PATIENCE)
}

fn impatient(server: &Server) -> Builder {
    quick(SessionManager::builder(server.url()))
}

fn quick(builder: Builder) -> Builder {
    builder
        .connect_timeout(RESPONSE)
        .response_timeout(RESPONSE)
        .cleanup_timeout(CLEANUP)
        .checkout_timeout(CHECKOUT)
}

fn immediate() -> TransactionOptions {
    TransactionOptions::new().begin(Begin::Immediate)
}

/// Opens so many connections and leaves them idle, each of them used once.
fn open_links(accounts: &Transactional, count: usize) {
    let guards: Vec<_> = (0..count)
        .map(|nth| {
            let mut tx = accounts.begin_with(immediate()).unwrap();
            tx.get::<_, ()>(format!("link:{nth}"));
            tx
        })
        .collect();
    guards.into_iter().for_each(|tx| drop(tx.commit().unwrap()));
}

static HOUSE: RwLock<()> = RwLock::new(());

/// For a test that does not mind others at the same time.
fn beside_others() -> RwLockReadGuard<'static, ()> {
    HOUSE.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// For one that counts what all of the process has.
fn alone() -> RwLockWriteGuard<'static, ()> {
    HOUSE.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}
