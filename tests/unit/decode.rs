//! Random replies in random pieces: the result is that of redis-rs's parser for the whole.
//!
//! Guarantee: replies-of-every-size

use proptest::prelude::*;
use redis::Value;

use crate::protocol::resp::decode::{
    ELEMENT_SIZE, Fault, FaultKind, MAX_DEPTH, MAX_ERROR_TEXT, Parser, READ_BUFFER, Unsolicited,
};
use crate::protocol::resp::reply::{Reply, is_too_large};

/// A reply on the wire; a push is a part of it.
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
        (READ_BUFFER - 20..READ_BUFFER + 20).prop_map(|length| Node::Text(b'$', vec![7; length])),
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

/// The result of `bytes`, cut at `cuts`, with this number of QUEUED awaited at once.
fn parsed(bytes: &[u8], cuts: &[usize], most: u32) -> Result<Vec<Value>, Fault> {
    let mut parser = Parser::default();
    let mut values = Vec::new();
    let mut cuts = cuts.iter().cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let read_buffer = parser.read_buffer();
        let length =
            cuts.next().copied().unwrap_or(1).max(1).min(read_buffer.len()).min(rest.len());
        let (piece, behind) = rest.split_at(length);
        read_buffer[..length].copy_from_slice(piece);
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
                // A push: it is skipped.
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
        parser.read_buffer()[..bytes.len()].copy_from_slice(&bytes);
        parser.filled(bytes.len());
        if let Ok(Some(Reply::Value(value))) = parser.next(1)
            // A push has no value, and neither has an attribute.
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
    parser.read_buffer()[..bytes.len()].copy_from_slice(&bytes);
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
    assert_eq!(parsed(format!(":{}0\r\n", i64::MAX).as_bytes(), &[100], 1), Err(MALFORMED));
}

const MALFORMED: Fault = Fault { kind: FaultKind::Malformed, array: None };

/// What comes of `bytes` in one piece, or in pieces of one byte.
fn first(parser: &mut Parser, bytes: &[u8], piece: usize) -> Result<Option<Reply>, Fault> {
    for piece in bytes.chunks(piece) {
        let mut rest = piece;
        while !rest.is_empty() {
            let read_buffer = parser.read_buffer();
            let length = read_buffer.len().min(rest.len());
            read_buffer[..length].copy_from_slice(&rest[..length]);
            parser.filled(length);
            rest = &rest[length..];
            if let Some(reply) = parser.next(1)? {
                assert!(rest.is_empty(), "more than one reply");
                return Ok(Some(reply));
            }
        }
    }
    Ok(None)
}

#[test]
fn bytes_outside_the_protocol_are_malformed() {
    let garbage: [&[u8]; 16] = [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"$3\r\nabcd\r\n",
        b"$x\r\n",
        b":1x\r\n",
        b":\r\n",
        b"%9223372036854775808\r\n",
        b"%-1\r\n",
        b"#y\r\n",
        b",one\r\n",
        b"=-1\r\n",
        b"\r\n",
        b">1\r\n$3\r\nabcd\r\n",
        b">1\r\nx\r\n",
        b">2\r\n%9223372036854775807\r\n%9223372036854775807\r\n",
        b">1\r\n:1x\r\n",
        b"|1\r\n+a\r\n$1\r\na\rb",
    ];
    for bytes in garbage {
        for piece in [1, 100] {
            let mut parser = Parser::default();
            assert_eq!(first(&mut parser, bytes, piece), Err(MALFORMED), "{bytes:?}");
            assert!(
                parser.read_buffer.len() <= READ_BUFFER,
                "memory for what has not come: {bytes:?}"
            );
        }
    }
}

