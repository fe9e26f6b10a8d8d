//! What every transaction returned, compared with the server's data.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::thread;

use rediscope::SessionManager;
use rediscope::error::{Resolution, UnresolvedReason};

use super::faults::Cut;
use super::fixture::Store;
use super::operations::{
    IDS, Operation, Reported, SETS, count_key, counts_key, log_key, set, sum_key, tag,
};

/// Maximum number of faults that the report describes.
const DESCRIBED: usize = 20;
const ASKERS: usize = 4;
const CHUNK: usize = 1_000;

/// What the server has of the transactions: how often each is counted, how often each is listed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Data {
    counted: HashMap<u64, u64>,
    listed: HashMap<u64, u64>,
    sum: u64,
}

impl Data {
    pub(crate) fn of(store: &impl Store, workers: u64, ids: &[u64]) -> Self {
        let mut data = Self::default();
        let mut sets: BTreeMap<(u64, u64), Vec<u64>> = BTreeMap::new();
        for id in ids {
            sets.entry((id / IDS, set(*id))).or_default().push(*id);
        }
        for (worker, nth) in (0..workers).flat_map(|worker| (0..SETS).map(move |nth| (worker, nth)))
        {
            let tag = tag(worker, nth);
            let list: Vec<u64> = store.read(&["LRANGE", &log_key(&tag), "0", "-1"]);
            for id in list {
                *data.listed.entry(id).or_default() += 1;
            }
            let sum: Option<u64> = store.read(&["GET", &sum_key(&tag)]);
            data.sum += sum.unwrap_or(0);
            let counts: HashMap<u64, u64> = store.read(&["HGETALL", &counts_key(&tag)]);
            data.count(counts);
            let ids = sets.remove(&(worker, nth)).unwrap_or_default();
            for ids in ids.chunks(CHUNK) {
                let keys: Vec<String> = ids.iter().map(|id| count_key(*id)).collect();
                let words: Vec<&str> =
                    std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
                let counts: Vec<Option<u64>> = store.read(&words);
                data.count(ids.iter().zip(counts).filter_map(|(id, count)| Some((*id, count?))));
            }
        }
        data
    }

    fn count(&mut self, counts: impl IntoIterator<Item = (u64, u64)>) {
        for (id, count) in counts {
            *self.counted.entry(id).or_default() += count;
        }
    }

    /// How often it was applied; `None`: in part.
    pub(crate) fn times(&self, id: u64) -> Option<u64> {
        let count = |of: &HashMap<u64, u64>| of.get(&id).copied().unwrap_or(0);
        Some(count(&self.counted)).filter(|times| *times == count(&self.listed))
    }

    pub(crate) fn applied(&self) -> u64 {
        self.listed.values().sum()
    }

    /// What neither list, counts nor sum agree on.
    fn is_torn(&self) -> bool {
        self.sum != self.applied() || self.listed.len() != self.counted.len()
    }
}

/// What may come of it besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leave {
    /// Registers are deleted meanwhile.
    pub(crate) registers_gone: bool,
    /// Watched keys are written, or moved.
    pub(crate) conflicts: bool,
}

/// How the cuts of one kind were resolved.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fates {
    pub(crate) all: u64,
    pub(crate) committed: u64,
    pub(crate) not_committed: u64,
    pub(crate) unknown: u64,
}

/// What the comparison came to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) operations: u64,
    pub(crate) fates: BTreeMap<Cut, Fates>,
    pub(crate) reported: BTreeMap<Reported, u64>,
    /// What `run` found out by itself: as committed, as not committed.
    pub(crate) by_run: [u64; 2],
    /// Number of results of guards: committed, not committed, still unknown.
    pub(crate) answers: [u64; 3],
    /// The same, of the doubts that were resolved again at the end.
    pub(crate) again: [u64; 3],
    /// Number of results that the server did not return in time.
    pub(crate) unreachable: u64,
    pub(crate) applied: u64,
    pub(crate) wrong: u64,
    pub(crate) words: Vec<String>,
}

