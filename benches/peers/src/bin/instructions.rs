//! N transactions on a private server, for callgrind: `instructions WHAT N`, where WHAT is the name
//! of one of rediscope's [`CASES`] or `pipe` (redis-rs's atomic pipeline behind r2d2, no check).
//! The difference between two N, divided by the difference of the N, is the cost of one.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a measuring program")]

use std::time::Duration;

use rediscope::SessionManager;
use rediscope_peers::server::{Server, Via};
use rediscope_peers::tens::{self, CASES, Case};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| usage());
    let count = arguments.next().and_then(|count| count.parse().ok()).unwrap_or_else(|| usage());
    let server = Server::start();
    if what == "pipe" {
        return pipe(&server, count);
    }
    let case = Case::named(&what).unwrap_or_else(|| usage());
    let sessions = SessionManager::builder(server.info(Via::Tcp))
        .max_size(8)
        // Under valgrind a transaction may take longer than 5 ms; the form is to stay the same.
        .trust_window(Duration::from_secs(60))
        .build()
        .expect("settings that work");
    let handle = case.handle(&sessions);
    for _ in 0..count {
        (case.transaction)(&handle);
    }
}

fn pipe(server: &Server, count: usize) {
    let pool = r2d2::Pool::builder()
        .max_size(8)
        .test_on_check_out(false)
        .build(server.client(Via::Tcp))
        .expect("a pool");
    for _ in 0..count {
        tens::pipe_two(&pool);
    }
}

fn usage() -> ! {
    let names = CASES.map(|case| case.name).join("|");
    eprintln!("instructions {names}|pipe N");
    std::process::exit(2)
}
