//! One transaction: what it writes, the form it has, and what it returned.
//!
//! It counts its own number, which shows a second application, and appends it to a list, which shows a
//! torn one.

use rediscope::error::{Applied, InDoubt, ReplyError, Resolution};
use rediscope::{
    Begin, Block, CommitError, Error, Outcome, Queued, Replies, Transaction, TransactionOptions,
    Transactional, prelude::*,
};

use super::faults::Cut;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Guard,
    /// The reply to MULTI is read before the commands leave.
    Immediate,
    /// Sent in chunks.
    Large,
    WatchingGuard,
    Run,
    /// `run` without replies.
    RunUnseen,
    WatchRun,
}

impl Form {
    pub(crate) const ALL: [Self; 7] = [
        Self::Guard,
        Self::Immediate,
        Self::Large,
        Self::WatchingGuard,
        Self::Run,
        Self::RunUnseen,
        Self::WatchRun,
    ];
    /// The ones that leave a doubt to their callers.
    pub(crate) const BY_HAND: [Self; 4] =
        [Self::Guard, Self::Immediate, Self::Large, Self::WatchingGuard];
}

/// Of a large transaction's values; a few of them pass [`FLUSH_BYTES`].
const PAD: usize = 1_200;
const PADS: usize = 4;
pub(crate) const FLUSH_BYTES: usize = 2_048;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) id: u64,
    pub(crate) worker: u64,
    pub(crate) form: Form,
    /// Whether it is hit before it begins, or between its beginning and its end.
    pub(crate) early: bool,
    /// It makes a key; else all its keys are old ones.
    pub(crate) fresh: bool,
}

/// Numbers of transactions are unique over all workers.
pub(crate) const IDS: u64 = 10_000_000;
/// Number of key sets that each worker uses in turn. In a cluster each is in a slot of its own.
pub(crate) const SETS: u64 = 2;

/// The hash tag of a worker's set of keys.
pub(crate) fn tag(worker: u64, set: u64) -> String {
    format!("{{w{worker}.{set}}}")
}

/// In which of its worker's sets of keys the transaction is.
pub(crate) fn set(id: u64) -> u64 {
    id % SETS
}

fn key(id: u64, word: &str) -> String {
    format!("{}:{word}", tag(id / IDS, set(id)))
}

/// Of a transaction that makes a key.
pub(crate) fn count_key(id: u64) -> String {
    key(id, &format!("tx:{id}"))
}

/// Of one that makes none it is a field of this.
pub(crate) fn counts_key(tag: &str) -> String {
    format!("{tag}:counts")
}

pub(crate) fn log_key(tag: &str) -> String {
    format!("{tag}:log")
}

pub(crate) fn sum_key(tag: &str) -> String {
    format!("{tag}:sum")
}

/// A key of this worker only; another client writes it to make a conflict.
pub(crate) fn watched_key(tag: &str) -> String {
    format!("{tag}:watched")
}

/// What a transaction returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reported {
    Committed,
    /// Applied, the replies are lost.
    Unseen,
    Conflict,
    NotSent,
    Rejected,
    /// No connection, or lost before anything was sent.
    NotBegun,
    InDoubt,
    /// Applied, as far as the queried server knows.
    NotReplicated,
    /// Nothing that can come of it here.
    Impossible,
}

impl Reported {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Unseen => "committed, replies lost",
            Self::Conflict => "conflict",
            Self::NotSent => "`NotSent`",
            Self::Rejected => "`Rejected`",
            Self::NotBegun => "not begun",
            Self::InDoubt => "`InDoubt`",
            Self::NotReplicated => "`NotReplicated`",
            Self::Impossible => "impossible",
        }
    }

    /// How often the server may have it; `None`: that is for the resolutions to say.
    pub(crate) fn times(self) -> Option<u64> {
        match self {
            Self::Committed | Self::Unseen => Some(1),
            Self::Conflict | Self::NotSent | Self::Rejected | Self::NotBegun => Some(0),
            Self::InDoubt | Self::NotReplicated | Self::Impossible => None,
        }
    }
}

/// A connection: its number on its server, and the server's port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) port: u16,
}

impl Client {
    /// From the reply to CLIENT INFO.
    fn parse(info: &str) -> Option<Self> {
        let field = |name: &str| info.split_whitespace().find_map(|word| word.strip_prefix(name));
        let (_, port) = field("laddr=")?.rsplit_once(':')?;
        Some(Self { id: field("id=")?.parse().ok()?, port: port.parse().ok()? })
    }
}

/// How a transaction ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) reported: Reported,
    pub(crate) doubt: Option<InDoubt>,
    pub(crate) client: Option<Client>,
    pub(crate) words: String,
}

