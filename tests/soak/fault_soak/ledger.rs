//! What every operation returned, compared with the ledger on the server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use redis::{Commands, Connection};
use rediscope::Error;
use rediscope::error::Applied;

use super::expectations::{self, Reported, Times};
use super::operations::{self, Operation};

const LAWLESS: u16 = 1 << 8;
const UNREPORTED: u16 = u16::MAX;
/// Maximum number of faults that the report describes.
const DESCRIBED: usize = 20;
/// Codes with which the server may refuse a command although no right is missing.
const PASSING: [&str; 3] = ["OOM", "NOREPLICAS", "LOADING"];

/// What every operation returned. Its memory is all allocated at the beginning.
#[derive(Debug)]
pub(crate) struct Ledger {
    seed: u64,
    next: AtomicU64,
    reported: Box<[AtomicU16]>,
    wrong: AtomicU64,
    words: Mutex<Vec<String>>,
    codes: Mutex<BTreeMap<String, u64>>,
}

impl Ledger {
    pub(crate) fn new(seed: u64, capacity: usize) -> Self {
        Self {
            seed,
            next: AtomicU64::new(0),
            reported: (0..capacity).map(|_| AtomicU16::new(UNREPORTED)).collect(),
            wrong: AtomicU64::new(0),
            words: Mutex::default(),
            codes: Mutex::default(),
        }
    }

    /// The next operation to be done.
    pub(crate) fn open(&self, lawless: bool) -> Operation {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        assert!((id as usize) < self.reported.len(), "the ledger are full: make them larger");
        Operation::nth(self.seed, id, lawless)
    }

    pub(crate) fn note(&self, operation: &Operation, reported: Reported) {
        if reported == Reported::Impossible {
            self.wrong(operation, "returned an impossible outcome");
        }
        if reported.is_lawless() && !operation.lawless {
            self.wrong(operation, &format!("{} although no right was missing", reported.text()));
        }
        let mark = reported as u16 | if operation.lawless { LAWLESS } else { 0 };
        self.reported[operation.id as usize].store(mark, Ordering::Relaxed);
    }

    /// Looks at an error by itself; returns what it reports.
    pub(crate) fn read(
        &self,
        operation: &Operation,
        error: &Error,
        with_ledger: impl Fn(&rediscope::Replies) -> bool,
    ) -> Reported {
        let reported = Reported::of(error, with_ledger);
        let applied = error.applied();
        if !reported.agrees_with(applied) {
            self.wrong(operation, &format!("applied() is {applied:?} for {error:?}"));
        }
        if error.is_retryable() && applied != Applied::No {
            self.wrong(operation, &format!("retryable, but {applied:?}: {error:?}"));
        }
        if let Some(code) =
            expectations::refusal(error).or_else(|| expectations::refused_connection(error))
        {
            *self.codes.lock().unwrap().entry(code.to_owned()).or_default() += 1;
        }
        if let Some(code) = expectations::refusal(error)
            && !operation.lawless
            && !PASSING.contains(&code)
        {
            self.wrong(operation, &format!("refused without a cause: {error}"));
        }
        reported
    }

    pub(crate) fn wrong(&self, operation: &Operation, what: &str) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
        let mut words = self.words.lock().unwrap();
        if words.len() < DESCRIBED {
            words.push(format!("{operation:?}: {what}"));
        }
    }

    fn all(&self) -> impl Iterator<Item = (Operation, Reported)> + '_ {
        let operations = self.next.load(Ordering::Relaxed);
        (0..operations).map(|id| {
            let mark = self.reported[id as usize].load(Ordering::Relaxed);
            assert_ne!(mark, UNREPORTED, "operation {id} has no end");
            let operation = Operation::nth(self.seed, id, mark & LAWLESS != 0);
            (operation, Reported::ALL[usize::from(mark & (LAWLESS - 1))])
        })
    }

    /// Compares it all with the server. Nothing may be on its way there any more.
    pub(crate) fn close(&self, server: &mut Connection) -> Verdict {
        let mut verdict = Verdict::default();
        let mut ledger = HashMap::new();
        let mut shard = None;
        let mut balances = vec![operations::OPENING_BALANCE; operations::ACCOUNTS];
        let mut pairs = vec![0; operations::PAIRS];
        for (operation, reported) in self.all() {
            if shard != Some(operation.shard()) {
                // The ledger has nothing that no operation did.
                self.leftover(&operation, &ledger);
                ledger = server.hgetall(operation.ledger()).unwrap();
                shard = Some(operation.shard());
            }
            let times: i64 = ledger.remove(&operation.id).unwrap_or(0);
            verdict.operations += 1;
            let tally = verdict.reported.entry(reported as u8).or_default();
            tally.0 += 1;
            tally.1 += times.unsigned_abs();
            let right = match reported.times() {
                Times::Never => times == 0,
                Times::Once => times == 1,
                Times::AtMostOnce => times == 0 || times == 1,
            };
            if !right {
                self.wrong(
                    &operation,
                    &format!("returned {}, done {times} times", reported.text()),
                );
            }
            if !operation.lawless {
                operation.book(times, &mut balances, &mut pairs);
            }
        }
        if let Some(shard) = shard {
            self.leftover(&Operation::nth(self.seed, shard * operations::SHARD, false), &ledger);
        }
        self.compare(server, &mut verdict, &balances, &pairs);
        verdict.wrong = self.wrong.load(Ordering::Relaxed);
        verdict.words = std::mem::take(&mut self.words.lock().unwrap());
        verdict.codes = std::mem::take(&mut self.codes.lock().unwrap());
        verdict
    }

    fn leftover(&self, near: &Operation, ledger: &HashMap<u64, i64>) {
        for (id, times) in ledger {
            self.wrong(near, &format!("the ledger has {times} of {id}, which no operation did"));
        }
    }

    /// Every account holds what the ledger's operations leave on it: anything torn shows here.
    fn compare(
        &self,
        server: &mut Connection,
        verdict: &mut Verdict,
        on_paper: &[i64],
        pairs: &[i64],
    ) {
        for (account, expected) in on_paper.iter().enumerate() {
            let real: i64 = server.get(operations::account(account, false)).unwrap();
            verdict.money += real;
            verdict.wrong_balances += u64::from(real != *expected);
        }
        for (pair, expected) in pairs.iter().enumerate() {
            let [one, other] = operations::pair(pair, false);
            let real: (Option<i64>, Option<i64>) = server.mget(&[one, other]).unwrap();
            let expected = Some(*expected).filter(|count| *count > 0);
            verdict.wrong_pairs += u64::from(real != (expected, expected));
        }
    }
}

/// What the comparison came to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) operations: u64,
    /// By what was returned: how many were, and how many of those the ledger has.
    reported: BTreeMap<u8, (u64, u64)>,
    pub(crate) codes: BTreeMap<String, u64>,
    pub(crate) money: i64,
    pub(crate) wrong_balances: u64,
    pub(crate) wrong_pairs: u64,
    pub(crate) wrong: u64,
    pub(crate) words: Vec<String>,
}

impl Verdict {
    pub(crate) fn counts(&self, reported: Reported) -> (u64, u64) {
        self.reported.get(&(reported as u8)).copied().unwrap_or_default()
    }
}
