//! Connections that died while idle: the caller does not notice. (`busy` has those in use.)
//!
//! Guarantee: dead-connections

use crate::fixture::{Fixture, SOON};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::side::{LANES, SessionManager, open_lanes, open_pooled_lanes};
use rediscope::Error;
use rediscope::prelude::*;

use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

const CONNECTIONS: u32 = 8;
const RESPONSE: Duration = Duration::from_millis(700);
const CHECKOUT: Duration = Duration::from_secs(6);
/// The default `trust_window`.
const WINDOW: Duration = Duration::from_millis(5);

/// How all idle connections of a pool die at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// The server's own `timeout`.
    Timeout,
    ClientKill,
    Sigterm,
    Sigkill,
    Reset,
    /// Nothing passes, and neither side notices.
    BlackHole,
    /// The server's side is gone; the client received no FIN, and no reply comes.
    HalfOpen,
}

#[derive(Debug, Clone, Copy)]
enum Use {
    Run,
    Guard,
    WatchRun,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Together,
    OneByOne,
}

/// Two pools of idle connections, all older than the trust window.
fn with_idle_connections() -> Fixture {
    let fixture = Fixture::new(|builder| {
        builder.max_size(CONNECTIONS).response_timeout(RESPONSE).checkout_timeout(CHECKOUT)
    });
    let accounts = fixture.sessions.transactional();
    let scopes: Vec<_> = (0..CONNECTIONS).map(|_| accounts.begin().unwrap()).collect();
    drop(scopes);
    crate::side::settled(&fixture.sessions);
    // As many commands at a time as connections: each one blocks its own for a while.
    eventually(SOON, "every pooled connection is open", || {
        together(CONNECTIONS, |_| {
            let none: Option<(String, String)> =
                fixture.sessions.pooled().blpop("none", 0.1).map_err(Error::from)?;
            assert_eq!(none, None);
            Ok(())
        });
        fixture.sessions.status().pooled.idle == CONNECTIONS
    });
    open_lanes(&fixture.sessions, "none");
    open_pooled_lanes(&fixture.sessions, "none");
    let quiet = Instant::now();
    eventually(SOON, "the trust window is over", || quiet.elapsed() > 10 * WINDOW);
    let status = fixture.sessions.status();
    assert_eq!((status.pooled.idle, status.transactional.idle), (CONNECTIONS, CONNECTIONS));
    fixture
}

impl Fixture {
    fn kill(&self, death: Death) {
        match death {
            Death::Timeout => {
                self.server.config_set("timeout", "1");
                self.all_gone();
                self.server.config_set("timeout", "0");
            }
            Death::ClientKill => {
                let killed = self.server.kill_all_clients_except_me();
                assert_eq!(killed, 2 * (CONNECTIONS as usize + LANES));
                self.all_gone();
            }
            Death::Sigterm => self.server.restart_on_same_port(),
            Death::Sigkill => {
                self.server.sigkill();
                self.server.restart_on_same_port();
            }
            Death::Reset => self.proxy.reset_all(),
            Death::BlackHole => self.proxy.black_hole_all(),
            Death::HalfOpen => {
                self.proxy.arm((Trigger::Now, Fault::CutServerSide));
                self.proxy.disarm();
                self.all_gone();
            }
        }
    }

    fn all_gone(&self) {
        eventually(SOON, "the server has no client", || self.server.clients() == 0);
    }
}

/// Calls `work` on so many threads at once and returns what went wrong.
fn together(threads: u32, work: impl Fn(u32) -> Result<(), Error> + Sync) -> Vec<String> {
    let start = Barrier::new(threads as usize);
    thread::scope(|scope| {
        let call = |nth| {
            let (start, work) = (&start, &work);
            scope.spawn(move || {
                start.wait();
                work(nth).err().map(|error| error.to_string())
            })
        };
        let running: Vec<_> = (0..threads).map(call).collect();
        running.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    })
}

