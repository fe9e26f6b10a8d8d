//! Which master of a cluster serves which slot, as its nodes tell it.
//!
//! Never: a question to a node. Whoever has a connection asks.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use redis::Value;

use crate::protocol::cluster::redirect::Whereto;
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
    pub(crate) fn of(to: &Whereto, from: &str) -> Self {
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
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn array(values: impl IntoIterator<Item = Value>) -> Value {
        Value::Array(values.into_iter().collect())
    }

    fn node(host: &str, port: i64, role: &str, health: &str) -> Vec<(Value, Value)> {
        vec![
            (bulk("id"), bulk("x")),
            (bulk("port"), Value::Int(port)),
            (bulk("tls-port"), Value::Int(port + 1)),
            (bulk("ip"), bulk("10.0.0.1")),
            (bulk("endpoint"), if host == "nil" { Value::Nil } else { bulk(host) }),
            (bulk("role"), bulk(role)),
            (bulk("health"), bulk(health)),
        ]
    }

    fn shard(resp3: bool, slots: &[i64], nodes: Vec<Vec<(Value, Value)>>) -> Value {
        let map = |pairs: Vec<(Value, Value)>| match resp3 {
            true => Value::Map(pairs),
            false => array(pairs.into_iter().flat_map(|(key, value)| [key, value])),
        };
        map(vec![
            (bulk("slots"), array(slots.iter().map(|slot| Value::Int(*slot)))),
            (bulk("nodes"), array(nodes.into_iter().map(map))),
        ])
    }

    #[test]
    fn shards_are_read_in_both_protocols() {
        for resp3 in [false, true] {
            let answer = array([
                shard(
                    resp3,
                    &[0, 1, 3, 3],
                    vec![node("r", 1, "replica", "online"), node("a", 2, "master", "online")],
                ),
                shard(resp3, &[4, 99], vec![node("?", 3, "master", "online")]),
                shard(resp3, &[100, 199], vec![node("nil", 6, "master", "online")]),
                shard(resp3, &[200, 16383], vec![node("", 7, "master", "online")]),
                shard(resp3, &[2, 2], vec![node("f", 4, "master", "fail")]),
                shard(resp3, &[], vec![node("e", 5, "master", "online")]),
            ]);
            let map = Map::of_shards(&answer, "seed", false).unwrap();
            let master = |slot| map.master(slot).map(ToString::to_string);
            assert_eq!(master(0), Some("a:2".into()));
            assert_eq!((master(2), map.served()), (None, 16383), "nobody serves it");
            assert_eq!(master(4), Some("10.0.0.1:3".into()), "it has no name");
            assert_eq!(master(100), Some("seed:6".into()), "where it was reached");
            assert_eq!(master(200), Some("seed:7".into()));
            assert_eq!(map.share(&NodeAddress::new("a", 2)), 3);
            assert_eq!(map.masters().len(), 5, "also the one without slots");
            let tls = Map::of_shards(&answer, "seed", true).unwrap();
            assert_eq!(tls.master(0).map(|node| node.port), Some(3));
        }
    }

    #[test]
    fn slots_are_read_and_one_of_them_moved() {
        let owner = |host: Value, port| array([host, Value::Int(port), bulk("id")]);
        let answer = array([
            array([Value::Int(0), Value::Int(9), owner(Value::Nil, 1), owner(bulk("r"), 9)]),
            array([Value::Int(10), Value::Int(16383), owner(bulk("b"), 2)]),
        ]);
        let mut map = Map::of_slots(&answer, "seed").unwrap();
        assert_eq!(map.master(9).unwrap().to_string(), "seed:1");
        assert_eq!((map.served(), map.masters().len()), (usize::from(SLOTS), 2));
        let to = NodeAddress::of(&Whereto { host: String::new(), port: 3 }, "b");
        map.moved(9, &to);
        assert_eq!(map.master(9), Some(&NodeAddress::new("b", 3)));
        assert_eq!(map.share(&NodeAddress::new("seed", 1)), 9);
    }

    #[test]
    fn a_map_of_many_masters_is_read_in_one_pass_and_one_that_repeats_itself_is_none() {
        let many = 80_000_i64;
        let master = |nth: i64| {
            let host = format!("10.{}.{}.{}", nth / 65_536, nth / 256 % 256, nth % 256);
            array([bulk(&host), Value::Int(1), bulk("id")])
        };
        let range = |first: i64, last: i64, nth: i64| {
            array([Value::Int(first), Value::Int(last), master(nth)])
        };
        let slots = i64::from(SLOTS);
        let answer = array((0..many).map(|nth| match nth {
            nth if nth < slots => range(nth, nth, nth),
            nth => range(slots, slots, nth),
        }));
        let shards = array((0..many / 4).map(|nth| {
            let slots = if nth < slots { vec![nth, nth] } else { Vec::new() };
            let host = format!("h{nth}");
            shard(true, &slots, vec![node(&host, 1, "master", "online")])
        }));
        let begun = std::time::Instant::now();
        let map = Map::of_slots(&answer, "seed").unwrap();
        let other = Map::of_shards(&shards, "seed", false).unwrap();
        // Far more than one pass needs; comparing each with each takes many times that.
        assert!(begun.elapsed() < std::time::Duration::from_secs(8));
        for (map, masters) in [(map, many), (other, many / 4)] {
            assert_eq!(map.masters().len(), masters as usize);
            assert_eq!((map.served(), map.serving().count()), (slots as usize, slots as usize));
            assert_eq!(map.master(SLOTS - 1), map.masters().get(slots as usize - 1));
        }
        let again = |times| array((0..times).map(|nth| range(0, slots - 1, nth)));
        assert_eq!(Map::of_slots(&again(4), "seed").map(|map| map.served()), Some(slots as usize));
        assert!(Map::of_slots(&again(5), "seed").is_none());
    }

    #[test]
    fn what_is_no_map_is_none() {
        for strange in [Value::Okay, Value::Nil, array([Value::Int(1)])] {
            assert!(Map::of_shards(&strange, "s", false).is_none());
            assert!(Map::of_slots(&strange, "s").is_none());
        }
        let beyond =
            array([array([Value::Int(5), Value::Int(99_999), array([bulk("a"), Value::Int(1)])])]);
        assert_eq!(Map::of_slots(&beyond, "s").map(|map| map.served()), Some(0));
    }
}
