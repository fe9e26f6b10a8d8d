//! The negative controls: protocols that look as safe, under the same cuts. They must be found out, or the
//! cuts prove nothing. The marker of this crate, used by the same client, must not be.

use super::ARRIVAL;
use crate::SOON;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::faults::Cut;
use super::ledger::Data;
use super::operations::IDS;
use super::raw::{Belief, Client, resolve};
use super::soak::THREADS;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, try_for};

const LIMIT: Duration = Duration::from_secs(120);

/// How the outcome of a lost reply is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A key written inside the transaction and looked for after connecting again.
    Marker,
    /// The register is set and watched in the same write as the transaction.
    Unacknowledged,
    /// As the library does it.
    WatchedRegister,
}

impl Rule {
    fn text(self) -> &'static str {
        match self {
            Self::Marker => "a marker inside the transaction",
            Self::Unacknowledged => "a fence whose WATCH was not acknowledged",
            Self::WatchedRegister => "the watched register, by the same client",
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Found {
    rule: Rule,
    pub(crate) cuts: u64,
    /// Resolved as committed, as not committed, unknown.
    resolved: [u64; 3],
    pub(crate) late: u64,
    pub(crate) wrong: u64,
    took: Duration,
}

/// One transaction, and what is believed of it.
struct Operation {
    id: u64,
    belief: Belief,
    resolved: bool,
}

#[derive(Default)]
struct Results {
    operations: Vec<Operation>,
    late: u64,
}

pub(crate) fn run(rule: Rule, cuts: u64, seed: u64) -> Found {
    let begun = Instant::now();
    let server = Server::start();
    let left = AtomicU64::new(cuts);
    let harvests: Vec<Results> = thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|number| {
                let (server, left) = (&server, &left);
                scope.spawn(move || work(rule, server, left, number, seed, begun + LIMIT))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    eventually(SOON, "the server has no client left", || server.clients() == 0);
    let operations = || harvests.iter().flat_map(|results| &results.operations);
    let ids: Vec<u64> = operations().map(|operation| operation.id).collect();
    let data = Data::of(&server, THREADS, &ids);
    let mut found = Found {
        rule,
        cuts: cuts - left.load(Ordering::Relaxed),
        resolved: [0; 3],
        late: harvests.iter().map(|results| results.late).sum(),
        wrong: 0,
        took: Duration::ZERO,
    };
    for operation in operations() {
        let times = data.times(operation.id);
        let (index, right) = match operation.belief {
            Belief::Committed => (0, times == Some(1)),
            Belief::NotCommitted => (1, times == Some(0)),
            Belief::Unknown => (2, times.is_some_and(|times| times <= 1)),
        };
        found.resolved[index] += u64::from(operation.resolved);
        found.wrong += u64::from(!right);
    }
    found.took = begun.elapsed();
    found
}

fn work(
    rule: Rule,
    server: &Server,
    left: &AtomicU64,
    number: u64,
    seed: u64,
    until: Instant,
) -> Results {
    let mut random = Rng::with_seed(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let proxy = Proxy::to(server);
    let mut client = Client::new(rule, proxy.url(), number);
    let mut results = Results::default();
    while left.load(Ordering::Relaxed) > 0 && Instant::now() < until {
        let cut = Cut::any_scripted(&mut random);
        if !client.is_connected() {
            results.operation(&mut client, server, number);
        }
        let fired = proxy.fired();
        let (script, faults) = cut.script(&mut random);
        proxy.arm(script);
        let belief = results.operation(&mut client, server, number);
        proxy.disarm();
        if proxy.fired() - fired < faults {
            continue;
        }
        let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if cut.holds() {
            let before = proxy.client_bytes();
            proxy.release();
            let gone = || (proxy.client_bytes() > before).then_some(());
            if cut.holds_requests() && belief == Belief::NotCommitted {
                results.late += u64::from(try_for(ARRIVAL, gone).is_some());
            }
        }
    }
    results
}

impl Results {
    fn operation(&mut self, client: &mut Client, server: &Server, number: u64) -> Belief {
        let id = number * IDS + self.operations.len() as u64;
        let committed = client.commit(id);
        let resolved = committed.is_err();
        let belief = committed.unwrap_or_else(|token| resolve(server, &token));
        self.operations.push(Operation { id, belief, resolved });
        belief
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [committed, not_committed, unknown] = self.resolved;
        writeln!(f, "| control | {} |", self.rule.text())?;
        writeln!(f, "| --- | ---: |")?;
        writeln!(f, "| cuts | {} |", self.cuts)?;
        writeln!(f, "| resolved as committed | {committed} |")?;
        writeln!(f, "| as not committed | {not_committed} |")?;
        writeln!(f, "| unknown | {unknown} |")?;
        writeln!(f, "| held requests let go after the resolution | {} |", self.late)?;
        writeln!(f, "| seconds | {:.1} |", self.took.as_secs_f64())?;
        writeln!(f, "| wrong results | {} |", self.wrong)
    }
}