fn transaction(sessions: &SessionManager, how: Use) -> Result<(), Error> {
    let accounts = sessions.transactional();
    match how {
        Use::Run => {
            accounts.run(|tx| Ok(tx.incr("scopes", 1)))?;
        }
        Use::Guard => {
            let mut tx = accounts.begin()?;
            tx.incr("scopes", 1);
            tx.commit()?;
        }
        Use::WatchRun => {
            accounts.watch(["watched"]).run(|read, tx| {
                let _: Option<String> = read.get("watched")?;
                Ok(tx.incr("scopes", 1))
            })?;
        }
    }
    Ok(())
}

fn command(sessions: &SessionManager, nth: u32) -> Result<(), Error> {
    let (mut db, mut pipe) = (sessions.pooled(), redis::pipe());
    match nth % 4 {
        0 => db.incr::<_, _, ()>("commands", 1)?,
        1 => assert_eq!(db.get::<_, Option<String>>("none")?, None),
        // These have a connection alone.
        2 => pipe.incr("commands", 1).get("none").exec(&mut db)?,
        _ => pipe.get("none").get("none").exec(&mut db)?,
    }
    Ok(())
}

/// The next scopes and the next commands after all idle connections have died.
fn absorbs(death: Death, how: Use, order: Order) {
    let fixture = with_idle_connections();
    let Fixture { server, sessions, .. } = &fixture;
    fixture.kill(death);
    let begun = Instant::now();
    let timed = |pool: &str, work: &(dyn Fn(u32) -> Result<(), Error> + Sync)| {
        let errors = match order {
            Order::Together => together(CONNECTIONS, work),
            Order::OneByOne => {
                (0..CONNECTIONS).filter_map(|nth| work(nth).err().map(|e| e.to_string())).collect()
            }
        };
        assert!(errors.is_empty(), "{death:?}, {how:?}, {order:?}, {pool}: {errors:?}");
        let bound = match death {
            // One silence for all of them, not one each.
            Death::BlackHole | Death::HalfOpen => (CONNECTIONS - 2) * RESPONSE,
            _ => CHECKOUT,
        };
        assert!(begun.elapsed() < bound, "{death:?}, {how:?}, {pool}: {:?}", begun.elapsed());
    };
    thread::scope(|scope| {
        scope.spawn(|| timed("commands", &|nth| command(sessions, nth)));
        timed("scopes", &|_| transaction(sessions, how));
    });
    let applied: (u32, u32) = server.ask(&["MGET", "scopes", "commands"]);
    assert_eq!(applied, (CONNECTIONS, CONNECTIONS / 2), "{death:?}, {how:?}");
    crate::side::settled(sessions);
    let status = sessions.status();
    assert_eq!((status.pooled.in_use, status.transactional.in_use), (0, 0), "{status}");
    assert_eq!(status.transactional.counts.in_doubt, 0, "{status}");
}

fn absorbs_in_every_way(death: Death) {
    thread::scope(|scope| {
        for (how, order) in [
            (Use::Run, Order::Together),
            (Use::Guard, Order::Together),
            (Use::WatchRun, Order::Together),
            (Use::Run, Order::OneByOne),
        ] {
            scope.spawn(move || absorbs(death, how, order));
        }
    });
}

#[test]
fn idle_connections_that_the_server_timed_out_are_absorbed() {
    absorbs_in_every_way(Death::Timeout);
}

#[test]
fn idle_connections_that_were_killed_by_an_operator_are_absorbed() {
    absorbs_in_every_way(Death::ClientKill);
}

#[test]
fn an_orderly_restart_is_absorbed() {
    absorbs_in_every_way(Death::Sigterm);
}

#[test]
fn a_crash_and_restart_is_absorbed() {
    absorbs_in_every_way(Death::Sigkill);
}

#[test]
fn reset_idle_connections_are_absorbed() {
    absorbs_in_every_way(Death::Reset);
}

#[test]
fn a_black_hole_is_absorbed_and_costs_one_response_timeout_for_all_connections() {
    absorbs_in_every_way(Death::BlackHole);
}

#[test]
fn half_open_connections_are_absorbed_and_cost_one_response_timeout_for_all_of_them() {
    absorbs_in_every_way(Death::HalfOpen);
}
