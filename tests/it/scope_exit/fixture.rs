//! One pool of one connection, and another connection that reads the server.

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::time::Duration;

use crate::side::{SessionManager, Transactional};
use redis::{Commands, Connection};
use rediscope::{Begin, TransactionOptions, prelude::*};

use super::cases::{Cell, Form};
use rediscope_testing::{connect, eventually, server::Server, unique};

/// Long enough for a busy machine to run the few calls of a cell in it.
const MAX_PIN_TIME: Duration = Duration::from_secs(1);
const DATABASE: u32 = 3;

/// The keys of one cell.
pub(crate) struct Names {
    /// Written by the scope.
    pub(crate) data: String,
    /// Written by a part that is not kept.
    pub(crate) part: String,
    /// Watched by the scope, changed by another client.
    pub(crate) watched: String,
    /// Holds a text, for a command that wants a list.
    pub(crate) text: String,
    probe: String,
}

pub(crate) struct ScopeFixture<'s> {
    pub(crate) server: &'s Server,
    pub(crate) sessions: SessionManager,
    pub(crate) names: Names,
    cell: Cell,
    /// The id of the pool's connection, as the server numbers it.
    client: i64,
    probes: i64,
}

impl<'s> ScopeFixture<'s> {
    pub(crate) fn for_cell(server: &'s Server, cell: Cell) -> Self {
        let trust_window = match cell.form {
            Form::Untrusted => Duration::ZERO,
            _ => Duration::from_secs(3600),
        };
        let max_pin_time = if cell.is_reclaimed() { MAX_PIN_TIME } else { 2 * SOON };
        let sessions = SessionManager::builder(server.url_db(DATABASE))
            .max_size(1)
            .trust_window(trust_window)
            .flush_bytes(if cell.form.is_large() { 512 } else { 64 * 1024 })
            .checkout_timeout(SOON)
            .response_timeout(SOON / 3)
            .cleanup_timeout(SOON / 3)
            .max_pin_time(max_pin_time)
            .build_side()
            .unwrap();
        let names = Names {
            data: unique("data"),
            part: unique("part"),
            watched: unique("watched"),
            text: unique("text"),
            probe: unique("probe"),
        };
        let mut fixture = Self { server, sessions, names, cell, client: 0, probes: 0 };
        let _: () = fixture.elsewhere().set(&fixture.names.text, "a text").unwrap();
        fixture.client = fixture.probe();
        fixture
    }

    pub(crate) fn accounts(&self) -> Transactional {
        match self.cell.form {
            Form::Immediate => self
                .sessions
                .transactional()
                .with(TransactionOptions::new().begin(Begin::Immediate)),
            _ => self.sessions.transactional(),
        }
    }

    /// A connection that has nothing to do with the pool.
    pub(crate) fn elsewhere(&self) -> Connection {
        connect(&self.server.url_db(DATABASE))
    }

    pub(crate) fn touch_watched(&self) {
        let _: i64 = self.elsewhere().incr(&self.names.watched, 1).unwrap();
    }

    pub(crate) fn wait_until_reclaimed(&self) {
        eventually(SOON, "the scope was taken back", || self.in_use() == 0);
    }

    fn in_use(&self) -> u32 {
        self.sessions.status().transactional.in_use
    }

    /// While the scope is open: the connection is pinned, and in MULTI if the form needs it.
    pub(crate) fn look_inside(&self) {
        let is_pinned = self.cell.form != Form::Run;
        assert_eq!(self.in_use(), u32::from(is_pinned), "pinned");
        let in_multi = self.clients_in_multi() > 0;
        assert_eq!(in_multi, self.cell.form.is_in_multi(), "in MULTI while open");
    }

    fn clients_in_multi(&self) -> usize {
        let list = self.server.client_list();
        list.iter().filter(|client| client["multi"] != "-1").count()
    }

    /// Right after the call that ended the scope.
    pub(crate) fn look_at_the_slot(&self) {
        if self.cell.is_reclaimed() {
            self.wait_until_reclaimed();
        }
        if !self.cell.has_call_at_its_end() {
            crate::side::settled(&self.sessions);
        }
        let status = self.sessions.status().transactional;
        assert_eq!((status.in_use, status.waiting), (0, 0), "the slot is back: {status}");
        assert!(status.scopes.is_empty(), "a scope is still known: {status}");
    }

    /// What the scope left on the server.
    pub(crate) fn look_at_the_data(&self) {
        let mut elsewhere = self.elsewhere();
        let applied: bool = elsewhere.exists(&self.names.data).unwrap();
        assert_eq!(applied, self.cell.is_applied(), "applied");
        let part: bool = elsewhere.exists(&self.names.part).unwrap();
        assert!(!part, "a part that was not kept was applied");
    }

    /// What the next caller of the connection finds on it.
    pub(crate) fn borrow_again(&mut self) {
        // Before the connection is used again: what it still watches shows, and would spoil the
        // next transaction.
        self.touch_watched();
        eventually(SOON, "no client is in MULTI", || self.clients_in_multi() == 0);
        // A connection of a task is closed a moment later.
        eventually(SOON, "no client still watches", || {
            self.server.client_list().iter().all(|client| !client["flags"].contains('d'))
        });
        let client = self.probe();
        let replaced = client != self.client;
        assert_eq!(replaced, self.cell.is_replaced(), "replaced");
        let counts = self.sessions.status().transactional.counts;
        assert_eq!(counts.all_replaced(), u64::from(replaced), "{counts}");
        let list = self.server.client_list();
        let of_the_pool = list.iter().find(|known| known["id"] == client.to_string()).unwrap();
        assert_eq!(of_the_pool["db"], DATABASE.to_string());
        assert_eq!(of_the_pool["multi"], "-1");
        let mut elsewhere = connect(&self.server.url());
        assert!(!Commands::exists::<_, bool>(&mut elsewhere, &self.names.probe).unwrap());
    }

    /// A transaction of its own, which nothing repeats; returns the id of the connection.
    fn probe(&mut self) -> i64 {
        let mut tx = self.sessions.transactional().begin().unwrap();
        let id = tx.queue::<i64>(redis::cmd("CLIENT").arg("ID").take());
        let count = tx.incr(&self.names.probe, 1);
        let (id, count) = tx.commit().unwrap().get((id, count)).unwrap();
        self.probes += 1;
        let seen: i64 = self.elsewhere().get(&self.names.probe).unwrap();
        assert_eq!((count, seen), (self.probes, self.probes), "applied once, in database 3");
        id
    }
}
