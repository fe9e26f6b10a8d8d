//! A cluster, a session manager of it, and one with an old slot map.

use crate::side::{BuildSide as _, SessionManager};
use std::time::Duration;

use rediscope::Builder;

use rediscope_testing::cluster::Cluster;

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

/// A key beside another one.
pub(crate) fn beside(key: &str, word: &str) -> String {
    let tag = key.split_inclusive('}').next().unwrap();
    format!("{tag}:{word}")
}