/// A session manager that did not send a worker's transactions, and has the prefix of its registers.
pub(crate) type Stranger<'s> = &'s (dyn Fn(u64) -> &'s SessionManager + Sync);

/// Asks all doubts again and compares everything with the data. Nothing may be on its way to the
/// server any more.
pub(crate) fn close(
    store: &impl Store,
    stranger: Stranger<'_>,
    workers: u64,
    operations: &mut [Operation],
    leave: Leave,
) -> Verdict {
    let mut verdict = Verdict::default();
    let ids: Vec<u64> = operations.iter().map(|operation| operation.plan.id).collect();
    let data = Data::of(store, workers, &ids);
    ask_again(stranger, operations);
    for operation in operations.iter() {
        verdict.add(operation, &data, leave);
    }
    if data.is_torn() {
        verdict.wrong("lists, counts and sums do not agree".to_owned());
    }
    if data.listed.len() > ids.iter().filter(|id| data.listed.contains_key(id)).count() {
        verdict.wrong("the server has what no operation did".to_owned());
    }
    if Data::of(store, workers, &ids) != data {
        verdict.wrong("asking changed the data".to_owned());
    }
    verdict.applied = data.applied();
    verdict
}

/// Every doubt once more, by several at a time.
fn ask_again(stranger: Stranger<'_>, operations: &mut [Operation]) {
    let doubtful = Mutex::new(operations.iter_mut().filter(|operation| operation.doubt.is_some()));
    thread::scope(|scope| {
        for _ in 0..ASKERS {
            scope.spawn(|| {
                loop {
                    let next = doubtful.lock().unwrap().next();
                    let Some(operation) = next else { break };
                    let token = operation.doubt.as_ref().and_then(|doubt| doubt.token());
                    let token = token.expect("every transaction here is exactly once");
                    operation.answers.push(stranger(operation.plan.worker).resolve(token, None));
                }
            });
        }
    });
}

fn index(answer: &Resolution) -> usize {
    match answer {
        Resolution::Committed => 0,
        Resolution::NotCommitted => 1,
        Resolution::StillUnknown { .. } => 2,
    }
}

impl Verdict {
    fn wrong(&mut self, what: String) {
        self.wrong += 1;
        if self.words.len() < DESCRIBED {
            self.words.push(what);
        }
    }

    fn add(&mut self, operation: &Operation, data: &Data, leave: Leave) {
        self.operations += 1;
        *self.reported.entry(operation.reported).or_default() += 1;
        if let Some(cut) = operation.cut {
            self.fates.entry(cut).or_default().add(operation);
        }
        self.by_run[0] += operation.by_run.0;
        self.by_run[1] += operation.by_run.1;
        for answer in &operation.answers {
            self.answers[index(answer)] += 1;
        }
        if let Some(last) = operation.answers.last() {
            self.again[index(last)] += 1;
        }
        if let Some(what) = self.fault(operation, data, leave) {
            self.wrong(format!("{what}: {operation:?}"));
        }
    }

    /// What is wrong with what was returned.
    fn fault(&mut self, operation: &Operation, data: &Data, leave: Leave) -> Option<String> {
        let Some(times) = data.times(operation.plan.id) else {
            return Some("applied in part".to_owned());
        };
        if times > 1 {
            return Some(format!("applied {times} times"));
        }
        if matches!(operation.reported, Reported::Impossible | Reported::NotReplicated) {
            return Some("returned an impossible outcome".to_owned());
        }
        if operation.reported == Reported::Conflict && !leave.conflicts {
            return Some("a conflict without a cause".to_owned());
        }
        if let Some(expected) = operation.reported.times()
            && expected != times
        {
            return Some(format!("returned {}, applied {times} times", operation.reported.text()));
        }
        let last = operation.answers.len().saturating_sub(1);
        for (nth, answer) in operation.answers.iter().enumerate() {
            let right = match answer {
                Resolution::Committed => times == 1,
                Resolution::NotCommitted => times == 0,
                // When all is over the server is there.
                Resolution::StillUnknown { why: UnresolvedReason::Unreachable(_) } => {
                    self.unreachable += 1;
                    nth < last
                }
                Resolution::StillUnknown { why: UnresolvedReason::RegisterGone } => {
                    leave.registers_gone
                }
                Resolution::StillUnknown { .. } => false,
            };
            if !right {
                return Some(format!("returned {answer:?}, applied {times} times"));
            }
        }
        None
    }
}

impl Fates {
    fn add(&mut self, operation: &Operation) {
        self.all += 1;
        let was = |answer: &Resolution| operation.answers.contains(answer);
        let (committed, not_committed) = operation.by_run;
        if committed > 0 || was(&Resolution::Committed) {
            self.committed += 1;
        } else if not_committed > 0 || was(&Resolution::NotCommitted) {
            self.not_committed += 1;
        } else if operation.reported == Reported::InDoubt {
            self.unknown += 1;
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            all: self.all + other.all,
            committed: self.committed + other.committed,
            not_committed: self.not_committed + other.not_committed,
            unknown: self.unknown + other.unknown,
        }
    }
}
