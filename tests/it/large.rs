//! Large transactions: sent ahead in chunks, so that the client does not hold them.
//!
//! Memory is measured for the whole process, so the test has one of its own.
//!
//! Guarantee: large

use std::fs;

use rediscope::{Replies, SessionManager, Transactional, prelude::*};
use rediscope_testing::server::Server;

const COMMANDS: usize = 200_000;
const VALUE: usize = 1024;
/// Number of keys, written over and over: the server is to hold the commands, not the data.
const KEYS: usize = 100;
const MIB: u64 = 1024 * 1024;
/// A fifth of what is sent. The replies take the most of it.
const MOST: u64 = 40 * MIB;

#[test]
fn two_hundred_megabytes_are_applied_without_being_held() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let accounts = sessions.transactional();
    accounts.run(|tx| Ok(tx.set("warm", 1))).unwrap();

    for (nth, (form, send)) in FORMS.into_iter().enumerate() {
        let before = resident();
        let applied = send(&accounts, &format!("{form}:"));
        let peak = highest();
        assert_eq!(applied, COMMANDS, "{form}");
        if let (Some(before), Some(peak)) = (before, peak) {
            let grown = peak.saturating_sub(before);
            println!("{form}: {} MiB", grown / MIB);
            assert!(grown < MOST, "{form}: {} MiB more than before", grown / MIB);
        } else if cfg!(target_os = "linux") {
            panic!("Linux has the memory of a process");
        }
        let exec: u64 = server.calls("exec");
        assert_eq!(exec, nth as u64 + 2, "{form}: one transaction, and the one before");
        for key in 0..KEYS {
            let held: String = server.ask(&["GET", &format!("{form}:{key}")]);
            assert_eq!(held, value(COMMANDS - KEYS + key), "{form}: the last value of {key}");
        }
        let status = sessions.status().transactional;
        assert_eq!((status.counts.connects, status.counts.retries), (1, 0), "{status}");
    }

    // The measure sees a transaction that is held: this one may keep everything.
    let holding = SessionManager::builder(server.url()).flush_bytes(usize::MAX).build().unwrap();
    let mut tx = holding.transactional().begin().unwrap();
    let before = resident();
    fill(&mut tx, "held:", 2 * MOST as usize / VALUE);
    if let (Some(before), Some(peak)) = (before, highest()) {
        assert!(peak - before > MOST, "80 MiB are held, and only {} seen", (peak - before) / MIB);
    }
}

type Send = fn(&Transactional, &str) -> usize;

const FORMS: [(&str, Send); 2] = [
    ("guard", |accounts, prefix| {
        let mut tx = accounts.begin().unwrap();
        fill(&mut tx, prefix, COMMANDS);
        let marker = tx.incr(format!("{prefix}marker"), 1);
        let replies: Replies = tx.commit().unwrap();
        assert_eq!(replies.get(marker).unwrap(), 1, "the last handle has its own reply");
        replies.len() - 1
    }),
    ("block", |accounts, prefix| {
        let (first, last) = accounts
            .run(|tx| {
                let first = tx.incr(format!("{prefix}marker"), 1);
                fill(tx, prefix, COMMANDS);
                Ok((first, tx.incr(format!("{prefix}marker"), 1)))
            })
            .unwrap();
        assert_eq!((first, last), (1, 2));
        COMMANDS
    }),
];

/// Each key is written in turn; its last value proves that the last command was applied.
fn fill(tx: &mut impl QueueCommands, prefix: &str, commands: usize) {
    for nth in 0..commands {
        tx.set(format!("{prefix}{}", nth % KEYS), value(nth));
    }
}

fn value(nth: usize) -> String {
    format!("{nth:0VALUE$}")
}

fn resident() -> Option<u64> {
    // From here on the highest mark is this phase's own, where the kernel lets it be reset.
    let _ = fs::write("/proc/self/clear_refs", "5");
    rediscope_testing::rss_bytes()
}

/// The most this process has held since, or ever.
fn highest() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
