//! Random programs on a queue, whose bytes are read by a parser without a line of the encoder's.
//!
//! Guarantee: large

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::prelude::*;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseResult, TestRunner,
};
use redis::{RedisWrite, ToRedisArgs};

use crate::protocol::queue::{CommandQueue, Limits, Prefix};
use crate::protocol::resp::encode::Args;
use crate::protocol::resp::encode::EncodedCommand;

const PROGRAMS: u32 = 12_000;
const LIMITS: Limits = Limits { commands: 10_000, bytes: 1 << 24 };

type Bytes = Vec<u8>;

#[derive(Clone, Debug)]
enum Node {
    /// A command of the table: its words, then arguments of every kind.
    Table(Vec<String>, Vec<Arg>),
    /// A command that the caller built, whose name may be any bytes.
    Built(Bytes, Vec<Bytes>),
    /// A command that is refused by name.
    Refused,
    /// A command whose last argument panics while it is encoded, behind these.
    Panics(Vec<Bytes>),
    Part(Ending, Vec<Node>),
    /// A chunk is sent here, where one may be.
    Flush,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Kept,
    Dropped,
    Leaked,
}

/// One value as a caller hands it over, in one of the ways of `RedisWrite`.
#[derive(Clone, Debug)]
enum Arg {
    One(Bytes),
    Many(Vec<Bytes>),
    Number(i64),
    Formatted(String),
    /// Its length is known only once all pieces are written.
    Pieces(Vec<Bytes>),
}

impl Arg {
    fn encoded(&self) -> Vec<Bytes> {
        match self {
            Self::One(bytes) => vec![bytes.clone()],
            Self::Many(list) => list.clone(),
            Self::Number(number) => vec![number.to_string().into_bytes()],
            Self::Formatted(text) => vec![text.clone().into_bytes()],
            Self::Pieces(pieces) => vec![pieces.concat()],
        }
    }

    fn write(&self, args: &mut Args<'_>) {
        match self {
            Self::One(bytes) => _ = args.arg(bytes),
            Self::Many(list) => _ = args.arg(list),
            Self::Number(number) => _ = args.arg(number),
            Self::Formatted(text) => args.write_arg_fmt(format_args!("{text}")),
            Self::Pieces(pieces) => {
                let mut writer = args.writer_for_next_arg();
                pieces.iter().for_each(|piece| {
                    std::io::Write::write_all(&mut writer, piece).unwrap();
                });
            }
        }
    }
}

struct Unencodable;

impl ToRedisArgs for Unencodable {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg(b"half of it");
        // Unlike panic! it does not call the hook, which would fill the screen.
        resume_unwind(Box::new("an argument that cannot be encoded"));
    }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..12),
        2 => prop::sample::select(vec![
            &b""[..], b"\r\n", b"a\r\n$1\r\nb", b"*1\r\n$4\r\nEXEC\r\n", b"\0", b"\xff\xfe",
        ])
        .prop_map(<[u8]>::to_vec),
        1 => (any::<u8>(), prop::sample::select(vec![9_usize, 10, 99, 100, 999, 1000, 5000]))
            .prop_map(|(byte, length)| vec![byte; length]),
    ]
}

fn list() -> impl Strategy<Value = Vec<Bytes>> {
    prop_oneof![
        6 => prop::collection::vec(bytes(), 0..4),
        2 => prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3), 6..14),
        1 => prop::sample::select(vec![97_usize, 98, 99, 100, 101, 1000])
            .prop_map(|count| vec![b"x".to_vec(); count]),
    ]
}

