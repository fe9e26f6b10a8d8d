//! The counts and the ledger that the threads keep themselves.

use super::choice::{ACCOUNTS, Choice, Ending, STAGES};

/// Counts of one thread, or of all threads.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) committed: u64,
    pub(crate) conflicts: u64,
    pub(crate) dropped: [u64; STAGES.len()],
    pub(crate) panicked: [u64; STAGES.len()],
    pub(crate) ledger: Vec<i64>,
    pub(crate) errors: Vec<String>,
    pub(crate) samples: Vec<(u64, u64)>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.committed += other.committed;
        self.conflicts += other.conflicts;
        for stage in 0..STAGES.len() {
            self.dropped[stage] += other.dropped[stage];
            self.panicked[stage] += other.panicked[stage];
        }
        self.ledger.resize(ACCOUNTS, 0);
        self.ledger.iter_mut().zip(other.ledger).for_each(|(sum, part)| *sum += part);
        self.errors.extend(other.errors);
        self.samples.extend(other.samples);
    }

    pub(crate) fn count(&mut self, choice: Choice) {
        match choice.ending {
            Ending::Committed(_) => {
                self.committed += 1;
                self.ledger[choice.from] -= choice.amount;
                self.ledger[choice.to] += choice.amount;
            }
            Ending::Dropped(stage) => self.dropped[stage as usize] += 1,
            Ending::Panicked(stage) => self.panicked[stage as usize] += 1,
        }
    }
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self { ledger: vec![0; ACCOUNTS], ..Self::default() }
    }

    /// Mean resident memory of the first tenth, without its first half (the warm-up), and of the
    /// last tenth.
    pub(crate) fn resident_at_both_ends(&self, transactions: u64) -> Option<(u64, u64)> {
        let mean = |from: u64, to: u64| {
            let range = transactions * from / 20..transactions * to / 20;
            let within = self.samples.iter().filter(|(at, _)| range.contains(at));
            let bytes: Vec<_> = within.map(|(_, bytes)| *bytes).collect();
            bytes.iter().sum::<u64>().checked_div(bytes.len() as u64)
        };
        Some((mean(1, 2)?, mean(18, 20)?))
    }
}

/// Resident memory of this process; `None` where there is no `/proc`.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}
