//! A real Redis Cluster of the test's own: started, its slots moved, its masters killed, nodes
//! added and removed.
//!
//! Each node is a [`Server`] on a free port. `redis-cli` is not needed.
//!
//! A replica takes over only from a master for which [`Cluster::let_replica_take_over`] or [`Cluster::fail_over`] was
//! called. On a busy machine a master that is only slow would be replaced, while its slots move.

mod node;
mod view;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use redis::Value;

use super::server::Server;
use super::try_for;
use node::{launch, meet};
use view::Entry;

pub use node::Node;

/// Time within which all nodes agree on the cluster.
const AGREEMENT: Duration = Duration::from_secs(30);
/// Time within which nodes must know each other before CLUSTER MEET is sent again.
const HANDSHAKE: Duration = Duration::from_secs(4);
/// Number of hash slots.
pub const SLOTS: u16 = 16384;

/// What the nodes of a cluster have not reached in time.
#[derive(Debug)]
pub struct NoAgreement {
    /// What was waited for.
    pub on: &'static str,
    /// CLUSTER NODES of each node that runs.
    pub views: Vec<String>,
}

impl std::error::Error for NoAgreement {}

impl fmt::Display for NoAgreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not within {AGREEMENT:?}: {}\n{}", self.on, self.views.join("\n"))
    }
}

/// A running cluster. Its nodes end with it.
pub struct Cluster {
    nodes: RwLock<Vec<Node>>,
    extra: Vec<String>,
    masters: usize,
    /// Several slots may be on their way, but one step of one of them is done at a time: two nodes
    /// that MIGRATE to each other wait for each other until both give up.
    stepping: Mutex<()>,
}

impl Cluster {
    /// Starts `masters` masters with equal shares of the slots, and `replicas` replicas of each. The masters have
    /// the first node numbers, then comes the first replica of each, and so on.
    #[track_caller]
    pub fn start(masters: usize, replicas: usize) -> Self {
        Self::with(masters, replicas, &[])
    }

    /// The same, each node with further command line arguments.
    #[track_caller]
    pub fn with(masters: usize, replicas: usize, extra: &[&str]) -> Self {
        let extra: Vec<String> = extra.iter().map(|&arg| arg.to_owned()).collect();
        let all = masters * (1 + replicas);
        let nodes: Vec<_> = thread::scope(|scope| {
            let starting: Vec<_> = (0..all).map(|_| scope.spawn(|| launch(&extra))).collect();
            starting.into_iter().map(|node| node.join().unwrap()).collect()
        });
        for (index, node) in nodes.iter().enumerate() {
            node.server.ask::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for (index, node) in nodes.iter().take(masters).enumerate() {
            // Not by their range, which Redis 6 does not know.
            let slots: Vec<_> = share(index, masters).map(|slot| slot.to_string()).collect();
            let mut add = vec!["CLUSTER", "ADDSLOTS"];
            add.extend(slots.iter().map(String::as_str));
            node.server.ask::<()>(&add);
        }
        for (index, node) in nodes.iter().enumerate() {
            nodes.iter().skip(index + 1).for_each(|other| meet(node, other));
        }
        let cluster =
            Self { nodes: RwLock::new(nodes), extra, masters, stepping: Mutex::default() };
        cluster.all_know_each_other();
        for index in masters..all {
            cluster.make_replica(index, index % masters);
        }
        cluster.is_in_order();
        cluster
    }

    /// Its masters, as they were at the start, for a session manager.
    pub fn url(&self) -> String {
        let nodes = self.nodes();
        let seed = |node: &Node| node.server.address().to_string();
        let seeds: Vec<_> = nodes.iter().take(self.masters).map(seed).collect();
        format!("redis+cluster://{}/", seeds.join(","))
    }

    /// The same over TLS, for a cluster that was started with `--tls-cluster yes`.
    pub fn tls_url(&self) -> String {
        let nodes = self.nodes();
        let port = |node: &Node| node.tls.expect("a cluster over TLS");
        let seed = |node: &Node| format!("127.0.0.1:{}", port(node));
        let seeds: Vec<_> = nodes.iter().take(self.masters).map(seed).collect();
        format!("rediss+cluster://{}/", seeds.join(","))
    }

    /// One node as the only seed.
    pub fn url_of(&self, node: usize) -> String {
        format!("redis+cluster://{}/", self.nodes()[node].server.address())
    }

    /// All nodes ever added, by number; removed and killed ones stay in it.
    pub fn nodes(&self) -> RwLockReadGuard<'_, Vec<Node>> {
        self.nodes.read().unwrap()
    }

