//! The fault soak: 64 threads on two pools of 8, and a server and a network that break in every
//! way there is to break them. Whatever each caller was told is compared with the server's ledger.
//!
//! ```text
//! cargo test --test chaos -- --nocapture
//! REDISCOPE_SOAK_SECONDS=600 REDISCOPE_SOAK_SEED=7 cargo test --release --test chaos -- --nocapture
//! ```
//!
//! The seed decides which faults come in which order and what each transaction is; which of them
//! meet is up to the threads.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod support;

mod chaos {
    pub(crate) mod books;
    pub(crate) mod calls;
    pub(crate) mod deeds;
    pub(crate) mod faults;
    pub(crate) mod injector;
    pub(crate) mod load;
    pub(crate) mod report;
    pub(crate) mod soak;
    pub(crate) mod stage;
    pub(crate) mod street;
    pub(crate) mod told;
}

use std::time::Duration;

use chaos::soak::{self, Plan};

const SECONDS: u64 = 20;
const SEED: u64 = 1;

#[test]
fn whatever_breaks_everybody_is_told_what_the_server_did() {
    let number = |name: &str| {
        std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number in the variable"))
    };
    let seconds = number("REDISCOPE_SOAK_SECONDS").unwrap_or(SECONDS);
    let seed = number("REDISCOPE_SOAK_SEED").unwrap_or(SEED);
    println!("REDISCOPE_SOAK_SECONDS={seconds} REDISCOPE_SOAK_SEED={seed}");
    let report = soak::run(Plan { seed, lasts: Duration::from_secs(seconds) });
    println!("\n{report}");
    assert!(report.broken().is_empty(), "{:#?}", report.broken());
}
