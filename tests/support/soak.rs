//! What the soaks share: one at a time, by a seed that is told.

use std::sync::{Mutex, PoisonError};

/// What a run without REDISCOPE_SOAK_SEED is made of.
const SEED: u64 = 1;

/// Each of these takes the whole machine, and its timeouts are short.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs one that no other one of the same program runs beside.
pub fn alone<T>(test: impl FnOnce(u64) -> T) -> T {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = number("REDISCOPE_SOAK_SEED").unwrap_or(SEED);
    println!("REDISCOPE_SOAK_SEED={seed}");
    test(seed)
}

/// The number in an environment variable, where there is one.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number in the variable"))
}