/// Each is legal, and was refused by this parser or is refused by redis-rs's.
#[test]
fn every_legal_reply_is_read_in_one_piece_and_byte_by_byte() {
    let error = |code: &str, text: &str| {
        let line = format!("-{code} {text}\r\n");
        redis::parse_redis_value(line.as_bytes()).unwrap()
    };
    let deep = |levels| (0..levels).fold(Value::Int(1), |value, _| Value::Array(vec![value]));
    let nested = |levels: usize| [&b"*1\r\n".repeat(levels)[..], b":1\r\n"].concat();
    let long = vec![b'x'; 256 * 1024];
    let wordy = "w".repeat(2 * MAX_ERROR_TEXT);
    let verbatim = |text: &str| Value::VerbatimString {
        format: redis::VerbatimFormat::Text,
        text: text.to_owned(),
    };
    let table: Vec<(Vec<u8>, Value)> = vec![
        (
            b"-ERR unknown command '\xff\xfe'\r\n".to_vec(),
            error("ERR", "unknown command '\u{fffd}\u{fffd}'"),
        ),
        (b"!7\r\nERR \xff\r\n\r\n".to_vec(), {
            redis::parse_redis_value("!9\r\nERR \u{fffd}\r\n\r\n".as_bytes()).unwrap()
        }),
        (b"-\r\n".to_vec(), redis::parse_redis_value(b"-\r\n").unwrap()),
        (format!("-ERR {wordy}\r\n").into_bytes(), error("ERR", &wordy[..MAX_ERROR_TEXT - 4])),
        (b"+\xff\xff\r\n".to_vec(), Value::BulkString(vec![0xff, 0xff])),
        (b"+a\nb\rc\r\n".to_vec(), Value::SimpleString("a\nb\rc".into())),
        ([b"+", &long[..], b"\r\n"].concat(), Value::SimpleString("x".repeat(long.len()))),
        (b"=7\r\ntxt:\xffab\r\n".to_vec(), verbatim("\u{fffd}ab")),
        (b"=3\r\nabc\r\n".to_vec(), Value::BulkString(b"abc".to_vec())),
        (b"=4\r\ntxt:\r\n".to_vec(), verbatim("")),
        (b"(-3492890328409238509324850943850943825024385\r\n".to_vec(), {
            redis::parse_redis_value(b"(-3492890328409238509324850943850943825024385\r\n").unwrap()
        }),
        (b",inf\r\n".to_vec(), Value::Double(f64::INFINITY)),
        (b",-inf\r\n".to_vec(), Value::Double(f64::NEG_INFINITY)),
        (b",nan\r\n".to_vec(), Value::Double(f64::NAN)),
        (b",-nan\r\n".to_vec(), Value::Double(-f64::NAN)),
        (b",1.5e-7\r\n".to_vec(), Value::Double(1.5e-7)),
        (b"#t\r\n".to_vec(), Value::Boolean(true)),
        (b"_\r\n".to_vec(), Value::Nil),
        (b"*-1\r\n".to_vec(), Value::Nil),
        (b"~1\r\n%1\r\n_\r\n*0\r\n".to_vec(), {
            Value::Set(vec![Value::Map(vec![(Value::Nil, Value::Array(Vec::new()))])])
        }),
        (nested(101), deep(101)),
        (nested(MAX_DEPTH), deep(MAX_DEPTH)),
        // Thrown away, as deep as it is: a push, and an attribute inside an array.
        ([b">1\r\n".to_vec(), nested(100_000), b":7\r\n".to_vec()].concat(), Value::Int(7)),
        (
            [b"*2\r\n|1\r\n+a\r\n".to_vec(), nested(100_000), b":7\r\n:8\r\n".to_vec()].concat(),
            Value::Array(vec![Value::Int(7), Value::Int(8)]),
        ),
        (
            b">2\r\n|1\r\n+a\r\n(1\r\n=5\r\ntxt:a\r\n%1\r\n+\xff\r\n!2\r\n\r\n\r\n>0\r\n:7\r\n"
                .to_vec(),
            Value::Int(7),
        ),
    ];
    for (bytes, expected) in &table {
        for piece in [1, 7, 1 << 20] {
            let mut parser = Parser::default();
            let found = first(&mut parser, bytes, piece).unwrap().map(Reply::into_value);
            let found = found.unwrap_or_else(|| panic!("{:?} is not whole", bytes.get(..20)));
            let shown = bytes.get(..bytes.len().min(20));
            assert!(same(&found, expected), "{shown:?} in pieces of {piece}");
            assert!(parser.is_empty(), "{shown:?}");
            assert!(parser.read_buffer.len() <= READ_BUFFER, "{shown:?}");
        }
    }
}

