//! The run: threads at work, faults, a quiet end, and then the comparison.

use crate::SOON;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{SessionManager, prelude::*};

use super::calls::{Call, Observer};
use super::faults::Fault;
use super::fixture::{Fixture, POOL};
use super::injector::Injector;
use super::ledger::Ledger;
use super::load::Load;
use super::report::{Report, Timing};
use rediscope_testing::{eventually, try_for};

const THREADS: usize = 64;
/// More than any machine does in a second.
const OPERATIONS_A_SECOND: usize = 20_000;
/// Number of counts in a row that must be equal.
const STEADY: u32 = 20;
/// Timeout of a BLPOP, in seconds.
const BLOCKED: f64 = 0.1;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) lasts: Duration,
}

pub(crate) fn run(plan: Plan) -> Report {
    let threads_before = Threads::settled();
    let fixture = Fixture::new();
    let sessions = fixture.sessions();
    let most = (plan.lasts.as_secs() as usize + 60) * OPERATIONS_A_SECOND;
    let load = Arc::new(Load::new(sessions.clone(), Ledger::new(plan.seed, most)));
    let of_library = Threads::settled().library;
    let observer = Observer::start(plan.lasts);
    let workers: Vec<_> = (0..THREADS)
        .map(|nth| {
            let load = Arc::clone(&load);
            let builder = thread::Builder::new().name(format!("worker-{nth}"));
            builder.spawn(move || load.work()).expect("start a worker")
        })
        .collect();
    let begun = Instant::now();
    let mut injector = Injector::new(&fixture, &load, plan.seed);
    injector.inject_until(begun + plan.lasts);
    let recovery = recovery(&sessions);
    let took = begun.elapsed();
    load.barrier.end();
    for worker in workers {
        worker.join().expect("a worker panicked");
    }
    let machine = observer.end();
    // Forgotten scopes are reclaimed in their own time.
    let quiet = || sessions.open_scopes().is_empty();
    eventually(SOON, "every scope that was forgotten was taken back", quiet);
    let capacity = full_capacity(&sessions);
    let status = sessions.status();
    let few = || Some(fixture.server.clients()).filter(|count| *count <= 2 * POOL as usize);
    let connections = try_for(SOON, few).unwrap_or_else(|| fixture.server.clients());
    let threads_after = Threads::settled();
    let timings = Call::ALL.map(|call| Timing {
        call,
        longest: load.calls.longest(call),
        culprit: load.calls.culprit(call),
    });
    // What was held until a moment ago may still be on its way to the server. When no client is
    // connected any more, it has arrived or never will.
    sessions.close(Duration::ZERO);
    fixture.proxy.cut_all();
    eventually(SOON, "the server has no client left", || fixture.server.clients() == 0);
    let verdict = load.ledger.close(&mut fixture.server.connection());
    Report {
        plan,
        threads: THREADS,
        took,
        verdict,
        faults: Fault::ALL.map(|fault| (fault, injector.count(fault))).to_vec(),
        rounds: injector.rounds,
        status,
        recovery,
        capacity,
        timings,
        machine,
        connections,
        library_threads: (of_library, threads_after.library),
        other_threads: (threads_before.others, threads_after.others),
    }
}

/// How long it takes, after the last fault was lifted, until a transaction commits, with all the
/// others still at work.
fn recovery(sessions: &SessionManager) -> Option<Duration> {
    let begun = Instant::now();
    let accounts = sessions.transactional();
    let commits = || accounts.run(|tx| Ok(tx.incr("recovered", 1))).ok();
    try_for(SOON, commits).map(|_| begun.elapsed())
}

/// How long it takes until every connection that either pool may have can be held at once: no
/// place was lost.
fn full_capacity(sessions: &SessionManager) -> Option<Duration> {
    let begun = Instant::now();
    let accounts = sessions.transactional();
    let all = || (0..POOL).map(|_| accounts.begin()).collect::<Result<Vec<_>, _>>().ok();
    try_for(SOON, all)?;
    // A command that blocks keeps its connection for a while.
    let blocks = || sessions.pooled().blpop::<_, Option<(String, String)>>("none", BLOCKED).is_ok();
    let all = || {
        thread::scope(|scope| (0..POOL).for_each(|_| drop(scope.spawn(blocks))));
        (sessions.status().pooled.idle == POOL).then_some(())
    };
    try_for(SOON, all)?;
    Some(begun.elapsed())
}

/// Threads of this process by what they are for; the proxy's come and go with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Threads {
    library: usize,
    others: usize,
}

impl Threads {
    /// A thread has its name a little after it was started, and is gone a little after it ended.
    fn settled() -> Self {
        let (mut last, mut looks) = (Self::count(), 0);
        let steady = || {
            let now = Self::count();
            looks = if now == last { looks + 1 } else { 0 };
            last = now;
            (looks == STEADY).then_some(now)
        };
        try_for(SOON, steady).unwrap_or_else(Self::count)
    }

    fn count() -> Self {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let names: Vec<_> =
            tasks.flat_map(|task| std::fs::read_to_string(task.path().join("comm"))).collect();
        let named = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
        let library = named("rediscope-");
        Self { library, others: names.len() - library - named("proxy-") }
    }
}
