//! The soak: a million transactions, of which a tenth is dropped and some panic. It leaks nothing.
//!
//! ```text
//! cargo run --release -p rediscope-examples --bin soak
//! cargo run --release -p rediscope-examples --bin soak -- --transactions 10000000 --threads 128
//! ```
//!
//! It starts a Redis server of its own ($REDIS_SERVER, or `redis-server` on the PATH), runs the
//! load on a pool of 8 and prints one table. It exits non-zero unless all of this holds afterwards:
//! at most 8 connections on the server, none in use, no error, exact sums, and memory that grew by
//! less than 5 MB. The seed decides what each transaction does, but not which of them conflict.

mod load;

use std::error::Error;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use rediscope_examples::args;
use rediscope_examples::server::PrivateServer;

use load::Plan;

const TRANSACTIONS: u64 = 1_000_000;
const THREADS: u64 = 64;
/// Bound on the growth of resident memory, in bytes, from the first to the last tenth of the run.
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
