//! Which master of a cluster serves which slot, parsed from replies of its nodes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use redis::Value;

use crate::protocol::cluster::redirect::RedirectTarget;
use crate::protocol::cluster::slot::SLOTS;
use crate::protocol::resp::fields::{field, list, text};

/// The address of a node.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeAddress {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
}

impl NodeAddress {
    pub(crate) fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// From an address that the node at host `from` returned.
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

/// Marks an unserved slot.
const NO_MASTER: u32 = u32::MAX;

/// Which master serves which slot.
#[derive(Clone)]
pub(crate) struct SlotMap {
    masters: Vec<NodeAddress>,
    /// For each slot the index in `masters`.
    owners: Vec<u32>,
}

impl Default for SlotMap {
    fn default() -> Self {
        Self { masters: Vec::new(), owners: vec![NO_MASTER; SLOTS.into()] }
    }
}

impl SlotMap {
    /// The master of the slot, if known.
    pub(crate) fn master(&self, slot: u16) -> Option<&NodeAddress> {
        let owner = self.owners.get(usize::from(slot))?;
        self.masters.get(usize::try_from(*owner).ok()?)
    }

    /// All known masters, with or without slots.
    pub(crate) fn masters(&self) -> &[NodeAddress] {
        &self.masters
    }

    /// Number of slots of this master.
    pub(crate) fn slot_count(&self, master: &NodeAddress) -> usize {
        let Some(at) = self.masters.iter().position(|known| known == master) else { return 0 };
        self.owners.iter().filter(|owner| usize::try_from(**owner) == Ok(at)).count()
    }

    /// The masters with at least one slot.
    pub(crate) fn masters_with_slots(&self) -> impl Iterator<Item = &NodeAddress> {
        let mut serves = vec![false; self.masters.len()];
        for owner in &self.owners {
            if let Some(serves) = usize::try_from(*owner).ok().and_then(|at| serves.get_mut(at)) {
                *serves = true;
            }
        }
        self.masters.iter().zip(serves).filter_map(|(master, serves)| serves.then_some(master))
    }

    /// The masters with at least one slot, each with its first one.
    pub(crate) fn masters_with_a_slot(&self) -> Vec<(NodeAddress, u16)> {
        let mut found: Vec<Option<u16>> = vec![None; self.masters.len()];
        for (slot, owner) in (0..).zip(&self.owners) {
            if let Some(first) = usize::try_from(*owner).ok().and_then(|at| found.get_mut(at)) {
                first.get_or_insert(slot);
            }
        }
        let masters = self.masters.iter().zip(found);
        masters.filter_map(|(master, slot)| Some((master.clone(), slot?))).collect()
    }

    /// The first slot that no master serves.
    pub(crate) fn first_unserved(&self) -> Option<u16> {
        let at = self.owners.iter().position(|owner| *owner == NO_MASTER)?;
        u16::try_from(at).ok()
    }

    /// Number of served slots.
    pub(crate) fn slots_served(&self) -> usize {
        self.owners.iter().filter(|owner| **owner != NO_MASTER).count()
    }

    /// Assigns the slot to this master.
    pub(crate) fn set_master(&mut self, slot: u16, to: &NodeAddress) {
        let known = self.masters.iter().position(|known| known == to);
        let at = known.unwrap_or_else(|| {
            self.masters.push(to.clone());
            self.masters.len() - 1
        });
        if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
            *owner = u32::try_from(at).unwrap_or(NO_MASTER);
        }
    }

    /// Parses the reply to CLUSTER SHARDS of the node at host `from`. `None`: the reply has another
    /// form.
    pub(crate) fn of_shards(answer: &Value, from: &str, tls: bool) -> Option<Self> {
        let mut map = SlotMapBuilder::default();
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
                    map.assign(*first, *last, at)?;
                }
            }
        }
        Some(map.map)
    }

    /// The same for CLUSTER SLOTS, which every server has.
    pub(crate) fn of_slots(answer: &Value, from: &str) -> Option<Self> {
        let mut map = SlotMapBuilder::default();
        for range in list(answer)? {
            let [first, last, master, ..] = list(range)? else { return None };
            let [endpoint, port, ..] = list(master)? else { return None };
            let host = host(endpoint).unwrap_or(from);
            let at = map.add(host, u16::try_from(number(port)?).ok()?);
            map.assign(number(first)?, number(last)?, at)?;
        }
        Some(map.map)
    }
}

/// Maximum number of times that a reply may assign all slots. A node assigns each slot once; more
/// is not a valid reply.
const MAX_ASSIGNMENTS: usize = 4;

/// A slot map that is built from one reply in one pass.
#[derive(Default)]
struct SlotMapBuilder {
    map: SlotMap,
    /// The index of each master.
    known: HashMap<NodeAddress, u32>,
    /// Number of slots assigned so far, repetitions included.
    named: usize,
}

impl SlotMapBuilder {
    fn add(&mut self, host: &str, port: u16) -> u32 {
        let masters = &mut self.map.masters;
        *self.known.entry(NodeAddress::new(host, port)).or_insert_with_key(|master| {
            masters.push(master.clone());
            u32::try_from(masters.len() - 1).unwrap_or(NO_MASTER)
        })
    }

    /// Assigns a range of slots. `None`: the reply assigns too many.
    fn assign(&mut self, first: u64, last: u64, to: u32) -> Option<()> {
        let range = usize::try_from(first).ok().zip(usize::try_from(last).ok());
        let range = range.and_then(|(first, last)| self.map.owners.get_mut(first..=last));
        let owners = range.unwrap_or_default();
        self.named += owners.len();
        owners.iter_mut().for_each(|owner| *owner = to);
        (self.named <= MAX_ASSIGNMENTS * usize::from(SLOTS)).then_some(())
    }
}

/// A usable host name. Nodes return nil, an empty string or `?` if theirs is not known.
fn host(value: &Value) -> Option<&str> {
    text(value).filter(|host| !matches!(*host, "" | "?"))
}

/// The host of a node in CLUSTER SHARDS, for a client that reached another node at `from`. If the
/// endpoint is nil or empty, the node is reached at `from`, whatever `ip` contains: nodes behind a
/// proxy or in another network are configured so (`cluster-preferred-endpoint-type`). `?` is a host
/// name that was not set.
fn endpoint<'v>(node: &'v Value, from: &'v str) -> &'v str {
    let preferred = field(node, "endpoint");
    if preferred
        .is_some_and(|preferred| matches!(preferred, Value::Nil) || text(preferred) == Some(""))
    {
        return from;
    }
    let ip = || field(node, "ip").and_then(host);
    preferred.and_then(host).or_else(ip).unwrap_or(from)
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        value => text(value)?.parse().ok(),
    }
}

impl fmt::Debug for SlotMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("masters", &self.masters)
            .field("served", &self.slots_served())
            .finish()
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/slot_map.rs"]
mod tests;