    /// Runs one command on a node.
    pub fn ask<T: redis::FromRedisValue>(&self, node: usize, command: &[&str]) -> T {
        self.nodes()[node].server.ask(command)
    }

    fn running(&self) -> Vec<usize> {
        let nodes = self.nodes();
        (0..nodes.len()).filter(|index| nodes[*index].server.is_running()).collect()
    }

    /// The node that claims the slot. `None` while no node does, or two do.
    pub fn owner(&self, slot: u16) -> Option<usize> {
        let serves = |index: &usize| {
            self.view(*index).iter().any(|entry| entry.mine && entry.slots.contains(&slot))
        };
        let owners: Vec<_> = self.running().into_iter().filter(serves).collect();
        (owners.len() == 1).then(|| owners[0])
    }

    /// The value of a key, from the node that serves it.
    pub fn read<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let slot = self.slot(command[1]);
        let owner = try_for(AGREEMENT, || self.owner(slot)).expect("a node serves the slot");
        self.ask(owner, command)
    }

    /// The slot of a key.
    pub fn slot(&self, key: &str) -> u16 {
        self.ask(self.running()[0], &["CLUSTER", "KEYSLOT", key])
    }

    /// A key of this slot, with a tag that no other test's keys have.
    pub fn key_in(&self, slot: u16, word: &str) -> String {
        let tag = (0..).find(|n: &u32| self.slot(&format!("{{{n}}}")) == slot).unwrap();
        format!("{{{tag}}}:{word}")
    }

    /// Moves a slot with all its keys, as an operator's tool does it.
    pub fn migrate(&self, slot: u16, to: usize) {
        if let Some(from) = self.begin_migration(slot, to) {
            self.end_migration(slot, from, to);
        }
    }

    /// From here on the slot is on its way: a request for a key that is not there any more is
    /// redirected. `None` if the slot is at the target already.
    pub fn begin_migration(&self, slot: u16, to: usize) -> Option<usize> {
        let from = try_for(AGREEMENT, || self.owner(slot)).expect("a node serves the slot");
        if from == to {
            return None;
        }
        let slot = slot.to_string();
        let nodes = self.nodes();
        let (source, target) = (&nodes[from], &nodes[to]);
        target.server.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source.id]);
        source.server.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target.id]);
        Some(from)
    }

    /// Moves up to `count` keys of the slot; returns how many there were.
    #[track_caller]
    pub fn move_keys(&self, slot: u16, from: usize, to: usize, count: u32) -> usize {
        let (slot, count) = (slot.to_string(), count.to_string());
        let keys: Vec<String> = self.ask(from, &["CLUSTER", "GETKEYSINSLOT", &slot, &count]);
        if keys.is_empty() {
            return 0;
        }
        let port = self.nodes()[to].server.port().to_string();
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(&port).arg("").arg(0).arg(5000).arg("KEYS").arg(&keys);
        let mut source = self.nodes()[from].server.connection();
        let _one = self.stepping();
        self.agree("the target takes the keys", || match migrate.query::<Value>(&mut source) {
            Ok(_) => true,
            // A node that is slow counts as failed for a moment. The keys are still at the source.
            Err(error) if error.to_string().contains("CLUSTERDOWN") => false,
            Err(error) => panic!("MIGRATE of slot {slot}: {error}"),
        });
        keys.len()
    }

    /// Moves what is left; then the slot is the target's, and every node and replica has been informed.
    #[track_caller]
    pub fn end_migration(&self, slot: u16, from: usize, to: usize) {
        // Before the target serves the slot, because it would create a key that has not arrived yet.
        while self.move_keys(slot, from, to, 10) > 0 {}
        let _one = self.stepping();
        self.agree("every node knows all epochs", || self.epochs_are_known());
        self.replicas_have_all(to);
        let text = slot.to_string();
        let id = self.nodes()[to].id.clone();
        let command = ["CLUSTER", "SETSLOT", &text, "NODE", &id];
        self.ask::<()>(to, &command);
        self.ask::<()>(from, &command);
        for other in self.running() {
            let is_master = self.view(other).iter().any(|entry| entry.mine && entry.master);
            if other != from && other != to && is_master {
                self.ask::<()>(other, &command);
            }
        }
        // Replicas take no SETSLOT. One that took over before it knew of the slot would not serve it.
        self.agree("every node knows the slot's master", || self.is_known_owner(slot, to));
    }

    /// The keys that MIGRATE has deleted at their former master must not be lost with the new one.
    #[track_caller]
    fn replicas_have_all(&self, master: usize) {
        let offset = |node: usize, field| -> Option<u64> {
            self.nodes()[node].server.info(field)?.parse().ok()
        };
        let sent = offset(master, "master_repl_offset");
        for replica in self.replicas_of(master) {
            self.agree("the replica has what its master had", || {
                offset(replica, "slave_repl_offset") >= sent
            });
        }
    }

    /// From here on a replica takes over if this master fails.
    pub fn let_replica_take_over(&self, master: usize) {
        for replica in self.replicas_of(master) {
            self.nodes()[replica].server.config_set("cluster-replica-no-failover", "no");
        }
    }

    /// Kills a master and waits until one of its replicas serves its slots, and all nodes agree; returns which.
    #[track_caller]
    pub fn fail_over(&self, master: usize) -> usize {
        let slots = self.slots_of(master);
        self.let_replica_take_over(master);
        self.nodes()[master].server.sigkill();
        let successor = self.await_owner(*slots.first().expect("a master that serves slots"));
        self.is_in_order();
        assert_eq!(self.slots_of(successor), slots, "it serves all of them");
        self.nodes()[successor].server.config_set("cluster-replica-no-failover", "yes");
        successor
    }

    /// Any slot that this node serves.
    pub fn slot_of(&self, node: usize) -> Option<u16> {
        let view = self.view(node);
        let mine = view.iter().find(|entry| entry.mine)?;
        mine.slots.iter().next()
    }

    /// All slots that this node serves.
    pub fn slots_of(&self, node: usize) -> Vec<u16> {
        let view = self.view(node);
        view.iter().filter(|entry| entry.mine).flat_map(|entry| entry.slots.iter()).collect()
    }

    /// Waits until a node serves the slot in a cluster that is up; returns its number.
    pub fn await_owner(&self, slot: u16) -> usize {
        let owner = try_for(AGREEMENT, || {
            let owner = self.owner(slot)?;
            let info: String = self.ask(owner, &["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok").then_some(owner)
        });
        owner.unwrap_or_else(|| panic!("no node serves slot {slot} within {AGREEMENT:?}"))
    }

    /// Starts an empty master, which all nodes meet, and returns its number.
    pub fn add_master(&self) -> usize {
        let node = launch(&self.extra);
        let mut nodes = self.nodes.write().unwrap();
        nodes.iter().filter(|other| other.server.is_running()).for_each(|other| meet(other, &node));
        nodes.push(node);
        let index = nodes.len() - 1;
        drop(nodes);
        self.all_know_each_other();
        self.is_in_order();
        index
    }

    /// Starts a replica of this master, and waits until it is in step.
    pub fn add_replica_of(&self, master: usize) -> usize {
        let replica = self.add_master();
        self.make_replica(replica, master);
        self.is_in_order();
        replica
    }

    /// The same as [`remove`](Self::remove), with the replicas of it.
    pub fn remove_with_replicas(&self, node: usize) {
        self.replicas_of(node).into_iter().for_each(|replica| self.remove(replica));
        self.remove(node);
    }

    /// Makes all nodes forget a node that serves nothing any more, and ends it.
    pub fn remove(&self, node: usize) {
        assert!(self.slots_of(node).is_empty(), "it still serves slots");
        let id = self.nodes()[node].id.clone();
        self.nodes()[node].server.sigterm_and_wait();
        for other in self.running() {
            self.ask::<()>(other, &["CLUSTER", "FORGET", &id]);
        }
    }

    /// Starts a killed node again, and waits until it follows the node that took its place.
    #[track_caller]
    pub fn revive(&self, node: usize) {
        self.nodes()[node].server.restart_on_same_port();
        self.agree("it follows its successor", || {
            let server = &self.nodes()[node].server;
            server.info("role").as_deref() == Some("slave")
                && server.info("master_link_status").as_deref() == Some("up")
        });
        self.is_in_order();
    }

    /// Of all nodes that run: the sum of a counter.
    pub fn sum(&self, question: impl Fn(&Server) -> u64) -> u64 {
        let nodes = self.nodes();
        nodes.iter().map(|node| &node.server).filter(|s| s.is_running()).map(question).sum()
    }

    fn stepping(&self) -> MutexGuard<'_, ()> {
        self.stepping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running replicas of a master.
    fn replicas_of(&self, master: usize) -> Vec<usize> {
        let (running, view, nodes) = (self.running(), self.view(master), self.nodes());
        let of = Some(&nodes[master].id);
        let ids: Vec<_> = view.iter().filter(|it| it.master_id.as_ref() == of).collect();
        let follows = |node: &usize| ids.iter().any(|it| it.id == nodes[*node].id);
        running.into_iter().filter(follows).collect()
    }

    fn make_replica(&self, replica: usize, master: usize) {
        let id = self.nodes()[master].id.clone();
        self.ask::<()>(replica, &["CLUSTER", "REPLICATE", &id]);
    }

    fn all_know_each_other(&self) {
        let running = self.running();
        let know = || {
            let all = running.iter().all(|index| {
                let view = self.view(*index);
                view.len() >= running.len() && view.iter().all(|entry| !entry.in_handshake)
            });
            all.then_some(())
        };
        let begun = Instant::now();
        while try_for(HANDSHAKE, know).is_none() {
            assert!(begun.elapsed() < AGREEMENT, "not within {AGREEMENT:?}: all know each other");
            // A handshake that takes a second is given up, and TLS's may on a busy machine.
            let nodes = self.nodes();
            for (index, node) in running.iter().enumerate() {
                let others = running.iter().skip(index + 1);
                others.for_each(|other| meet(&nodes[*node], &nodes[*other]));
            }
        }
    }

    /// All nodes agree, every slot is served, every replica is in sync.
    #[track_caller]
    fn is_in_order(&self) {
        let running = self.running();
        let in_order = || {
            let mut owners = running.iter().map(|index| {
                let info: String = self.ask(*index, &["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok").then(|| self.ids(*index))
            });
            let Some(Some(first)) = owners.next() else { return false };
            owners.all(|other| other.as_ref() == Some(&first))
                && running.iter().all(|index| {
                    let server = &self.nodes()[*index].server;
                    server.info("role").as_deref() == Some("master")
                        || server.info("master_link_status").as_deref() == Some("up")
                })
        };
        self.agree("the cluster is in order", in_order);
    }

    #[track_caller]
    fn agree(&self, on: &'static str, reached: impl FnMut() -> bool) {
        self.try_agree(on, reached).unwrap_or_else(|error| panic!("{error}"));
    }

    fn try_agree(
        &self,
        on: &'static str,
        mut reached: impl FnMut() -> bool,
    ) -> Result<(), NoAgreement> {
        try_for(AGREEMENT, || reached().then_some(())).ok_or_else(|| {
            let view = |node| {
                let nodes: String = self.ask(node, &["CLUSTER", "NODES"]);
                format!("node {node}:\n{nodes}")
            };
            NoAgreement { on, views: self.running().into_iter().map(view).collect() }
        })
    }

    /// All nodes count the slot as this master's, under the epoch that it has itself.
    fn is_known_owner(&self, slot: u16, master: usize) -> bool {
        let own = self.view(master);
        let Some(own) = own.iter().find(|entry| entry.mine) else { return false };
        self.running().into_iter().all(|node| {
            let is_it = |entry: &Entry| (&entry.id, entry.epoch) == (&own.id, own.epoch);
            self.view(node).iter().any(|entry| is_it(entry) && entry.slots.contains(&slot))
        })
    }

    /// Every master has an epoch of its own, which all nodes know. Else the new owner of a slot may
    /// take an epoch below the old one's. A late claim of the old owner then takes the slot back, and
    /// each of the two reports it as the other one's for ever.
    fn epochs_are_known(&self) -> bool {
        let running = self.running();
        let views: Vec<_> = running.iter().map(|index| self.view(*index)).collect();
        let own = views.iter().flatten().filter(|entry| entry.mine && entry.master);
        let epochs: BTreeMap<_, _> = own.map(|entry| (entry.epoch, &entry.id)).collect();
        let masters = views.iter().flatten().filter(|entry| entry.mine && entry.master).count();
        epochs.len() == masters
            && epochs.iter().all(|(epoch, id)| {
                let same = |view: &Vec<Entry>| {
                    view.iter().any(|entry| entry.id == **id && entry.epoch == *epoch)
                };
                views.iter().all(same)
            })
    }

    /// The nodes with their slots and masters, as one node sees them.
    fn ids(&self, node: usize) -> Vec<(String, bool, String)> {
        let mut ids: Vec<_> = self
            .view(node)
            .into_iter()
            .map(|entry| (entry.id, entry.master, format!("{:?}", entry.slots.0)))
            .collect();
        ids.sort();
        ids
    }

    fn view(&self, node: usize) -> Vec<Entry> {
        let text: String = self.ask(node, &["CLUSTER", "NODES"]);
        text.lines().map(Entry::read).collect()
    }
}

fn share(index: usize, of: usize) -> RangeInclusive<u16> {
    let first = |index: usize| (usize::from(SLOTS) * index / of) as u16;
    first(index)..=first(index + 1) - 1
}
