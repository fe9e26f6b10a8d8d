//! Compares the server, the status of the library and the ledger.

use std::thread;
use std::time::{Duration, Instant};

use rediscope::SessionManager;
use rediscope::redis::{self, Commands, Connection};

use super::choice::{ACCOUNTS, COMMITTED, POISON, Stage, account};
use super::figures::Figures;
use super::tally::Tally;
use super::{Failure, POOL, Plan, TIMEOUT};

/// A connection beside the pool, which reads the server's state.
pub(crate) struct Observer {
    connection: Connection,
}

impl Observer {
    pub(crate) fn connect(url: &str) -> Result<Self, Failure> {
        let connection = redis::Client::open(url)?.get_connection_with_timeout(TIMEOUT)?;
        connection.set_read_timeout(Some(TIMEOUT))?;
        connection.set_write_timeout(Some(TIMEOUT))?;
        let mut observer = Self { connection };
        redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut observer.connection)?;
        Ok(observer)
    }

    fn calls(&mut self, command: &str) -> Result<u64, Failure> {
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut self.connection)?;
        let prefix = format!("cmdstat_{command}:calls=");
        let calls = stats.lines().find_map(|line| line.strip_prefix(&prefix)?.split(',').next());
        Ok(calls.map_or(Ok(0), str::parse)?)
    }

    /// Waits for at most `POOL` connections, because a closed one stays listed for a moment.
    fn connections_after_load(&mut self) -> Result<usize, Failure> {
        let deadline = Instant::now() + TIMEOUT / 4;
        loop {
            let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut self.connection)?;
            let connections = list.lines().count() - 1;
            if connections <= POOL as usize || Instant::now() > deadline {
                return Ok(connections);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn sums(&mut self) -> Result<(Vec<i64>, u64, bool), Failure> {
        let keys: Vec<_> = (0..ACCOUNTS).map(account).collect();
        let connection = &mut self.connection;
        let balances: Vec<Option<i64>> = connection.mget(keys)?;
        let counted: Option<u64> = connection.get(COMMITTED)?;
        let poison = connection.exists(POISON)?;
        let balances = balances.into_iter().map(Option::unwrap_or_default).collect();
        Ok((balances, counted.unwrap_or(0), poison))
    }
}

/// Compares everything after the load.
pub(crate) fn check(
    observer: &mut Observer,
    sessions: &SessionManager,
    plan: Plan,
    tally: Tally,
    took: Duration,
) -> Result<Figures, Failure> {
    let status = sessions.status().transactional;
    let connections = observer.connections_after_load()?;
    let at = |stage: Stage| tally.dropped[stage as usize];
    let figures = Figures {
        plan,
        committed: tally.committed,
        conflicts: tally.conflicts,
        dropped: tally.dropped.iter().sum(),
        panicked: tally.panicked.iter().sum(),
        discards: observer.calls("discard")?.saturating_sub(status.counts.connects),
        unwatches: observer.calls("unwatch")?,
        opened: status.counts.connects,
        connections,
        in_use: status.in_use,
        rss: tally.resident_at_both_ends(plan.transactions),
        errors: tally.errors,
        took,
        broken: Vec::new(),
    };
    let mut broken = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            broken.push(what);
        }
    };
    must(figures.errors.is_empty(), format!("{} errors", figures.errors.len()));
    must(connections <= POOL as usize, format!("{connections} connections for a pool of {POOL}"));
    must(status.in_use == 0, format!("{} connections in use", status.in_use));
    must(status.scopes.is_empty(), format!("{} scopes open", status.scopes.len()));
    let sent = at(Stage::MultiSent) + at(Stage::ChunkSent);
    let discards = figures.discards;
    must(discards >= sent, format!("{discards} DISCARDs for {sent} drops behind MULTI"));
    let watched = at(Stage::Watching);
    let unwatches = figures.unwatches;
    must(unwatches == watched, format!("{unwatches} UNWATCHs for {watched} drops while watching"));
    let ended = figures.committed + figures.dropped + figures.panicked;
    must(ended == plan.transactions, format!("{ended} of {} ended", plan.transactions));
    let (balances, counted, poison) = observer.sums()?;
    must(balances == tally.ledger, "the server's balances differ from the ledger".to_owned());
    must(counted == figures.committed, format!("the server counts {counted} commits"));
    must(!poison, "a write was applied without a commit".to_owned());
    Ok(Figures { broken, ..figures })
}