#[test]
fn the_bound_is_on_strings_and_elements_and_is_looked_at_before_they_come() {
    let array = |length: usize| Fault { kind: FaultKind::TooLarge, array: Some(length) };
    let large = Fault { kind: FaultKind::TooLarge, array: None };
    let bound = 10 * ELEMENT_SIZE;
    let text = |length: usize| format!("${length}\r\n{}\r\n", "a".repeat(length)).into_bytes();
    let line = |length: usize| format!("+{}\r\n", "a".repeat(length)).into_bytes();
    let table: Vec<(Vec<u8>, Result<(), Fault>)> = vec![
        (text(bound), Ok(())),
        (format!("${}\r\n", bound + 1).into_bytes(), Err(large)),
        (format!("!{}\r\n", bound + 1).into_bytes(), Err(large)),
        (b"$9223372036854775807\r\n".to_vec(), Err(large)),
        (line(bound), Ok(())),
        (line(bound + 1), Err(large)),
        (line(bound + 4)[..bound + 4].to_vec(), Err(large)),
        ([b"*10\r\n".to_vec(), b"_\r\n".repeat(10)].concat(), Ok(())),
        ([b"%5\r\n".to_vec(), b"_\r\n".repeat(10)].concat(), Ok(())),
        (b"*11\r\n".to_vec(), Err(array(11))),
        (b"%6\r\n".to_vec(), Err(large)),
        (b"*9223372036854775807\r\n".to_vec(), Err(array(i64::MAX as usize))),
        (b"%4611686018427387904\r\n".to_vec(), Err(large)),
        (b"*1\r\n~10\r\n".to_vec(), Err(array(1))),
        ([b"*2\r\n".to_vec(), text(8 * ELEMENT_SIZE), b":1\r\n".to_vec()].concat(), Ok(())),
        ([b"*2\r\n".to_vec(), text(8 * ELEMENT_SIZE), b"+a\r\n".to_vec()].concat(), Err(array(2))),
        // What is thrown away does not count.
        ([b">1\r\n".to_vec(), text(9 * bound), text(bound)].concat(), Ok(())),
        ([b"|1\r\n".to_vec(), line(9 * bound), text(9 * bound), text(bound)].concat(), Ok(())),
        (
            [&b"*3\r\n*"[..], &b"1\r\n*".repeat(MAX_DEPTH)].concat(),
            Err(Fault { kind: FaultKind::TooDeep, array: Some(3) }),
        ),
    ];
    for (bytes, expected) in &table {
        for piece in [1, 100, 1 << 20] {
            let mut parser = Parser::default();
            let deep = matches!(expected, Err(Fault { kind: FaultKind::TooDeep, .. }));
            parser.set_max_bytes(if deep { usize::MAX } else { bound });
            let found = first(&mut parser, bytes, piece);
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]);
            assert_eq!(
                found.as_ref().map(|_| ()),
                expected.as_ref().copied(),
                "{shown:?} in {piece}"
            );
            assert!(found.is_err() || found.unwrap().is_some(), "{shown:?} is whole");
            // A reply's end is where the count begins again.
            if expected.is_ok() {
                let again = first(&mut parser, &text(bound), piece);
                assert!(matches!(again, Ok(Some(Reply::Value(_)))), "{shown:?}");
            }
        }
    }
}