/// What is known of a transaction in the end.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) plan: Plan,
    pub(crate) cut: Option<Cut>,
    pub(crate) reported: Reported,
    #[expect(dead_code, reason = "for the description of a wrong answer")]
    pub(crate) words: String,
    pub(crate) doubt: Option<InDoubt>,
    pub(crate) answers: Vec<Resolution>,
    /// What `run` found out by itself: as committed, as not committed.
    pub(crate) by_run: (u64, u64),
}

impl Ended {
    fn reported(reported: Reported) -> Self {
        Self { reported, doubt: None, client: None, words: String::new() }
    }

    fn committed(values: Result<(i64, String), Error>) -> Self {
        match values {
            Ok((1, info)) => {
                Self { client: Client::parse(&info), ..Self::reported(Reported::Committed) }
            }
            Err(Error::Reply(ReplyError::Lost)) => Self::reported(Reported::Unseen),
            other => Self { words: format!("{other:?}"), ..Self::reported(Reported::Impossible) },
        }
    }

    fn failed(error: Error) -> Self {
        let words = format!("{error:?}");
        let reported = match &error {
            Error::Reply(ReplyError::Lost) => Reported::Unseen,
            Error::RetriesExhausted { .. } => Reported::Conflict,
            Error::Commit(CommitError::InDoubt(doubt)) => {
                let doubt = Some(doubt.clone());
                return Self { doubt, words, ..Self::reported(Reported::InDoubt) };
            }
            Error::Commit(CommitError::NotSent { .. }) => Reported::NotSent,
            Error::Commit(CommitError::Rejected { .. }) => Reported::Rejected,
            Error::Commit(CommitError::NotReplicated { .. }) => Reported::NotReplicated,
            error if error.applied() == Applied::No => Reported::NotBegun,
            _ => Reported::Impossible,
        };
        Self { words, ..Self::reported(reported) }
    }
}

/// Does it; `strike` is called at the point where it is to be hit, or before.
pub(crate) fn transact(handle: &Transactional, plan: Plan, strike: &mut dyn FnMut()) -> Ended {
    if plan.early {
        strike();
    }
    attempt(handle, plan, strike).unwrap_or_else(Ended::failed)
}

fn attempt(handle: &Transactional, plan: Plan, strike: &mut dyn FnMut()) -> Result<Ended, Error> {
    let watched = watched_key(&tag(plan.worker, set(plan.id)));
    match plan.form {
        // In a cluster the one has a connection at once, the other one when it is committed.
        Form::Guard | Form::Large if plan.fresh => commit(handle.begin_at(&watched)?, plan, strike),
        Form::Guard | Form::Large => commit(handle.begin()?, plan, strike),
        Form::Immediate => {
            let immediate = TransactionOptions::new().begin(Begin::Immediate);
            commit(handle.begin_with(immediate)?, plan, strike)
        }
        Form::WatchingGuard => {
            let mut watching = handle.watch([watched.as_str()]).begin()?;
            let _: Option<String> = watching.get(&watched)?;
            strike();
            let mut tx = watching.multi();
            let handles = queue(&mut tx, plan);
            Ok(match tx.commit()? {
                Outcome::Committed(replies) => Ended::committed(replies.get(handles)),
                Outcome::Conflict => Ended::reported(Reported::Conflict),
            })
        }
        Form::Run => {
            strike();
            let values = handle.run(|tx| Ok(queue(tx, plan)));
            values.map(|values| Ended::committed(Ok(values)))
        }
        Form::RunUnseen => {
            strike();
            let unseen = |tx: &mut Block| {
                queue(tx, plan);
                Ok(())
            };
            handle.run(unseen).map(|()| Ended::reported(Reported::Committed))
        }
        Form::WatchRun => {
            let values = handle.watch([watched.as_str()]).run(|read, tx| {
                let _: Option<String> = read.get(&watched)?;
                strike();
                Ok(queue(tx, plan))
            });
            values.map(|values| Ended::committed(Ok(values)))
        }
    }
}

fn commit(tx: Transaction, plan: Plan, strike: &mut dyn FnMut()) -> Result<Ended, Error> {
    let mut tx = tx;
    strike();
    let handles = queue(&mut tx, plan);
    let replies: Replies = tx.commit()?;
    Ok(Ended::committed(replies.get(handles)))
}

/// The count comes back, and must be 1; and so does what the server calls the connection.
fn queue(tx: &mut impl QueueCommands, plan: Plan) -> (Queued<i64>, Queued<String>) {
    let tag = tag(plan.worker, set(plan.id));
    let count = match plan.fresh {
        true => tx.incr(count_key(plan.id), 1),
        false => tx.hincr(counts_key(&tag), plan.id, 1),
    };
    if plan.form == Form::Large {
        for nth in 0..PADS {
            tx.set(format!("{tag}:pad:{nth}"), "x".repeat(PAD));
        }
    }
    tx.rpush(log_key(&tag), plan.id);
    tx.incr(sum_key(&tag), 1);
    let client = tx.queue(redis::cmd("CLIENT").arg("INFO").take());
    (count, client)
}
