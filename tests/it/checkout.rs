//! Checking out and in: the order in which callers are served, the error of a caller that is not, how
//! a pool survives a server that goes, comes back, changes its role or falls silent, and how a
//! session ends.

mod blocking;
mod close;
// Its token is read by serde.
#[cfg(feature = "serde")]
mod fork;
mod names;
mod order;
pub(crate) mod server;
mod shipping;

use crate::fixture::SOON;
use std::time::Duration;

use rediscope::{Begin, Builder, SessionManager, TransactionOptions, Transactional, prelude::*};
use rediscope_testing::server::Server;

/// What a loaded machine may add to a deadline.
pub(crate) const SLACK: Duration = Duration::from_secs(4);

pub(crate) const CHECKOUT: Duration = Duration::from_millis(800);

pub(crate) const RESPONSE: Duration = Duration::from_millis(250);

pub(crate) const CLEANUP: Duration = Duration::from_millis(150);

pub(crate) fn patient(server: &Server) -> Builder {
    SessionManager::builder(server.url()).checkout_timeout(SOON)
}

pub(crate) fn fail_fast(server: &Server) -> Builder {
    quick(SessionManager::builder(server.url()))
}

pub(crate) fn quick(builder: Builder) -> Builder {
    builder
        .connect_timeout(RESPONSE)
        .response_timeout(RESPONSE)
        .cleanup_timeout(CLEANUP)
        .checkout_timeout(CHECKOUT)
}

pub(crate) fn immediate() -> TransactionOptions {
    TransactionOptions::new().begin(Begin::Immediate)
}

/// Opens so many connections and leaves them idle, each of them used once.
pub(crate) fn open_links(accounts: &Transactional, count: usize) {
    let guards: Vec<_> = (0..count)
        .map(|nth| {
            let mut tx = accounts.begin_with(immediate()).unwrap();
            tx.get::<_, ()>(format!("link:{nth}"));
            tx
        })
        .collect();
    guards.into_iter().for_each(|tx| drop(tx.commit().unwrap()));
}