#[test]
fn discarded_replies_take_no_memory_and_a_line_is_scanned_once() {
    let mut parser = Parser::default();
    // A push of a line, a string and elements, of 32 MiB and a million elements, which lacks its end.
    let megabyte = vec![b'a'; 1 << 20];
    let mut feed = |bytes: &[u8]| {
        let found = first(&mut parser, bytes, bytes.len());
        assert_eq!(found, Ok(None));
        let kept = parser.read_buffer.len() + parser.open.capacity();
        assert!(kept <= READ_BUFFER, "{kept} bytes are kept");
        assert!(!matches!(
            parser.partial,
            Some(
                crate::protocol::resp::decode::Partial::Text { .. }
                    | crate::protocol::resp::decode::Partial::Line(_)
            )
        ));
        assert_eq!(
            parser.check_unsolicited(),
            Ok(Unsolicited::Push),
            "only what is thrown away has begun"
        );
    };
    feed(b">3\r\n+");
    (0..32).for_each(|_| feed(&megabyte));
    feed(b"\r\n$33554432\r\n");
    (0..32).for_each(|_| feed(&megabyte));
    feed(b"\r\n*1048577\r\n");
    (0..8).for_each(|_| feed(&b"_\r\n*0\r\n".repeat(1 << 16)));
    feed(b"*1\r\n");
    assert!(!parser.is_empty());
    // Byte by byte, a line of a megabyte: 10^12 looks at a byte if each began again.
    let mut parser = Parser::default();
    let line = [b"+", &megabyte[..], b"\r\n"].concat();
    assert!(matches!(first(&mut parser, &line, 1), Ok(Some(Reply::Value(Value::SimpleString(_))))));
    let mut parser = Parser::default();
    assert_eq!(first(&mut parser, b":1", 1), Ok(None));
    assert_eq!(parser.check_unsolicited(), Ok(Unsolicited::Reply), "half a reply");
    for (bytes, expected) in [
        (&b""[..], Unsolicited::Nothing),
        (b">1\r\n+a\r\n|0\r\n", Unsolicited::Nothing),
        (b">", Unsolicited::Push),
        (b">1\r\n", Unsolicited::Push),
        (b"|1\r\n$2\r\na", Unsolicited::Push),
        (b":1\r\n", Unsolicited::Reply),
        (b">1\r\n_\r\n*1\r\n>", Unsolicited::Reply),
        (b"$1000000\r\na", Unsolicited::Reply),
    ] {
        let mut parser = Parser::default();
        parser.read_buffer()[..bytes.len()].copy_from_slice(bytes);
        parser.filled(bytes.len());
        assert_eq!(parser.check_unsolicited(), Ok(expected), "{bytes:?}");
    }
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
        let read_buffer = parser.read_buffer();
        let length = read_buffer.len().min(rest.len());
        read_buffer[..length].copy_from_slice(&rest[..length]);
        parser.filled(length);
        rest = &rest[length..];
        if values.is_empty() {
            assert!(
                parser.read_buffer.len() <= READ_BUFFER,
                "a long string is read into a place of its own"
            );
        }
        while let Some(reply) = parser.next(1).unwrap() {
            values.push(reply.into_value());
        }
    }
    let line = String::from_utf8(long[..900_000].to_vec()).unwrap();
    assert!(values == [Value::BulkString(long), Value::SimpleString(line), Value::Int(1)]);
    assert_eq!(parser.read_buffer().len(), READ_BUFFER);
}

/// The strings of a part, which count together.
fn texts(node: &Node) -> usize {
    match node {
        Node::Text(_, bytes) => bytes.len(),
        Node::Many(_, nodes) => nodes.len() * ELEMENT_SIZE + nodes.iter().map(texts).sum::<usize>(),
        Node::Line(..) | Node::Nil(_) | Node::With(..) => 0,
    }
}

