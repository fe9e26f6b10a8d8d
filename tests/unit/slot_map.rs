//! Unit tests of `src/protocol/cluster/slot_map.rs`.
//!
//! Guarantee: clusters

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
        let map = SlotMap::of_shards(&answer, "seed", false).unwrap();
        let master = |slot| map.master(slot).map(ToString::to_string);
        assert_eq!(master(0), Some("a:2".into()));
        assert_eq!((master(2), map.slots_served()), (None, 16383), "no node serves it");
        assert_eq!(master(4), Some("10.0.0.1:3".into()), "it has no name");
        assert_eq!(master(100), Some("seed:6".into()), "where it was reached");
        assert_eq!(master(200), Some("seed:7".into()));
        assert_eq!(map.slot_count(&NodeAddress::new("a", 2)), 3);
        assert_eq!(map.masters().len(), 5, "also the one without slots");
        let tls = SlotMap::of_shards(&answer, "seed", true).unwrap();
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
    let mut map = SlotMap::of_slots(&answer, "seed").unwrap();
    assert_eq!(map.master(9).unwrap().to_string(), "seed:1");
    assert_eq!((map.slots_served(), map.masters().len()), (usize::from(SLOTS), 2));
    let to = NodeAddress::of(&RedirectTarget { host: String::new(), port: 3 }, "b");
    map.set_master(9, &to);
    assert_eq!(map.master(9), Some(&NodeAddress::new("b", 3)));
    assert_eq!(map.slot_count(&NodeAddress::new("seed", 1)), 9);
}

#[test]
fn a_map_of_many_masters_is_read_in_one_pass_and_one_that_repeats_itself_is_none() {
    let many = 80_000_i64;
    let master = |nth: i64| {
        let host = format!("10.{}.{}.{}", nth / 65_536, nth / 256 % 256, nth % 256);
        array([bulk(&host), Value::Int(1), bulk("id")])
    };
    let range =
        |first: i64, last: i64, nth: i64| array([Value::Int(first), Value::Int(last), master(nth)]);
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
    let map = SlotMap::of_slots(&answer, "seed").unwrap();
    let other = SlotMap::of_shards(&shards, "seed", false).unwrap();
    // Far more than one pass needs; comparing each with each takes many times that.
    assert!(begun.elapsed() < std::time::Duration::from_secs(8));
    for (map, masters) in [(map, many), (other, many / 4)] {
        assert_eq!(map.masters().len(), masters as usize);
        assert_eq!(
            (map.slots_served(), map.masters_with_slots().count()),
            (slots as usize, slots as usize)
        );
        assert_eq!(map.master(SLOTS - 1), map.masters().get(slots as usize - 1));
    }
    let again = |times| array((0..times).map(|nth| range(0, slots - 1, nth)));
    assert_eq!(
        SlotMap::of_slots(&again(4), "seed").map(|map| map.slots_served()),
        Some(slots as usize)
    );
    assert!(SlotMap::of_slots(&again(5), "seed").is_none());
}

#[test]
fn an_invalid_slot_map_is_none() {
    for strange in [Value::Okay, Value::Nil, array([Value::Int(1)])] {
        assert!(SlotMap::of_shards(&strange, "s", false).is_none());
        assert!(SlotMap::of_slots(&strange, "s").is_none());
    }
    let beyond =
        array([array([Value::Int(5), Value::Int(99_999), array([bulk("a"), Value::Int(1)])])]);
    assert_eq!(SlotMap::of_slots(&beyond, "s").map(|map| map.slots_served()), Some(0));
}
