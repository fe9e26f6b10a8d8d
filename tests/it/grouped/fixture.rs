//! One server, a proxy before it, a pool of one connection, and blocks that wait for it.

use crate::fixture::{Fixture, SOON};
use std::thread;
use std::time::Duration;

use rediscope::{Builder, Error, Transaction, TransactionOptions, Transactional, prelude::*};

use rediscope_testing::eventually;

/// One caller: what it does with the grouped handle.
pub(crate) type Call<'c, T> = Box<dyn FnOnce(&Transactional) -> Result<T, Error> + Send + 'c>;

pub(crate) fn start() -> Fixture {
    start_with(|builder| builder)
}

pub(crate) fn start_with(change: impl FnOnce(Builder) -> Builder) -> Fixture {
    Fixture::new(|builder| change(timeouts(builder)))
}

/// The settings of these tests.
pub(crate) fn timeouts(builder: Builder) -> Builder {
    builder
        .connect_timeout(Duration::from_secs(2))
        .response_timeout(Duration::from_millis(900))
        .checkout_timeout(SOON)
        // However slow the machine, the connection that the guard gave back is trusted.
        .trust_window(SOON)
}

impl Fixture {
    pub(crate) fn grouped(&self) -> Transactional {
        self.sessions.transactional().with(TransactionOptions::new().grouped())
    }

    /// Makes all calls wait in this order for the one connection, runs `before`, then gives the
    /// connection back. Returns the results in the same order.
    pub(crate) fn at_once<T: Send>(
        &self,
        calls: Vec<Call<'_, T>>,
        before: impl FnOnce(),
    ) -> Vec<Result<T, Error>> {
        // The connection is open, and has just replied.
        self.sessions.transactional().run(|tx| Ok(tx.exists("nothing"))).unwrap();
        self.at_once_held(|| self.sessions.transactional().begin().unwrap(), calls, before)
    }

    /// The same behind this guard.
    pub(crate) fn at_once_held<T: Send>(
        &self,
        hold: impl FnOnce() -> Transaction,
        calls: Vec<Call<'_, T>>,
        before: impl FnOnce(),
    ) -> Vec<Result<T, Error>> {
        let grouped = self.grouped();
        let held = hold();
        self.proxy.take_journal();
        thread::scope(|scope| {
            let calling: Vec<_> = calls
                .into_iter()
                .enumerate()
                .map(|(nth, call)| {
                    let grouped = &grouped;
                    let calling = scope.spawn(move || call(grouped));
                    let waiting = || self.sessions.status().transactional.waiting;
                    eventually(SOON, "the next one waits", || waiting() == nth + 1);
                    calling
                })
                .collect();
            before();
            drop(held);
            calling.into_iter().map(|calling| calling.join().unwrap()).collect()
        })
    }

    pub(crate) fn list(&self, key: &str) -> Vec<String> {
        self.server.ask(&["LRANGE", key, "0", "-1"])
    }
}

/// A block that appends its number to the list, and returns the list's length.
pub(crate) fn push<'c>(number: usize) -> Call<'c, i64> {
    Box::new(move |handle| handle.run(|tx| Ok(tx.rpush("list", number))))
}
