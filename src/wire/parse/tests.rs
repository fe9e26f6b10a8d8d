//! Random replies in random pieces: what comes out is what redis-rs's parser makes of the whole.

use proptest::prelude::*;
use redis::Value;

use super::{Malformed, Parser, ROOM};
use crate::wire::reply::Reply;

/// A reply on the wire; what is told unasked is a part of it.
#[derive(Clone, Debug)]
enum Node {
    Line(u8, String),
    Text(u8, Vec<u8>),
    Nil(&'static str),
    Many(u8, Vec<Node>),
    /// An attribute before it.
    With(Vec<(Node, Node)>, Box<Node>),
}

fn leaf() -> impl Strategy<Value = Node> {
    let word = "[a-zA-Z0-9 äß._-]{0,20}";
    prop_oneof![
        Just(Node::Line(b'+', "OK".into())),
        Just(Node::Line(b'+', "QUEUED".into())),
        word.prop_map(|text| Node::Line(b'+', text)),
        "[A-Z]{1,10}( [a-z ']{0,20})?".prop_map(|text| Node::Line(b'-', text)),
        any::<i64>().prop_map(|number| Node::Line(b':', number.to_string())),
        (0..1000_i64).prop_map(|number| Node::Line(b':', format!("+{number}"))),
        any::<f64>().prop_map(|number| Node::Line(b',', number.to_string())),
        Just(Node::Line(b',', "-inf".into())),
        "t|f".prop_map(|text| Node::Line(b'#', text)),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Node::Text(b'$', bytes)),
        (ROOM - 20..ROOM + 20).prop_map(|length| Node::Text(b'$', vec![7; length])),
        word.prop_map(|text| Node::Text(b'=', format!("txt:{text}").into_bytes())),
        word.prop_map(|text| Node::Text(b'!', format!("ERR {text}").into_bytes())),
        prop_oneof![Just("$-1\r\n"), Just("*-1\r\n"), Just("_\r\n")].prop_map(Node::Nil),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    leaf().prop_recursive(4, 40, 6, |inner| {
        let many = prop::collection::vec(inner.clone(), 0..6);
        prop_oneof![
            4 => (prop_oneof![Just(b'*'), Just(b'~')], many.clone())
                .prop_map(|(mark, nodes)| Node::Many(mark, nodes)),
            2 => many.prop_map(|mut nodes| {
                nodes.truncate(nodes.len() & !1);
                Node::Many(b'%', nodes)
            }),
            1 => (prop::collection::vec((inner.clone(), inner.clone()), 0..3), inner)
                .prop_map(|(about, node)| Node::With(about, Box::new(node))),
        ]
    })
}

impl Node {
    fn write(&self, out: &mut Vec<u8>, with_attributes: bool) {
        match self {
            Self::Line(mark, text) => {
                out.push(*mark);
                out.extend_from_slice(text.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            Self::Text(mark, bytes) => {
                out.push(*mark);
                out.extend_from_slice(format!("{}\r\n", bytes.len()).as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::Nil(text) => out.extend_from_slice(text.as_bytes()),
            Self::Many(mark, nodes) => {
                let each = if *mark == b'%' { 2 } else { 1 };
                out.push(*mark);
                out.extend_from_slice(format!("{}\r\n", nodes.len() / each).as_bytes());
                nodes.iter().for_each(|node| node.write(out, with_attributes));
            }
            Self::With(about, node) => {
                if with_attributes {
                    out.extend_from_slice(format!("|{}\r\n", about.len()).as_bytes());
                    for (key, value) in about {
                        key.write(out, true);
                        value.write(out, true);
                    }
                }
                node.write(out, with_attributes);
            }
        }
    }

    fn bytes(&self, with_attributes: bool) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, with_attributes);
        out
    }
}

/// What comes of `bytes`, cut where `cuts` say; so many QUEUED are asked for at once.
fn parsed(bytes: &[u8], cuts: &[usize], most: u32) -> Result<Vec<Value>, Malformed> {
    let mut parser = Parser::default();
    let mut values = Vec::new();
    let mut cuts = cuts.iter().cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let room = parser.room();
        let length = cuts.next().copied().unwrap_or(1).max(1).min(room.len()).min(rest.len());
        let (piece, behind) = rest.split_at(length);
        room[..length].copy_from_slice(piece);
        parser.filled(length);
        rest = behind;
        while let Some(reply) = parser.next(most)? {
            assert!((1..=most).contains(&reply.count()), "{reply:?} of {most}");
            let times = reply.count() as usize;
            values.extend(std::iter::repeat_n(reply.into_value(), times));
        }
    }
    assert!(parser.is_empty(), "{parser:?}");
    Ok(values)
}

/// NaN is no value of its own kind.
fn same(ours: &Value, theirs: &Value) -> bool {
    format!("{ours:?}") == format!("{theirs:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replies_in_pieces_are_what_another_parser_makes_of_the_whole(
        nodes in prop::collection::vec((node(), any::<bool>()), 1..5),
        cuts in prop::collection::vec(prop_oneof![1..8_usize, 1..40_000_usize], 1..8),
        queued in 0..6_usize,
        most in 1..5_u32,
    ) {
        let line = || (Node::Line(b'+', "QUEUED".into()), false);
        let nodes: Vec<_> = std::iter::repeat_with(line).take(queued).chain(nodes).collect();
        let mut bytes = Vec::new();
        for (node, pushed) in &nodes {
            if *pushed {
                // Told unasked: nobody hears of it.
                Node::Many(b'>', vec![Node::Text(b'$', b"invalidate".to_vec()), node.clone()])
                    .write(&mut bytes, true);
            }
            node.write(&mut bytes, true);
        }
        let ours = parsed(&bytes, &cuts, most).unwrap();
        prop_assert_eq!(ours.len(), nodes.len());
        for (ours, (node, _)) in ours.iter().zip(&nodes) {
            let theirs = redis::parse_redis_value(&node.bytes(false)).unwrap();
            prop_assert!(same(ours, &theirs), "{:?} is not {:?}", ours, theirs);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_and_what_it_takes_the_other_takes(
        bytes in prop::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'*'), Just(b'$'), Just(b'%'), Just(b'|'), 48..52_u8, any::<u8>()],
            0..60,
        ),
    ) {
        let mut parser = Parser::default();
        parser.room()[..bytes.len()].copy_from_slice(&bytes);
        parser.filled(bytes.len());
        if let Ok(Some(Reply::Value(value))) = parser.next(1)
            // What is told unasked has no value, and neither has what says something about one.
            && !bytes.contains(&b'|') && !bytes.contains(&b'>')
        {
            let theirs = redis::parse_redis_value(&bytes).unwrap();
            prop_assert!(same(&value, &theirs), "{:?} is not {:?}", value, theirs);
        }
    }
}

#[test]
fn queued_is_counted_without_memory_of_its_own() {
    let mut parser = Parser::default();
    let bytes =
        [&b"+QUEUED\r\n".repeat(5)[..], b"-ERR no\r\n+QUEUED\r\n*1\r\n+QUEUED\r\n"].concat();
    parser.room()[..bytes.len()].copy_from_slice(&bytes);
    parser.filled(bytes.len());
    assert_eq!(parser.next(3), Ok(Some(Reply::Queued(3))));
    assert_eq!(parser.next(3), Ok(Some(Reply::Queued(2))));
    assert!(parser.next(3).unwrap().unwrap().is_refused());
    assert_eq!(parser.next(3), Ok(Some(Reply::Queued(1))));
    let inside = Value::Array(vec![Value::SimpleString("QUEUED".into())]);
    assert_eq!(parser.next(1), Ok(Some(Reply::Value(inside))));
    assert_eq!(parser.next(1), Ok(None));
    assert!(parser.is_empty());
}

#[test]
fn numbers_of_every_length_are_read() {
    for number in [0, 9, 10, 10_i64.pow(17), 10_i64.pow(18) - 1, 10_i64.pow(18), i64::MAX, i64::MIN]
    {
        let bytes = format!(":{number}\r\n");
        assert_eq!(parsed(bytes.as_bytes(), &[100], 1), Ok(vec![Value::Int(number)]));
        assert_eq!(parsed(bytes.as_bytes(), &[1], 1), Ok(vec![Value::Int(number)]));
    }
    assert_eq!(parsed(format!(":{}0\r\n", i64::MAX).as_bytes(), &[100], 1), Err(Malformed));
}

#[test]
fn what_is_not_the_protocol_is_malformed() {
    let deep = b"*1\r\n".repeat(101);
    let garbage: [&[u8]; 14] = [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"$3\r\nabcd\r\n",
        b"$x\r\n",
        b":1x\r\n",
        b":\r\n",
        b"*9223372036854775807\r\n*9223372036854775808\r\n",
        b"%9223372036854775807\r\n",
        b"$9223372036854775807\r\n$",
        b"#y\r\n",
        b",one\r\n",
        b"=-1\r\n",
        b"+\xff\xff\r\n",
        b"\r\n",
        &deep,
    ];
    for bytes in garbage {
        let mut parser = Parser::default();
        parser.room()[..bytes.len()].copy_from_slice(bytes);
        parser.filled(bytes.len());
        let found = parser.next(1);
        // What would be longer than anything there is has only to be waited for.
        let waits = bytes.starts_with(b"$9") || bytes.starts_with(b"%9");
        assert_eq!(found, if waits { Ok(None) } else { Err(Malformed) }, "{bytes:?}");
        assert!(parser.room.len() <= ROOM, "memory for what has not come: {bytes:?}");
        assert!(parser.open.iter().all(|open| open.items.capacity() <= super::AHEAD));
    }
    let mut parser = Parser::default();
    let endless = std::iter::repeat_with(|| {
        let room = parser.room();
        let length = room.len();
        room.fill(b'a');
        parser.filled(length);
        parser.next(1)
    });
    assert_eq!(endless.take(100).find(Result::is_err), Some(Err(Malformed)), "a line without end");
}

#[test]
fn a_long_string_takes_no_second_copy_and_the_room_is_small_again_after_a_long_line() {
    let long = vec![b'x'; 3_000_000];
    let head = format!("${}\r\n", long.len());
    let bytes = [head.as_bytes(), &long, b"\r\n+", &long[..900_000], b"\r\n:1\r\n"].concat();
    let mut parser = Parser::default();
    let mut values = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let room = parser.room();
        let length = room.len().min(rest.len());
        room[..length].copy_from_slice(&rest[..length]);
        parser.filled(length);
        rest = &rest[length..];
        if values.is_empty() {
            assert!(parser.room.len() <= ROOM, "a long string is read into a place of its own");
        }
        while let Some(reply) = parser.next(1).unwrap() {
            values.push(reply.into_value());
        }
    }
    let line = String::from_utf8(long[..900_000].to_vec()).unwrap();
    assert!(values == [Value::BulkString(long), Value::SimpleString(line), Value::Int(1)]);
    assert_eq!(parser.room().len(), ROOM);
}
