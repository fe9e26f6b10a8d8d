//! The results of the writers' calls, compared with the cluster's data.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rediscope::Error;
use rediscope::error::Applied;
use rediscope::prelude::*;

use super::side::Transactional;

use rediscope_testing::cluster::Cluster;

/// A group of keys in one slot, of which each transaction changes all.
pub(crate) struct Group {
    pub(crate) slot: u16,
    tag: String,
}

impl Group {
    pub(crate) fn new(cluster: &Cluster, slot: u16) -> Self {
        Self { slot, tag: cluster.key_in(slot, "g") }
    }

    fn key(&self, word: &str) -> String {
        format!("{}:{word}", self.tag)
    }
}

/// How a writer writes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manner {
    Block,
    Watch,
    /// Each transaction makes a key that was not there.
    Fresh,
    Guard,
}

pub(crate) const MANNERS: [Manner; 4] =
    [Manner::Block, Manner::Watch, Manner::Fresh, Manner::Guard];

/// What writers' calls returned.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) over: AtomicBool,
    pub(crate) acknowledged: AtomicU64,
    next: AtomicU64,
    reported: Mutex<Reported>,
}

#[derive(Default)]
struct Reported {
    applied: BTreeSet<String>,
    unknown: BTreeSet<String>,
    not_applied: BTreeSet<String>,
    /// What `run` gave up for, which the test does not need.
    given_up: Vec<String>,
}

impl Ledger {
    /// Writes until it is over. `waits`: what is acknowledged has a replica.
    pub(crate) fn write(
        &self,
        (handle, waits): (&Transactional, bool),
        groups: &[Group],
        manner: Manner,
    ) {
        while !self.over.load(Ordering::Relaxed) {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let group = &groups[id as usize % groups.len()];
            let id = format!("id:{id}");
            let done = transact(handle, group, &id, manner);
            let mut reported = self.reported.lock().unwrap();
            match done {
                Ok(()) => {
                    let known = match waits {
                        true => &mut reported.applied,
                        false => &mut reported.unknown,
                    };
                    known.insert(id);
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let by_run = !matches!(manner, Manner::Guard);
                    if by_run && error.applied() == Applied::No {
                        reported.given_up.push(error.to_string());
                    }
                    match error.applied() {
                        Applied::No => reported.not_applied.insert(id),
                        // Applied on a master that may have died before its replica had it.
                        Applied::Yes | Applied::Unknown => reported.unknown.insert(id),
                        Applied::Partly => panic!("{error}"),
                    };
                }
            }
        }
    }

    /// Nothing torn, nothing twice, nothing lost that was acknowledged, nothing that was denied.
    pub(crate) fn balance(&self, cluster: &Cluster, groups: &[Group]) -> String {
        let reported = self.reported.lock().unwrap();
        let mut found = BTreeSet::new();
        for group in groups {
            let number =
                |word| cluster.read::<Option<i64>>(&["GET", &group.key(word)]).unwrap_or_default();
            let ids: Vec<String> = cluster.read(&["SMEMBERS", &group.key("ids")]);
            let count = ids.len() as i64;
            assert_eq!((number("plus"), number("minus")), (count, -count), "torn, or twice");
            found.extend(ids);
        }
        let lost: Vec<_> = reported.applied.difference(&found).collect();
        assert!(lost.is_empty(), "acknowledged with a replica, and lost: {lost:?}");
        let denied: Vec<_> = reported.not_applied.intersection(&found).collect();
        assert!(denied.is_empty(), "reported as not applied, and there: {denied:?}");
        let strange = found
            .iter()
            .filter(|id| !reported.applied.contains(*id) && !reported.unknown.contains(*id));
        assert_eq!(strange.count(), 0, "no writer wrote them");
        assert!(reported.given_up.is_empty(), "run gave up: {:?}", reported.given_up);
        format!(
            "{} acknowledged, {} by hand reported as not applied, {} unknown",
            reported.applied.len(),
            reported.not_applied.len(),
            reported.unknown.len()
        )
    }
}

fn transact(handle: &Transactional, group: &Group, id: &str, how: Manner) -> Result<(), Error> {
    let [ids, plus, minus] = ["ids", "plus", "minus"].map(|word| group.key(word));
    let write = |tx: &mut rediscope::Block| {
        tx.sadd(&ids, id);
        (tx.incr(&plus, 1), tx.decr(&minus, 1))
    };
    match how {
        Manner::Block => handle.run(|tx| Ok(write(tx))).map(drop),
        Manner::Fresh => handle
            .run(|tx| {
                tx.set_ex(group.key(&format!("fresh:{id}")), 1, 30);
                Ok(write(tx))
            })
            .map(drop),
        Manner::Watch => handle
            .watch([&plus])
            .run(|read, tx| {
                let n: Option<i64> = read.get(&plus)?;
                tx.sadd(&ids, id);
                tx.set(&plus, n.unwrap_or(0) + 1);
                Ok(tx.decr(&minus, 1))
            })
            .map(drop),
        Manner::Guard => {
            let mut tx = handle.begin_at(&plus)?;
            tx.sadd(&ids, id);
            tx.incr(&plus, 1);
            tx.decr(&minus, 1);
            tx.commit().map(drop)
        }
    }
}
