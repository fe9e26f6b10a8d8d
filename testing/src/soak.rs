//! What soaks share: a seed that is printed, and numbers from the environment.

/// Seed of a run without REDISCOPE_SOAK_SEED.
const SEED: u64 = 1;

/// The seed of this run, which is printed.
pub fn seed() -> u64 {
    let seed = number("REDISCOPE_SOAK_SEED").unwrap_or(SEED);
    println!("REDISCOPE_SOAK_SEED={seed}");
    seed
}

/// The number in an environment variable, if it is set.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number in the variable"))
}
