//! A cluster, a session manager of it, and one with an old slot map.

use crate::side::{BuildSide as _, SessionManager};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rediscope::Builder;
use scopeguard::defer;

use crate::fixture::SOON;
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;

/// A cluster and a session manager of it.
pub(crate) struct ClusterFixture {
    pub(crate) cluster: Cluster,
    pub(crate) sessions: SessionManager,
}

impl ClusterFixture {
    /// Three masters without replicas.
    pub(crate) fn start() -> Self {
        Self::of(Cluster::start(3, 0))
    }

    pub(crate) fn of(cluster: Cluster) -> Self {
        let sessions = builder(&cluster).build_side().unwrap();
        Self { cluster, sessions }
    }

    /// A key of each master's, all with tags of their own.
    pub(crate) fn keys(&self, word: &str) -> [String; 3] {
        [0, 1, 2].map(|node| {
            let slot = self.cluster.slot_of(node).unwrap();
            self.cluster.key_in(slot, word)
        })
    }
}

pub(crate) fn builder(cluster: &Cluster) -> Builder {
    SessionManager::builder(cluster.url())
        .connect_timeout(Duration::from_secs(1))
        .response_timeout(Duration::from_secs(2))
        .checkout_timeout(Duration::from_secs(10))
}

/// Has so many threads write again and again until `meanwhile` ends. `write` is called with the number of the
/// thread and of the write, and returns whether it was applied; `meanwhile` with a function that waits
/// until so many more are. Returns how many were applied.
pub(crate) fn applied_by_writers(
    writers: usize,
    write: impl Fn(usize, usize) -> bool + Sync,
    meanwhile: impl FnOnce(&dyn Fn(u64)),
) -> i64 {
    let (over, applied) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (write, over, applied) = (&write, &over, &applied);
        for writer in 0..writers {
            scope.spawn(move || {
                for made in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    applied.fetch_add(write(writer, made).into(), Ordering::Relaxed);
                }
            });
        }
        // Also where this panics: the others would go on for ever.
        defer! { over.store(true, Ordering::Relaxed) }
        meanwhile(&|more| {
            let count = applied.load(Ordering::Relaxed) + more;
            eventually(SOON, "more was applied", || applied.load(Ordering::Relaxed) >= count);
        });
    });
    applied.into_inner() as i64
}

/// A key beside another one.
pub(crate) fn beside(key: &str, word: &str) -> String {
    let tag = key.split_inclusive('}').next().unwrap();
    format!("{tag}:{word}")
}