fn arg() -> impl Strategy<Value = Arg> {
    prop_oneof![
        4 => bytes().prop_map(Arg::One),
        2 => list().prop_map(Arg::Many),
        1 => any::<i64>().prop_map(Arg::Number),
        1 => "[ -~]{0,12}".prop_map(Arg::Formatted),
        1 => prop::collection::vec(bytes(), 0..3).prop_map(Arg::Pieces),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let words = prop::collection::vec("[A-Z]{1,12}", 1..3)
        // The only words of the table that have their arguments looked at.
        .prop_filter("may ask to block", |words| !words[0].starts_with("XREAD"));
    let leaf = prop_oneof![
        6 => (words, prop::collection::vec(arg(), 0..4)).prop_map(|(w, a)| Node::Table(w, a)),
        3 => ("[a-z.]{1,12}[0-9]", list()).prop_map(|(name, args)| {
            Node::Built(name.into_bytes(), args)
        }),
        1 => list().prop_map(|args| Node::Built(b"\r\n\xff".to_vec(), args)),
        1 => Just(Node::Refused),
        1 => prop::collection::vec(bytes(), 0..3).prop_map(Node::Panics),
        1 => Just(Node::Flush),
    ];
    let ending =
        prop::sample::select(vec![Ending::Kept, Ending::Kept, Ending::Dropped, Ending::Leaked]);
    leaf.prop_recursive(4, 24, 4, move |node| {
        (ending.clone(), prop::collection::vec(node, 0..4))
            .prop_map(|(ending, nodes)| Node::Part(ending, nodes))
    })
}

/// What must come of a program.
#[derive(Debug, Default)]
struct Expected {
    /// The commands that are to be sent, each with its identifier.
    commands: Vec<(u32, Vec<Bytes>)>,
    ids: u32,
    refused: bool,
}

impl Expected {
    fn command(&mut self, args: Vec<Bytes>) -> u32 {
        if !self.refused {
            self.commands.push((self.ids, args));
        }
        self.ids += 1;
        self.ids - 1
    }
}

/// Runs a program on the buffer and on what is expected of it.
struct Run {
    queue: CommandQueue,
    expected: Expected,
    sent: Bytes,
}

impl Run {
    fn all(&mut self, nodes: &[Node], depth: usize) -> TestCaseResult {
        nodes.iter().try_for_each(|node| self.one(node, depth))
    }

    fn one(&mut self, node: &Node, depth: usize) -> TestCaseResult {
        let (queue, expected) = (&mut self.queue, &mut self.expected);
        match node {
            Node::Table(words, args) => {
                let words: Vec<_> = words.iter().map(String::as_str).collect();
                let id = queue.push(depth, &EncodedCommand::new(&words), |out| {
                    args.iter().for_each(|a| a.write(out))
                });
                let mut line: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
                line.extend(args.iter().flat_map(Arg::encoded));
                prop_assert_eq!(id, expected.command(line));
            }
            Node::Built(name, args) => {
                let mut cmd = redis::Cmd::new();
                cmd.arg(name).arg(args);
                let mut line = vec![name.clone()];
                line.extend(args.iter().cloned());
                prop_assert_eq!(queue.push_cmd(depth, &cmd), expected.command(line));
            }
            Node::Refused => {
                queue.push_cmd(depth, &redis::cmd("Watch").arg("k").take());
                expected.refused = true;
                expected.ids += 1;
            }
            Node::Panics(args) => {
                let push = || {
                    queue.push(depth, &EncodedCommand::new(&["SET"]), |out| {
                        out.arg(args).arg(Unencodable);
                    })
                };
                // Its identifier was not returned, so the next command may have it.
                let reported = catch_unwind(AssertUnwindSafe(push)).is_ok();
                prop_assert_eq!(reported, expected.refused);
                expected.ids += u32::from(reported);
            }
            Node::Part(ending, nodes) => {
                let before = (expected.commands.len(), expected.refused);
                let part = queue.savepoint(depth);
                self.all(nodes, part)?;
                match ending {
                    Ending::Kept => self.queue.release(part),
                    Ending::Dropped => self.queue.rollback_local(part),
                    Ending::Leaked => {}
                }
                if !matches!(ending, Ending::Kept) {
                    self.expected.commands.truncate(before.0);
                    self.expected.refused = before.1;
                }
            }
            Node::Flush => {
                if !queue.has_open_savepoint() && queue.error().is_none() {
                    self.sent.extend_from_slice(queue.body());
                    queue.flushed();
                }
            }
        }
        Ok(())
    }

    fn judge(mut self) -> TestCaseResult {
        self.queue.rollback_deeper(0);
        prop_assert_eq!(self.queue.error().is_some(), self.expected.refused);
        if self.expected.refused {
            return Ok(());
        }
        let lines: Vec<_> = self.expected.commands.iter().map(|(_, args)| args.clone()).collect();
        prop_assert_eq!(self.queue.commands() as usize, lines.len());
        let multi = [vec![b"MULTI".to_vec()]];
        let exec = [vec![b"EXEC".to_vec()]];
        let unsent = lines.len() - self.queue.unsent() as usize..;
        let whole = [&multi, &lines[unsent], &exec].concat();
        prop_assert_eq!(parse(self.queue.finish(Prefix::Multi, b"", &[]).bytes), Some(whole));
        self.sent.extend_from_slice(self.queue.finish(Prefix::Commands, b"", &[]).bytes);
        prop_assert_eq!(parse(&self.sent), Some([&lines[..], &exec].concat()));
        for (index, line) in lines.iter().enumerate() {
            let name = String::from_utf8_lossy(&line[0]).to_ascii_uppercase();
            let reported = self.queue.name(index as u32).unwrap();
            prop_assert!(
                reported == name || reported == crate::protocol::command::display_name::UNKNOWN
            );
        }
        let dropped_ids = self.queue.take_dropped_ids();
        prop_assert!(
            dropped_ids.windows(2).all(|pair| pair[0].1 <= pair[1].0),
            "{:?}",
            dropped_ids
        );
        let kept = (0..self.expected.ids)
            .filter(|id| !dropped_ids.iter().any(|(from, to)| (from..to).contains(&id)));
        let expected = self.expected.commands.iter().map(|(id, _)| *id);
        prop_assert!(kept.eq(expected), "identifiers of forgotten commands: {:?}", dropped_ids);
        Ok(())
    }
}

/// CommandReader as the specification has them, and nothing behind the last one.
fn parse(mut rest: &[u8]) -> Option<Vec<Vec<Bytes>>> {
    fn number(rest: &mut &[u8], mark: u8) -> Option<usize> {
        let end = rest.iter().position(|byte| *byte == b'\r')?;
        let (line, tail) = rest.split_at(end);
        let digits = line.strip_prefix(&[mark])?;
        let canonical = digits == b"0" || matches!(digits.first()?, b'1'..=b'9');
        *rest = tail.strip_prefix(b"\r\n")?;
        let value = digits.iter().try_fold(0_usize, |sum, digit| match digit {
            b'0'..=b'9' => Some(sum * 10 + usize::from(digit - b'0')),
            _ => None,
        });
        value.filter(|_| canonical)
    }
    let mut requests = Vec::new();
    while !rest.is_empty() {
        let mut args = Vec::new();
        for _ in 0..number(&mut rest, b'*')? {
            let length = number(&mut rest, b'$')?;
            args.push(rest.get(..length)?.to_vec());
            rest = rest.get(length..)?.strip_prefix(b"\r\n")?;
        }
        requests.push(args);
    }
    Some(requests)
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        max_shrink_iters: 5_000,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource(
            "proptest-regressions",
        ))),
        // The default one takes most of the time of a debug build.
        rng_algorithm: RngAlgorithm::XorShift,
        ..Config::default()
    }
}

#[test]
fn another_parser_reads_the_commands_that_were_queued_and_kept() {
    let programs = prop::collection::vec(node(), 0..6);
    let checked = TestRunner::new(config(PROGRAMS)).run(&programs, |nodes| {
        let queue = CommandQueue::new(1, LIMITS, Vec::new());
        let mut run = Run { queue, expected: Expected::default(), sent: Bytes::new() };
        run.all(&nodes, 0)?;
        run.judge()
    });
    checked.unwrap_or_else(|failure| panic!("{failure}"));
    println!("{PROGRAMS} programs");
}
