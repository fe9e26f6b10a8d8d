//! Which master of a cluster serves which slot, as its nodes tell it.
//!
//! Never: a question to a node. Whoever has a connection asks.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use redis::Value;

use crate::protocol::cluster::redirect::RedirectTarget;
use crate::protocol::cluster::slot::SLOTS;
use crate::protocol::resp::fields::{field, list, text};

/// Where a node is reached.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeAddress {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
}

impl NodeAddress {
    pub(crate) fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// As another node gives it, which was reached at `from`.
    pub(crate) fn of(to: &RedirectTarget, from: &str) -> Self {
        let host = if to.host.is_empty() { from } else { &to.host };
        Self::new(host, to.port)
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Nobody, in the table of owners.
const NOBODY: u32 = u32::MAX;

/// Which master serves which slot.
#[derive(Clone)]
pub(crate) struct Map {
    masters: Vec<NodeAddress>,
    /// Of each slot the place in `masters`.
    owners: Vec<u32>,
}

impl Default for Map {
    fn default() -> Self {
        Self { masters: Vec::new(), owners: vec![NOBODY; SLOTS.into()] }
    }
}

impl Map {
    /// Who serves the slot, as far as is known.
    pub(crate) fn master(&self, slot: u16) -> Option<&NodeAddress> {
        let owner = self.owners.get(usize::from(slot))?;
        self.masters.get(usize::try_from(*owner).ok()?)
    }

    /// All masters that are known, whether or not they serve anything.
    pub(crate) fn masters(&self) -> &[NodeAddress] {
        &self.masters
    }

    /// How many slots this one serves.
    pub(crate) fn share(&self, master: &NodeAddress) -> usize {
        let Some(at) = self.masters.iter().position(|known| known == master) else { return 0 };
        self.owners.iter().filter(|owner| usize::try_from(**owner) == Ok(at)).count()
    }

    /// The masters that serve something.
    pub(crate) fn serving(&self) -> impl Iterator<Item = &NodeAddress> {
        let mut serves = vec![false; self.masters.len()];
        for owner in &self.owners {
            if let Some(serves) = usize::try_from(*owner).ok().and_then(|at| serves.get_mut(at)) {
                *serves = true;
            }
        }
        self.masters.iter().zip(serves).filter_map(|(master, serves)| serves.then_some(master))
    }

    /// How many slots somebody serves.
    pub(crate) fn served(&self) -> usize {
        self.owners.iter().filter(|owner| **owner != NOBODY).count()
    }

    /// From now on the slot is this one's.
    pub(crate) fn moved(&mut self, slot: u16, to: &NodeAddress) {
        let at = self.add(to);
        if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
            *owner = at;
        }
    }

    fn add(&mut self, master: &NodeAddress) -> u32 {
        let known = self.masters.iter().position(|known| known == master);
        let at = known.unwrap_or_else(|| {
            self.masters.push(master.clone());
            self.masters.len() - 1
        });
        u32::try_from(at).unwrap_or(NOBODY)
    }

    /// What CLUSTER SHARDS said to who reached the node at `from`. `None`: that is no such answer.
    pub(crate) fn of_shards(answer: &Value, from: &str, tls: bool) -> Option<Self> {
        let mut map = Survey::default();
        for shard in list(answer)? {
            let nodes = list(field(shard, "nodes")?)?;
            let is_master = |node: &&Value| {
                let word = |name| field(node, name).and_then(text);
                word("role") == Some("master") && word("health") != Some("fail")
            };
            let Some(master) = nodes.iter().find(is_master) else { continue };
            let port = if tls { "tls-port" } else { "port" };
            let port = field(master, port).and_then(number)?;
            let at = map.add(endpoint(master, from), u16::try_from(port).ok()?);
            let ends: Vec<_> = list(field(shard, "slots")?)?.iter().filter_map(number).collect();
            for range in ends.chunks_exact(2) {
                if let [first, last] = range {
                    map.give(*first, *last, at)?;
                }
            }
        }
        Some(map.map)
    }

    /// The same for CLUSTER SLOTS, which every server knows.
    pub(crate) fn of_slots(answer: &Value, from: &str) -> Option<Self> {
        let mut map = Survey::default();
        for range in list(answer)? {
            let [first, last, master, ..] = list(range)? else { return None };
            let [endpoint, port, ..] = list(master)? else { return None };
            let host = host(endpoint).unwrap_or(from);
            let at = map.add(host, u16::try_from(number(port)?).ok()?);
            map.give(number(first)?, number(last)?, at)?;
        }
        Some(map.map)
    }
}

/// How often an answer may name every slot. A node names each once; an answer that names them over
/// and over is none.
const NAMINGS: usize = 4;

/// A map that is being read from an answer, in one pass.
#[derive(Default)]
struct Survey {
    map: Map,
    /// Where each master stands among the map's.
    known: HashMap<NodeAddress, u32>,
    /// How many slots were named, the same one as often as it was.
    named: usize,
}

impl Survey {
    fn add(&mut self, host: &str, port: u16) -> u32 {
        let masters = &mut self.map.masters;
        *self.known.entry(NodeAddress::new(host, port)).or_insert_with_key(|master| {
            masters.push(master.clone());
            u32::try_from(masters.len() - 1).unwrap_or(NOBODY)
        })
    }

    /// The slots of a range that exist. `None`: the answer names too many.
    fn give(&mut self, first: u64, last: u64, to: u32) -> Option<()> {
        let range = usize::try_from(first).ok().zip(usize::try_from(last).ok());
        let range = range.and_then(|(first, last)| self.map.owners.get_mut(first..=last));
        let owners = range.unwrap_or_default();
        self.named += owners.len();
        owners.iter_mut().for_each(|owner| *owner = to);
        (self.named <= NAMINGS * usize::from(SLOTS)).then_some(())
    }
}

/// A host that is one: nodes say nil, nothing or `?` where they do not know.
fn host(value: &Value) -> Option<&str> {
    text(value).filter(|host| !matches!(*host, "" | "?"))
}

/// Where a node of CLUSTER SHARDS is reached by who reached another one at `from`. An endpoint that
/// is nil or empty is to be reached there, whatever `ip` says: that is how nodes behind a proxy, or
/// another network's addresses, are configured (`cluster-preferred-endpoint-type`). One that is `?`
/// is a host name that nobody set.
fn endpoint<'v>(node: &'v Value, from: &'v str) -> &'v str {
    let told = field(node, "endpoint");
    if told.is_some_and(|told| matches!(told, Value::Nil) || text(told) == Some("")) {
        return from;
    }
    let ip = || field(node, "ip").and_then(host);
    told.and_then(host).or_else(ip).unwrap_or(from)
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        value => text(value)?.parse().ok(),
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("masters", &self.masters)
            .field("served", &self.served())
            .finish()
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/slot_map.rs"]
mod tests;
