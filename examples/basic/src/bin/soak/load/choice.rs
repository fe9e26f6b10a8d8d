//! What each transaction does: chosen by the seed and its number alone.

use rediscope::commands::QueueCommands;

pub(crate) const ACCOUNTS: usize = 64;
pub(crate) const FLUSH_BYTES: usize = 1024;
/// The key that only transactions without a commit queue: it must never exist.
pub(crate) const POISON: &str = "poison";
pub(crate) const COMMITTED: &str = "committed";

/// What a scope has done when it ends without a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    NothingQueued,
    MultiSent,
    ChunkSent,
    Watching,
}

pub(crate) const STAGES: [Stage; 4] =
    [Stage::NothingQueued, Stage::MultiSent, Stage::ChunkSent, Stage::Watching];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Committed(Form),
    Dropped(Stage),
    Panicked(Stage),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Block,
    Guard,
    Immediate,
    Chunked,
    Watching,
    WatchingByHand,
}

/// One transaction, chosen by the seed and its number alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    pub(crate) ending: Ending,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) amount: i64,
}

impl Choice {
    pub(crate) fn of(seed: u64, number: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let stage = STAGES[rng.usize(..STAGES.len())];
        let ending = match rng.u32(..100) {
            0 => Ending::Panicked(stage),
            1..=10 => Ending::Dropped(stage),
            percent => Ending::Committed(match percent {
                11..=60 => Form::Block,
                61..=75 => Form::Guard,
                76..=84 => Form::Immediate,
                85..=87 => Form::Chunked,
                88..=94 => Form::Watching,
                _ => Form::WatchingByHand,
            }),
        };
        let (from, to) = (rng.usize(..ACCOUNTS), rng.usize(..ACCOUNTS));
        Self { ending, from, to, amount: rng.i64(1..100) }
    }

    /// Queues the writes of a transaction that commits.
    pub(crate) fn transfer(self, tx: &mut impl QueueCommands) {
        tx.decr(account(self.from), self.amount);
        tx.incr(account(self.to), self.amount);
        tx.incr(COMMITTED, 1);
    }
}

pub(crate) fn account(number: usize) -> String {
    format!("account:{number}")
}

/// Queues enough bytes that a chunk is sent before the commit.
pub(crate) fn chunk(tx: &mut impl QueueCommands, key: &str) {
    tx.set(key, [b'x'; 2 * FLUSH_BYTES].as_slice());
}
