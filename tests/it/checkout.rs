//! Checkouts: the order in which callers are served, the error of a caller that is not, a pool whose server
//! goes, comes back, changes its role or falls silent, and how a session ends.

mod blocking;
mod close;
// Its token is read by serde.
#[cfg(feature = "serde")]
mod fork;
mod names;
mod order;
mod server;
mod shipping;

use crate::fixture::short_timeouts::short_timeouts;
use crate::fixture::{SOON, immediate};

use rediscope::{Builder, SessionManager, Transactional, prelude::*};
use rediscope_testing::server::Server;

fn patient(server: &Server) -> Builder {
    SessionManager::builder(server.url()).checkout_timeout(SOON)
}

pub(crate) fn fail_fast(server: &Server) -> Builder {
    short_timeouts(SessionManager::builder(server.url()))
}

/// Opens `count` connections and leaves them idle, each of them used once.
fn open_connections(accounts: &Transactional, count: usize) {
    let guards: Vec<_> = (0..count)
        .map(|nth| {
            let mut tx = accounts.begin_with(immediate()).unwrap();
            tx.get::<_, ()>(format!("key:{nth}"));
            tx
        })
        .collect();
    guards.into_iter().for_each(|tx| drop(tx.commit().unwrap()));
}
