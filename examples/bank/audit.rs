//! What everybody was told, held against what the server did.
//!
//! Never: the library. The books are read over a connection of their own.

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use rediscope::redis::{Commands, Connection, RedisResult};

use crate::links;
use crate::transfer::{Bank, LEDGER_SHARDS, Told, Transfer};

/// How long dead connections may stay in the server's list.
const PATIENCE: Duration = Duration::from_secs(5);
const CHUNK: usize = 1000;

/// The server's side of the story.
#[derive(Debug)]
pub(crate) struct Books {
    /// How often each transfer was applied.
    ledger: HashMap<u64, i64>,
    balances: Vec<i64>,
    /// The program's connections on the server, once it is quiet.
    pub(crate) connections: usize,
}

impl Books {
    /// `private`: whoever else is connected to the server, it is the program.
    pub(crate) fn read(
        admin: &mut Connection,
        bank: &Bank,
        accounts: usize,
        (limit, private): (usize, bool),
    ) -> Result<Self, Box<dyn Error>> {
        let connections = connections_once_quiet(admin, bank, limit, private)?;
        let mut ledger = HashMap::new();
        for shard in 0..LEDGER_SHARDS {
            let part: HashMap<u64, i64> = admin.hgetall(bank.ledger(shard))?;
            ledger.extend(part);
        }
        let keys: Vec<_> = (0..accounts).map(|number| bank.account(number)).collect();
        let mut balances = Vec::with_capacity(accounts);
        for chunk in keys.chunks(CHUNK) {
            balances.extend(admin.mget::<_, Vec<i64>>(chunk)?);
        }
        Ok(Self { ledger, balances, connections })
    }

    pub(crate) fn money(&self) -> i64 {
        self.balances.iter().sum()
    }

    fn times(&self, id: u64) -> i64 {
        self.ledger.get(&id).copied().unwrap_or(0)
    }
}

/// A connection that was killed or closed stays listed until the server comes by it.
fn connections_once_quiet(
    admin: &mut Connection,
    bank: &Bank,
    limit: usize,
    private: bool,
) -> RedisResult<usize> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let clients = links::clients(admin)?;
        // Without the one that asks.
        let count =
            if private { clients.len().saturating_sub(1) } else { bank.links.own(clients).len() };
        if count <= limit || Instant::now() > deadline {
            return Ok(count);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many were told what, and how many of the answers were wrong.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) committed: u64,
    pub(crate) broke: u64,
    pub(crate) dropped: u64,
    pub(crate) panicked: u64,
    pub(crate) in_doubt: u64,
    pub(crate) in_doubt_applied: u64,
    pub(crate) failed: u64,
    /// Some of the failures, in words.
    pub(crate) failures: Vec<String>,
    pub(crate) wrong: u64,
    /// Accounts that do not hold what the ledger's transfers leave on them.
    pub(crate) wrong_balances: usize,
}

impl Verdict {
    pub(crate) fn on(books: &Books, told: &[(u64, Told)], seed: u64, opening_balance: i64) -> Self {
        let mut verdict = Self::default();
        for (id, told) in told {
            verdict.compare(told, books.times(*id));
        }
        // The ledger knows nothing that nobody did.
        let entries: i64 = books.ledger.values().sum();
        let accounted = verdict.committed + verdict.in_doubt_applied;
        verdict.wrong += accounted.abs_diff(entries.unsigned_abs());
        verdict.wrong_balances = wrong_balances(books, seed, opening_balance);
        verdict
    }

    /// One answer against how often the ledger has it.
    fn compare(&mut self, told: &Told, times: i64) {
        let (count, right) = match told {
            Told::Committed => (&mut self.committed, times == 1),
            Told::Broke => (&mut self.broke, times == 0),
            Told::Dropped => (&mut self.dropped, times == 0),
            Told::Panicked => (&mut self.panicked, times == 0),
            Told::InDoubt => {
                self.in_doubt_applied += times.unsigned_abs();
                (&mut self.in_doubt, times <= 1)
            }
            Told::Failed(error) => {
                if self.failures.len() < 10 {
                    self.failures.push(format!("{:?}: {error:#}", error.applied()));
                }
                let right = error.applied() != rediscope::Applied::No || times == 0;
                (&mut self.failed, right)
            }
        };
        *count += 1;
        self.wrong += u64::from(!right);
    }
}

/// Makes the ledger's transfers once more, on paper.
fn wrong_balances(books: &Books, seed: u64, opening_balance: i64) -> usize {
    let accounts = books.balances.len();
    let mut expected = vec![opening_balance; accounts];
    for (&id, &times) in &books.ledger {
        let transfer = Transfer::nth(id, seed, accounts);
        for (account, change) in [(transfer.from, -transfer.amount), (transfer.to, transfer.amount)]
        {
            if let Some(balance) = expected.get_mut(account) {
                *balance += change * times;
            }
        }
    }
    expected.iter().zip(&books.balances).filter(|(expected, real)| expected != real).count()
}
