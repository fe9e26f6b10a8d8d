//! The report and the error of a dry pool, as `docs/operations.md` shows them.
//!
//! Guarantee: none

use std::thread;
use std::time::Duration;

use rediscope::{SessionManager, TransactionOptions, prelude::*};

use super::sample::{Log, abridged, block};
use crate::fixture::SOON;
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

/// Numbers, places, times and threads differ from run to run: each is one sign.
fn form(text: &str) -> String {
    let mut form = String::new();
    for word in text.split_whitespace() {
        let (lead, word) = word.strip_prefix('(').map_or(("", word), |word| ("(", word));
        let digits = word.starts_with(|c: char| c.is_ascii_digit());
        let tail = word.trim_start_matches(|c: char| !matches!(c, ',' | ';' | ':' | ')'));
        form += lead;
        form += match word {
            _ if word.starts_with("src/") || word.starts_with("tests/") => "<place>",
            _ if word.starts_with("127.0.0.1:") => "<address>",
            _ if word.starts_with('"') && !word.starts_with("\"place") => "<thread>",
            _ if digits => "<number>",
            _ => word,
        };
        if digits && !word.starts_with("127.0.0.1:") {
            form += tail.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        form.push(' ');
    }
    form
}

/// The lines of a report, each once.
fn lines(report: &[String]) -> Vec<String> {
    let mut lines: Vec<_> = report.iter().map(|line| form(line)).collect();
    lines.dedup();
    lines
}

#[test]
fn a_dry_pool_and_its_report_look_as_the_page_shows_them() {
    rediscope_testing::own_process!();
    let _log = Log::listen();
    let server = Server::start();
    let sessions = SessionManager::builder(server.url())
        .max_size(3)
        .connect_timeout(Duration::from_millis(300))
        .response_timeout(Duration::from_millis(300))
        .checkout_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let _: i64 = rediscope::redis::cmd("INCR").arg("n").query(&mut sessions.pooled()).unwrap();
    let accounts = sessions.transactional().with(TransactionOptions::new().name("place order"));
    // One scope that is closed first, for the reason of a closed connection.
    drop(accounts.begin().unwrap());
    server.kill_all_clients_except_me();
    accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let held: Vec<_> = (0..3).map(|_| accounts.begin().unwrap()).collect();
    let waiting = thread::spawn(move || accounts.begin().unwrap_err());
    eventually(SOON, "it waits", || sessions.status().transactional.waiting == 1);
    let report = sessions.status().to_string();
    let error = format!("{:#}", waiting.join().unwrap());
    drop(held);

    let shown = lines(&block("operations", "one report:"));
    let report: Vec<_> = report.lines().map(str::to_owned).collect();
    assert_eq!(shown, abridged(&lines(&report), &shown), "{}", report.join("\n"));
    let shown = block("operations", "is written to be enough:").join(" ");
    assert_eq!(form(&shown), form(&error), "{error}");
}
