//! Runs the whole matrix and prints its size.
//!
//! Guarantee: clean-connections

use crate::fixture::SOON;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

use super::cases::{self, Cell};
use super::fixture::ScopeFixture;
use super::run_case;
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

/// Most of the time goes by while the reaper is waited for.
const WORKERS: usize = 10;

#[test]
fn whatever_the_exit_the_next_caller_finds_the_connection_as_new() {
    let (possible, impossible): (Vec<Cell>, Vec<Cell>) =
        cases::all().partition(|cell| cell.impossible().is_none());
    let queue = Mutex::new(possible.iter());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let server = Server::start();
                loop {
                    let Some(cell) = queue.lock().unwrap().next() else { break };
                    let played = catch_unwind(AssertUnwindSafe(|| play_one(&server, *cell)));
                    if played.is_err() {
                        failed.lock().unwrap().push(*cell);
                    }
                }
            });
        }
    });
    let mut reasons = BTreeMap::<_, usize>::new();
    impossible.iter().for_each(|cell| *reasons.entry(cell.impossible()).or_default() += 1);
    println!("{} cells ran, {} cannot be written:", possible.len(), impossible.len());
    reasons.iter().for_each(|(reason, count)| println!("{count:5}  {}", reason.unwrap()));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} cells failed: {failed:#?}", failed.len());
}

fn play_one(server: &Server, cell: Cell) {
    let mut fixture = ScopeFixture::for_cell(server, cell);
    run_case::play(&fixture, cell);
    fixture.look_at_the_data();
    fixture.borrow_again();
    assert_eq!(fixture.sessions.close(SOON).scopes, 0, "nothing was left to take back");
    eventually(SOON, "the server has no client left", || server.clients() == 0);
}
