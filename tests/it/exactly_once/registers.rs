//! The cost of exactly-once commits on the server: one small register a connection, for a while.
//!
//! Guarantee: exactly-once

use super::fixture::{start, start_with};
use crate::fixture::{Fixture, OF_ONE, add_on_each, unhurried};
use std::time::Duration;

use rediscope::TransactionOptions;
use rediscope::prelude::*;

/// Bytes, key and expiry included; the number is in the documentation.
const REGISTER: i64 = 256;
/// The same for the key of [`TransactionOptions::exactly_once_as`], with a key of 36 bytes.
const ONCE: i64 = 320;

fn memory(fixture: &Fixture, key: &str) -> i64 {
    fixture.server.ask(&["MEMORY", "USAGE", key, "SAMPLES", "0"])
}

#[test]
fn a_register_takes_less_than_256_bytes_however_often_it_is_written() {
    // A timeout would open another connection, with another register.
    let fixture = start_with(&[], unhurried);
    let handle = fixture.armed();
    let most = || fixture.registers().iter().map(|key| memory(&fixture, key)).max().unwrap();
    let fresh = most();
    for _ in 0..1000 {
        add_on_each(&handle, "n");
    }
    assert_eq!(fixture.registers().len(), OF_ONE);
    let used = most();
    println!("a register: {fresh} bytes when new, {used} after 1,000 commits");
    assert!(fresh.max(used) < REGISTER, "{fresh}, {used}");
}

#[test]
fn a_connection_leaves_its_register_to_its_time_to_live() {
    let fixture = start();
    for count in 1..=5 {
        fixture.armed();
        fixture.proxy.cut_all();
        let registers = fixture.registers();
        assert_eq!(registers.len(), count * OF_ONE);
        for register in registers {
            let left: i64 = fixture.server.ask(&["PTTL", &register]);
            assert!((1..=3_600_000).contains(&left), "{left}");
        }
    }
}

#[test]
fn the_key_of_a_deed_takes_less_than_320_bytes() {
    let fixture = start();
    let key = "00000000-0000-4000-8000-000000000000";
    let once = TransactionOptions::new().exactly_once_as(key, Duration::from_secs(60));
    fixture.sessions.transactional().with(once).run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let used = memory(&fixture, &format!("rediscope:once:{key}"));
    println!("the record of one idempotency key: {used} bytes");
    assert!(used < ONCE, "{used}");
}
