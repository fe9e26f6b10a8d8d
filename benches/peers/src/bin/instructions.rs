//! N transactions of two INCRs, on a private server, for callgrind: `instructions WHAT N`, where
//! WHAT is `run` (rediscope) or `pipe` (redis-rs's atomic pipeline behind r2d2, no check).
//! The difference between two N, divided by the difference of the N, is the cost of one.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a measuring program")]

use std::time::Duration;

use rediscope::SessionManager;
use rediscope_peers::server::{Server, Via};
use rediscope_peers::tens;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().expect("run or pipe");
    let count: usize = arguments.next().and_then(|count| count.parse().ok()).expect("a number");
    let server = Server::start();
    match what.as_str() {
        "run" => {
            let sessions = SessionManager::builder(server.info(Via::Tcp))
                .max_size(8)
                // Under valgrind a transaction may take longer than 5 ms; the form is to stay the same.
                .trust_window(Duration::from_secs(60))
                .build()
                .expect("settings that work");
            let transactional = sessions.transactional();
            for _ in 0..count {
                tens::run_two(&transactional);
            }
        }
        "pipe" => {
            let pool = r2d2::Pool::builder()
                .max_size(8)
                .test_on_check_out(false)
                .build(server.client(Via::Tcp))
                .expect("a pool");
            for _ in 0..count {
                tens::pipe_two(&pool);
            }
        }
        other => panic!("unknown: {other}"),
    }
}