fn element() -> impl Strategy<Value = Node> {
    let text =
        || prop::collection::vec(b'x'..=b'z', 0..600).prop_map(|bytes| Node::Text(b'$', bytes));
    let leaf = prop_oneof![
        any::<i64>().prop_map(|number| Node::Line(b':', number.to_string())),
        text(),
        Just(Node::Nil("$-1\r\n")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop::collection::vec(inner, 0..4).prop_map(|nodes| Node::Many(b'*', nodes))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Of replies that several callers share, each part is as limited as alone, and a part that is too
    /// large costs the others nothing.
    #[test]
    fn a_part_that_is_too_large_leaves_the_others_as_they_are(
        parts in prop::collection::vec(prop::collection::vec(element(), 1..4), 1..6),
        singles in prop::collection::vec(element(), 0..4),
        cuts in prop::collection::vec(1..300_usize, 1..8),
        limit in 0..700_usize,
    ) {
        let mut bytes = b"+OK\r\n".to_vec();
        Node::Many(b'*', parts.concat()).write(&mut bytes, true);
        singles.iter().for_each(|node| node.write(&mut bytes, true));
        let mut parser = Parser::default();
        parser.set_max_bytes(limit);
        let shared = 2 + singles.len() as u64;
        parser.share(vec![(1, parts.iter().map(|part| part.len() as u32).collect())], shared);
        let (mut values, mut rest, mut cuts) = (Vec::new(), &bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let buffer = parser.read_buffer();
            let length = (*cuts.next().unwrap()).min(buffer.len()).min(rest.len());
            buffer[..length].copy_from_slice(&rest[..length]);
            parser.filled(length);
            rest = &rest[length..];
            while let Some(reply) = parser.next(1).unwrap() {
                values.push(reply.into_value());
            }
        }
        prop_assert!(parser.is_empty());
        prop_assert_eq!(values.len(), 2 + singles.len());
        let Value::Array(elements) = &values[1] else { panic!("{values:?}") };
        let mut elements = elements.iter();
        let whole = |node: &Node| redis::parse_redis_value(&node.bytes(false)).unwrap();
        for part in &parts {
            let own: Vec<_> = elements.by_ref().take(part.len()).collect();
            let fits = part.iter().map(texts).sum::<usize>() <= limit;
            prop_assert_eq!(own.iter().any(|value| is_too_large(value)), !fits, "{:?}", part);
            for (ours, node) in own.iter().zip(part) {
                prop_assert!(is_too_large(ours) || **ours == whole(node));
            }
        }
        for (ours, node) in values[2..].iter().zip(&singles) {
            let fits = texts(node) <= limit;
            prop_assert_eq!(is_too_large(ours), !fits);
            prop_assert!(is_too_large(ours) || *ours == whole(node));
        }
        // The next one is for one caller.
        let next = format!("${}\r\n", limit + 1);
        parser.read_buffer()[..next.len()].copy_from_slice(next.as_bytes());
        parser.filled(next.len());
        prop_assert_eq!(parser.next(1).unwrap_err().kind, FaultKind::TooLarge);
    }
}

#[test]
fn the_parts_of_a_group_that_was_refused_are_none_of_the_next_one() {
    let mut parser = Parser::default();
    parser.set_max_bytes(4096);
    parser.share(vec![(0, vec![3, 1]), (1, vec![1, 3])], 2);
    let large = "x".repeat(8192);
    let small = "$1\r\nx\r\n".repeat(3);
    let bytes = format!("-EXECABORT x\r\n*4\r\n$8192\r\n{large}\r\n{small}");
    let (mut values, mut rest) = (Vec::new(), bytes.as_bytes());
    while !rest.is_empty() {
        let buffer = parser.read_buffer();
        let length = buffer.len().min(rest.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        parser.filled(length);
        rest = &rest[length..];
        while let Some(reply) = parser.next(1).unwrap() {
            values.push(reply.into_value());
        }
    }
    let Some(Value::Array(elements)) = values.last() else { panic!("{values:?}") };
    let found: Vec<_> = elements.iter().map(is_too_large).collect();
    assert_eq!(found, [true, false, false, false]);
}
