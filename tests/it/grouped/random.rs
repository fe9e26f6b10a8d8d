//! Random blocks of many threads on few connections: each has its own replies and its own refusal.
//!
//! Guarantee: grouped

use std::sync::Mutex;
use std::thread;

use fastrand::Rng;
use rediscope::{Block, SessionManager, TransactionOptions};
use rediscope_testing::server::Server;

use crate::fixture::SOON;
use crate::random_blocks::{Step, Sums, check, server_with_user};

/// Blocks of each thread. The environment variable `REDISCOPE_GROUPED_BLOCKS` overrides it.
const BLOCKS: u64 = 200;

const THREADS: u64 = 16;

fn sessions(server: &Server) -> SessionManager {
    let builder = SessionManager::builder(server.url_as("caller", "secret"));
    builder.max_size(3).max_leaders(2).checkout_timeout(SOON).build().unwrap()
}

/// Threads with a block of random commands each, again and again.
fn random_blocks_of_many_threads(options: impl Fn(u64) -> TransactionOptions) {
    let mut rng = Rng::with_seed(rediscope_testing::soak::seed());
    let server = server_with_user();
    let _: () = server.ask(&["RPUSH", "open:list", "x"]);
    let sessions = sessions(&server);
    let (sums, refused) = (Mutex::new(Sums::default()), Mutex::new(0_u64));
    let blocks = rediscope_testing::soak::number("REDISCOPE_GROUPED_BLOCKS").unwrap_or(BLOCKS);
    thread::scope(|scope| {
        for caller in 0..THREADS {
            let handle = sessions.transactional().with(options(caller).grouped());
            let (mut rng, sums, refused) = (rng.fork(), &sums, &refused);
            scope.spawn(move || {
                for block in 0..blocks {
                    // Now and then, so that most groups have no refused member.
                    let allows_refusal = block % 8 == 0;
                    let steps: Vec<_> = (0..rng.usize(1..5))
                        .map(|_| Step::random(&mut rng, caller, allows_refusal))
                        .collect();
                    let queue = |tx: &mut Block| {
                        Ok(steps.iter().map(|step| step.queue(tx)).collect::<Vec<_>>())
                    };
                    match check(&steps, &handle.run(queue)) {
                        true => sums.lock().unwrap().add(&steps),
                        false => *refused.lock().unwrap() += 1,
                    }
                }
            });
        }
    });
    sums.into_inner().unwrap().assert_held_by(&server);
    assert!(server.ask::<Option<i64>>(&["GET", "closed"]).is_none());
    let status = sessions.status().transactional;
    assert_eq!((status.in_use, status.waiting), (0, 0));
    assert!(*refused.lock().unwrap() > 0, "no block was refused");
    assert_eq!(status.counts.commits + *refused.lock().unwrap(), THREADS * blocks);
}

#[test]
fn plain_blocks_of_many_threads_get_their_own_replies_and_refusals() {
    random_blocks_of_many_threads(|_| TransactionOptions::new());
}

#[test]
fn exactly_once_blocks_of_many_threads_get_their_own_replies_and_refusals() {
    random_blocks_of_many_threads(|_| TransactionOptions::new().exactly_once());
}

#[test]
fn plain_and_exactly_once_blocks_share_writes() {
    random_blocks_of_many_threads(|caller| match caller % 2 {
        0 => TransactionOptions::new().exactly_once(),
        _ => TransactionOptions::new(),
    });
}
