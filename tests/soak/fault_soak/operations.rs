//! What one thread does at a time: a transaction or a single command, chosen by seed and number.
//!
//! Each counts its number in the ledger, in the same transaction as all else it does.

use redis::Cmd;
use rediscope::{Queued, prelude::*};

/// Few, so that transfers meet.
pub(crate) const ACCOUNTS: usize = 32;
pub(crate) const OPENING_BALANCE: i64 = 1_000;
/// Large enough, next to what an account begins with, that some run out of money.
const LARGEST_AMOUNT: i64 = 100;
pub(crate) const PAIRS: usize = 16;
/// The ledger is one hash a shard, each small enough for the server to keep it as a list.
pub(crate) const SHARD: u64 = 500;
/// Number of keys whose values never change, so that another caller's reply is recognized.
pub(crate) const SIGNS: usize = 64;
const FILLER: usize = 900;
const FILLERS: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `watch(..).run` that writes what it computed from what it read.
    Transfer,
    /// The same by hand.
    ByHand,
    /// `run` that counts up two keys.
    Pair,
    /// The same, sent in chunks.
    LargePair,
    Guard,
    Immediate,
    LargeGuard,
    /// `reading().run`.
    Reading,
    Write,
    Pipeline,
    Read,
}

/// How it is left. Forgetting and expiring are rationed: each keeps a connection for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    Drop,
    /// By the consuming twin of the drop.
    Discard,
    Panic,
    Forget,
    /// Not used for longer than it may be, then committed.
    Expire,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) id: u64,
    /// Rights may be missing: a doubt may then be torn, so it has accounts of its own.
    pub(crate) lawless: bool,
    pub(crate) form: Form,
    pub(crate) end: End,
    pub(crate) amount: i64,
    from: usize,
    to: usize,
    pair: usize,
}

impl Operation {
    pub(crate) fn nth(seed: u64, id: u64, lawless: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let form = match random.u32(..100) {
            0..24 => Form::Transfer,
            24..30 => Form::ByHand,
            30..50 => Form::Pair,
            50..53 => Form::LargePair,
            53..65 => Form::Guard,
            65..69 => Form::Immediate,
            69..73 => Form::LargeGuard,
            73..76 => Form::Reading,
            76..86 => Form::Write,
            86..89 => Form::Pipeline,
            _ => Form::Read,
        };
        let end = match random.u32(..100) {
            0..5 => End::Drop,
            5..8 => End::Discard,
            8..11 => End::Panic,
            11..14 => End::Forget,
            14..16 => End::Expire,
            _ => End::Commit,
        };
        let from = random.usize(..ACCOUNTS);
        Self {
            id,
            lawless,
            form,
            end,
            amount: random.i64(1..=LARGEST_AMOUNT),
            from,
            to: (from + random.usize(1..ACCOUNTS)) % ACCOUNTS,
            pair: random.usize(..PAIRS),
        }
    }

    pub(crate) fn accounts(&self) -> [String; 2] {
        [account(self.from, self.lawless), account(self.to, self.lawless)]
    }

    pub(crate) fn shard(&self) -> u64 {
        self.id / SHARD
    }

    pub(crate) fn ledger(&self) -> String {
        format!("ledger:{}", self.shard())
    }

    /// Counts itself in the ledger, and reads its number back.
    pub(crate) fn sign(&self, tx: &mut impl QueueCommands) -> (Queued<i64>, Queued<u64>) {
        let entry = tx.hincr(self.ledger(), self.id, 1);
        (entry, tx.queue(self.echo()))
    }

    pub(crate) fn echo(&self) -> Cmd {
        redis::cmd("ECHO").arg(self.id).take()
    }

    /// The replies to [`sign`](Self::sign) of a server that runs it for the first time.
    pub(crate) fn signature(&self) -> (i64, u64) {
        (1, self.id)
    }

    /// The money that was not read before.
    pub(crate) fn move_money(&self, tx: &mut impl QueueCommands) {
        let [from, to] = self.accounts();
        tx.decr(from, self.amount);
        tx.incr(to, self.amount);
    }

    pub(crate) fn count_pair(&self, tx: &mut impl QueueCommands) {
        for key in pair(self.pair, self.lawless) {
            tx.incr(key, 1);
        }
    }

    /// The keys of as many values as are sent in more than one chunk.
    pub(crate) fn fillers(&self) -> impl Iterator<Item = (String, [u8; FILLER])> {
        (0..FILLERS).map(|nth| (format!("filler:{nth}"), [b'x'; FILLER]))
    }

    /// A key whose value is known.
    pub(crate) fn sign_of(&self, nth: usize) -> usize {
        (self.id as usize + nth) % SIGNS
    }

    /// Does it `times` times, on paper.
    pub(crate) fn book(&self, times: i64, balances: &mut [i64], pairs: &mut [i64]) {
        match self.form {
            Form::Transfer | Form::ByHand | Form::Guard | Form::Immediate | Form::LargeGuard => {
                balances[self.from] -= self.amount * times;
                balances[self.to] += self.amount * times;
            }
            Form::Pair | Form::LargePair => pairs[self.pair] += times,
            Form::Reading | Form::Write | Form::Pipeline | Form::Read => {}
        }
    }
}

pub(crate) fn account(number: usize, lawless: bool) -> String {
    format!("{}account:{number}", place(lawless))
}

pub(crate) fn pair(number: usize, lawless: bool) -> [String; 2] {
    ["one", "other"].map(|half| format!("{}pair:{number}:{half}", place(lawless)))
}

fn place(lawless: bool) -> &'static str {
    if lawless { "lawless:" } else { "" }
}

pub(crate) fn sign(number: usize) -> String {
    format!("sign:{number}")
}

pub(crate) fn sign_text(number: usize) -> String {
    format!("this is what sign {number} says")
}
