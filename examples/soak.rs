//! The soak: a million transactions, a tenth of them dropped and some of them panicking, and the
//! pool is as it was.
//!
//! ```text
//! cargo run --release --example soak
//! cargo run --release --example soak -- --transactions 10000000 --threads 128 --seed 7
//! ```
//!
//! It starts a Redis server of its own ($REDIS_SERVER, or `redis-server` on the PATH), runs the
//! load on a pool of 8 and prints one table. It exits non-zero when anything that has to be true
//! is not: at most 8 connections on the server once quiet, none in use, no error, sums that are
//! exact to the last unit, and less than 5 MB of memory more at the end than at the beginning.
//! The seed decides what each transaction does; which of them meet is up to the threads.

#[path = "support/args.rs"]
mod args;
#[path = "support/keys.rs"]
mod keys;
#[path = "soak/load.rs"]
mod load;
#[path = "support/server.rs"]
mod server;

use std::error::Error;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};

use load::Plan;
use server::PrivateServer;

const TRANSACTIONS: u64 = 1_000_000;
const THREADS: u64 = 64;
/// By how much resident memory may grow from the first to the last tenth of a million.
const GROWTH: i64 = 5_000_000;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let [transactions, threads, seed] = args::numbers([
        ("--transactions", TRANSACTIONS),
        ("--threads", THREADS),
        ("--seed", fastrand::u64(..)),
    ])?;
    let plan = Plan { transactions, threads: threads.max(1), seed };
    println!("--transactions {transactions} --threads {} --seed {seed}", plan.threads);
    let server = PrivateServer::start()?;
    let bar = ProgressBar::new(transactions).with_style(ProgressStyle::with_template(
        "{bar:40} {human_pos} of {human_len}, {eta} left",
    )?);
    let mut figures = load::run(&server.url(), plan, |number| bar.set_position(number))?;
    bar.finish_and_clear();
    if let Some(growth) = figures.growth().filter(|growth| *growth >= GROWTH) {
        figures.broken.push(format!("memory grew by {growth} bytes"));
    }
    println!("{figures}");
    Ok(if figures.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
