//! Compares the result of each transfer with the ledger on the server.
//!
//! Never: the library. The server is read over a connection of its own.

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use rediscope::redis::{Commands, Connection, RedisResult};

use crate::connections;
use crate::transfer::{LEDGER_SHARDS, Ledger, Transfer, TransferResult};

/// Maximum time until the server has removed closed connections from its list.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections of the program outside of the library: the one that opened the accounts, and the audit's.
const AUDIT_CONNECTIONS: usize = 2;
/// Balances read by one command.
const CHUNK: usize = 1000;

/// Ledger, balances and connections as the server has them.
#[derive(Debug)]
pub(crate) struct ServerState {
    /// How often each transfer was applied.
    applied: HashMap<u64, i64>,
    balances: Vec<i64>,
    /// The program's connections, counted after the load.
    pub(crate) connections: usize,
}

impl ServerState {
    /// `private`: the program started the server, so every connection is its own.
    pub(crate) fn read(
        admin: &mut Connection,
        ledger: &Ledger,
        accounts: usize,
        (limit, private): (usize, bool),
    ) -> Result<Self, Box<dyn Error>> {
        let connections = connections_after_load(admin, ledger, limit, private)?;
        let mut applied = HashMap::new();
        for shard in 0..LEDGER_SHARDS {
            let part: HashMap<u64, i64> = admin.hgetall(ledger.shard(shard))?;
            applied.extend(part);
        }
        let keys: Vec<_> = (0..accounts).map(|number| ledger.account(number)).collect();
        let mut balances = Vec::with_capacity(accounts);
        for chunk in keys.chunks(CHUNK) {
            balances.extend(admin.mget::<_, Vec<i64>>(chunk)?);
        }
        Ok(Self { applied, balances, connections })
    }

    pub(crate) fn money(&self) -> i64 {
        self.balances.iter().sum()
    }

    fn times(&self, id: u64) -> i64 {
        self.applied.get(&id).copied().unwrap_or(0)
    }
}

/// Waits for at most `limit` connections, because a closed one stays listed for a moment.
fn connections_after_load(
    admin: &mut Connection,
    ledger: &Ledger,
    limit: usize,
    private: bool,
) -> RedisResult<usize> {
    let deadline = Instant::now() + CLEANUP_TIMEOUT;
    loop {
        let clients = connections::clients(admin)?;
        // Without the connections of the audit and of the run's own start.
        let count = if private {
            clients.len().saturating_sub(AUDIT_CONNECTIONS)
        } else {
            ledger.connections.own(clients).len()
        };
        if count <= limit || Instant::now() > deadline {
            return Ok(count);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Number of transfers by result, and of results that the ledger contradicts.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) committed: u64,
    pub(crate) broke: u64,
    pub(crate) dropped: u64,
    pub(crate) panicked: u64,
    pub(crate) in_doubt: u64,
    pub(crate) in_doubt_applied: u64,
    pub(crate) cancelled: u64,
    pub(crate) cancelled_applied: u64,
    pub(crate) failed: u64,
    /// The text of the first failures.
    pub(crate) failures: Vec<String>,
    pub(crate) wrong: u64,
    /// Accounts whose balance is not the one that the ledger's transfers lead to.
    pub(crate) wrong_balances: usize,
}

impl Verdict {
    pub(crate) fn new(
        state: &ServerState,
        results: &[(u64, TransferResult)],
        seed: u64,
        opening_balance: i64,
    ) -> Self {
        let mut verdict = Self::default();
        for (id, result) in results {
            verdict.compare(result, state.times(*id));
        }
        // The ledger has no entry beyond the transfers that were applied.
        let entries: i64 = state.applied.values().sum();
        let accounted = verdict.committed + verdict.in_doubt_applied + verdict.cancelled_applied;
        verdict.wrong += accounted.abs_diff(entries.unsigned_abs());
        verdict.wrong_balances = wrong_balances(state, seed, opening_balance);
        verdict
    }

    /// Compares one result with how often the ledger has the transfer.
    fn compare(&mut self, result: &TransferResult, times: i64) {
        let (count, right) = match result {
            TransferResult::Committed => (&mut self.committed, times == 1),
            TransferResult::Broke => (&mut self.broke, times == 0),
            TransferResult::Dropped => (&mut self.dropped, times == 0),
            TransferResult::Panicked => (&mut self.panicked, times == 0),
            TransferResult::InDoubt => {
                self.in_doubt_applied += times.unsigned_abs();
                (&mut self.in_doubt, times <= 1)
            }
            TransferResult::Cancelled => {
                self.cancelled_applied += times.unsigned_abs();
                (&mut self.cancelled, times <= 1)
            }
            TransferResult::Failed(error) => {
                if self.failures.len() < 10 {
                    self.failures.push(format!("{:?}: {error:#}", error.applied()));
                }
                let right = error.applied() != rediscope::error::Applied::No || times == 0;
                (&mut self.failed, right)
            }
        };
        *count += 1;
        self.wrong += u64::from(!right);
    }
}

/// Replays the ledger's transfers and counts the accounts with another balance.
fn wrong_balances(state: &ServerState, seed: u64, opening_balance: i64) -> usize {
    let accounts = state.balances.len();
    let mut expected = vec![opening_balance; accounts];
    for (&id, &times) in &state.applied {
        let transfer = Transfer::nth(id, seed, accounts);
        for (account, change) in [(transfer.from, -transfer.amount), (transfer.to, transfer.amount)]
        {
            if let Some(balance) = expected.get_mut(account) {
                *balance += change * times;
            }
        }
    }
    expected.iter().zip(&state.balances).filter(|(expected, real)| expected != real).count()
}
