//! One server, a proxy in front of it, a pool of one connection, and blocks that wait for it.

use crate::fixture::SOON;
use std::thread;
use std::time::Duration;

use rediscope::{Builder, Error, SessionManager, TransactionOptions, Transactional, prelude::*};

use rediscope_testing::eventually;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) sessions: SessionManager,
}

/// One caller: what it does with the grouped handle.
pub(crate) type Call<'c, T> = Box<dyn FnOnce(&Transactional) -> Result<T, Error> + Send + 'c>;

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(change: impl FnOnce(Builder) -> Builder) -> Self {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let url = proxy.url();
        Self::on(server, proxy, &url, change)
    }

    pub(crate) fn on(
        server: Server,
        proxy: Proxy,
        url: &str,
        change: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let builder = SessionManager::builder(url)
            .max_size(1)
            .connect_timeout(Duration::from_secs(2))
            .response_timeout(Duration::from_millis(900))
            .checkout_timeout(SOON)
            // However slow the machine, the link that the guard gave back is one that was just used.
            .trust_window(SOON);
        let sessions = change(builder).build().unwrap();
        Self { server, proxy, sessions }
    }

    pub(crate) fn grouped(&self) -> Transactional {
        self.sessions.transactional().with(TransactionOptions::new().grouped())
    }

    /// Has all calls wait in this order for the one connection, lets `before` happen, then lets go
    /// of the connection. Answers in the same order.
    pub(crate) fn at_once<T: Send>(
        &self,
        calls: Vec<Call<'_, T>>,
        before: impl FnOnce(),
    ) -> Vec<Result<T, Error>> {
        let grouped = self.grouped();
        // The link is opened, and has just answered.
        self.sessions.transactional().run(|tx| Ok(tx.exists("nothing"))).unwrap();
        let held = self.sessions.transactional().begin().unwrap();
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

    /// The names of the commands that the proxy has seen since it was last asked.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.proxy.take_journal().into_iter().map(|(_, word)| word.to_uppercase()).collect()
    }

    pub(crate) fn list(&self, key: &str) -> Vec<String> {
        self.server.ask(&["LRANGE", key, "0", "-1"])
    }
}

/// A block that leaves its number in the list, and answers the list's length.
pub(crate) fn push<'c>(number: usize) -> Call<'c, i64> {
    Box::new(move |handle| handle.run(|tx| Ok(tx.rpush("list", number))))
}
