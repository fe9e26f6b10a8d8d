//! The figures of a load, as one table.

use std::fmt;
use std::time::Duration;

use super::Plan;

/// The figures of one load.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) plan: Plan,
    pub(crate) committed: u64,
    pub(crate) conflicts: u64,
    pub(crate) dropped: u64,
    pub(crate) panicked: u64,
    /// Counted by the server, without those in handshakes of new connections.
    pub(crate) discards: u64,
    pub(crate) unwatches: u64,
    pub(crate) opened: u64,
    /// Counted by the server after the load.
    pub(crate) connections: usize,
    pub(crate) in_use: u32,
    /// Mean resident memory of the first tenth, without its warm-up, and of the last tenth.
    pub(crate) rss: Option<(u64, u64)>,
    pub(crate) errors: Vec<String>,
    pub(crate) took: Duration,
    /// The checks that failed.
    pub(crate) broken: Vec<String>,
}

impl Figures {
    pub(crate) fn growth(&self) -> Option<i64> {
        self.rss.map(|(first, last)| last as i64 - first as i64)
    }
}

/// One table, then the errors and the failed checks.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: i64| format!("{:.2} MB", bytes as f64 / 1e6);
        let mut row = |name: &str, value: &dyn fmt::Display| {
            writeln!(f, "{name:<28}{:>14}", value.to_string())
        };
        row("transactions", &self.plan.transactions)?;
        row("  committed", &self.committed)?;
        row("  dropped", &self.dropped)?;
        row("  panicked", &self.panicked)?;
        row("conflicts, run again", &self.conflicts)?;
        row("DISCARDs", &self.discards)?;
        row("UNWATCHs", &self.unwatches)?;
        row("connections opened", &self.opened)?;
        row("connections afterwards", &self.connections)?;
        row("in use", &self.in_use)?;
        if let (Some((first, last)), Some(growth)) = (self.rss, self.growth()) {
            row("memory in the first tenth", &megabytes(first as i64))?;
            row("memory in the last tenth", &megabytes(last as i64))?;
            row("  growth", &megabytes(growth))?;
        }
        row("errors", &self.errors.len())?;
        row("time", &format!("{:.1?}", self.took))?;
        for error in self.errors.iter().take(10) {
            writeln!(f, "error: {error}")?;
        }
        self.broken.iter().try_for_each(|broken| writeln!(f, "BROKEN: {broken}"))
    }
}
