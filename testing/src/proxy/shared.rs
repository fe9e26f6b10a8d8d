//! What all connections of a proxy share: counters, the journal of commands, latency.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::resp::Direction;

/// Number of commands that the journal keeps, the newest ones, which bounds its memory.
const JOURNAL: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) accepted: AtomicU64,
    pub(super) fired: AtomicUsize,
    pub(super) turns: AtomicU64,
    pub(super) commands: AtomicU64,
    pub(super) bytes: [AtomicU64; 2],
    pub(super) latency_micros: [AtomicU64; 2],
    journal: Mutex<VecDeque<(u64, String)>>,
}

impl Shared {
    pub(super) fn latency(&self, direction: Direction) -> Duration {
        Duration::from_micros(self.latency_micros[direction as usize].load(Ordering::SeqCst))
    }

    pub(super) fn bytes_go(&self, direction: Direction, count: usize) {
        self.bytes[direction as usize].fetch_add(count as u64, Ordering::SeqCst);
    }

    pub(super) fn turn_begins(&self) {
        self.turns.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn fault_fires(&self) {
        self.fired.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn command_goes(&self, connection: u64, name: &str) {
        self.commands.fetch_add(1, Ordering::SeqCst);
        let mut journal = self.journal.lock().unwrap();
        if journal.len() == JOURNAL {
            journal.pop_front();
        }
        journal.push_back((connection, name.to_owned()));
    }

    pub(super) fn take_journal(&self) -> Vec<(u64, String)> {
        self.journal.lock().unwrap().drain(..).collect()
    }
}
