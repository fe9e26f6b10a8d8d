//! Random groups against a model of a server, with each answer a server or a proxy may give, and a loss of the
//! connection at every byte of the write and of the replies.
//!
//! Guarantee: grouped

use std::collections::HashMap;

use fastrand::Rng;
use redis::Value;

use super::*;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::connection_state::{ConnectionState, ReplyCheck};
use crate::protocol::resp::decode::{FaultKind, Parser};
use crate::protocol::resp::encode::UNWATCH;

/// Number of random writes. Each is cut at every byte.
const WRITES: u64 = 48;

/// What the server, or a proxy before it, does with a write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Honest,
    /// The watched register was changed.
    Touched,
    /// MULTI is refused.
    WithoutMulti,
    /// EXEC is refused with this code, inside EXECABORT.
    RefusesExec(&'static str),
    /// EXEC runs, and a proxy answers it with an error.
    ProxyLosesExec,
}

#[derive(Clone, Debug, Default)]
struct Model {
    numbers: HashMap<String, i64>,
    lists: HashMap<String, Vec<String>>,
    multi: bool,
    refused: bool,
    watching: bool,
    queued: Vec<Vec<String>>,
    /// Commands that were applied, with their replies.
    applied: Vec<(Vec<String>, String)>,
}

const WRONG: &str = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";

impl Model {
    fn new() -> Self {
        let mut model = Self::default();
        model.lists.insert("list".to_owned(), Vec::new());
        model
    }

    fn call(&mut self, command: &[String]) -> String {
        let args: Vec<_> = command.iter().map(String::as_str).collect();
        match args.as_slice() {
            ["INCR", key, ..] if self.lists.contains_key(*key) => WRONG.to_owned(),
            ["INCR", key, ..] => {
                let number = self.numbers.entry((*key).to_owned()).or_default();
                *number += 1;
                format!(":{number}\r\n")
            }
            ["LPUSH", key, value, ..] if !self.numbers.contains_key(*key) => {
                let list = self.lists.entry((*key).to_owned()).or_default();
                list.push((*value).to_owned());
                format!(":{}\r\n", list.len())
            }
            ["LPUSH", ..] => WRONG.to_owned(),
            ["LRANGE", key, ..] => {
                let list = self.lists.get(*key).cloned().unwrap_or_default();
                let items = list.iter().map(|item| format!("${}\r\n{item}\r\n", item.len()));
                format!("*{}\r\n{}", list.len(), items.collect::<String>())
            }
            ["SET", ..] => "+OK\r\n".to_owned(),
            ["WATCH", ..] | ["UNWATCH"] => "+OK\r\n".to_owned(),
            _ => panic!("{args:?}"),
        }
    }

    fn serve(&mut self, mood: Mood, command: Vec<String>) -> String {
        match command[0].as_str() {
            "MULTI" if mood == Mood::WithoutMulti => {
                "-NOPERM this user has no permissions to run the 'multi' command\r\n".to_owned()
            }
            "MULTI" => {
                (self.multi, self.refused) = (true, false);
                "+OK\r\n".to_owned()
            }
            "EXEC" => self.exec(mood),
            name if name == "NOSUCH" || command.len() < 2 && name != "UNWATCH" => {
                self.refused = true;
                "-ERR unknown command 'NOSUCH', with args beginning with: \r\n".to_owned()
            }
            _ if self.multi => {
                self.queued.push(command);
                "+QUEUED\r\n".to_owned()
            }
            name => {
                self.watching = name == "WATCH" || self.watching && name != "UNWATCH";
                let reply = self.call(&command);
                self.applied.push((command, reply.clone()));
                reply
            }
        }
    }

    fn exec(&mut self, mood: Mood) -> String {
        if !std::mem::take(&mut self.multi) {
            return "-ERR EXEC without MULTI\r\n".to_owned();
        }
        let (queued, watching) =
            (std::mem::take(&mut self.queued), std::mem::take(&mut self.watching));
        if std::mem::take(&mut self.refused) {
            return "-EXECABORT Transaction discarded because of previous errors.\r\n".to_owned();
        }
        if let Mood::RefusesExec(code) = mood {
            return format!("-EXECABORT Transaction discarded because of: {code} no\r\n");
        }
        if mood == Mood::Touched && watching {
            return "*-1\r\n".to_owned();
        }
        let mut reply = format!("*{}\r\n", queued.len());
        for command in queued {
            let one = self.call(&command);
            reply.push_str(&one);
            self.applied.push((command, one));
        }
        match mood {
            Mood::ProxyLosesExec => "-ERR upstream timed out\r\n".to_owned(),
            _ => reply,
        }
    }
}

/// A request of a test: its commands, and whether it is a block, a read or calls.
#[derive(Clone, Debug)]
struct Sent {
    kind: RequestKind,
    commands: Vec<Vec<String>>,
    once: bool,
}

fn encoded(commands: &[Vec<String>]) -> Vec<u8> {
    let one = |command: &Vec<String>| {
        let args = command.iter().map(|arg| format!("${}\r\n{arg}\r\n", arg.len()));
        format!("*{}\r\n{}", command.len(), args.collect::<String>())
    };
    commands.iter().map(one).collect::<String>().into_bytes()
}

/// A command with the number of its request as an argument, by which the model's record finds it.
fn command(rng: &mut Rng, request: usize, nth: usize) -> Vec<String> {
    let key = ["a", "b", "list"][rng.usize(..3)];
    let mark = format!("{request}/{nth}");
    let words: &[&str] = match rng.u8(..20) {
        0 => &["NOSUCH"],
        1 => return vec!["INCR".to_owned()],
        2..10 => &["INCR"],
        10..15 => &["LPUSH"],
        _ => &["LRANGE"],
    };
    let words = words.iter().map(|word| (*word).to_owned());
    words.chain([key.to_owned(), mark]).collect()
}

fn requests(rng: &mut Rng) -> Vec<Sent> {
    let mut requests = Vec::new();
    let (once, plain) = (rng.usize(..5), rng.usize(..4));
    for nth in 0..once + plain {
        let count = rng.usize(1..4);
        let commands: Vec<_> = (0..count).map(|at| command(rng, nth, at)).collect();
        let kind = RequestKind::Block { commands: count as u32 };
        requests.push(Sent { kind, commands, once: nth < once });
    }
    if rng.bool() {
        let read = vec!["LRANGE".to_owned(), "list".to_owned(), format!("{}/0", requests.len())];
        requests.push(Sent { kind: RequestKind::Read, commands: vec![read], once: false });
    }
    if rng.bool() {
        let at = requests.len();
        let call = |nth| vec!["LPUSH".to_owned(), "calls".to_owned(), format!("{at}/{nth}")];
        let kind = RequestKind::Calls { count: 2 };
        requests.push(Sent { kind, commands: vec![call(0), call(1)], once: false });
    }
    requests
}

const REGISTER: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nR\r\n$1\r\n7\r\n";
const WATCH: &[u8] = b"*2\r\n$5\r\nWATCH\r\n$1\r\nR\r\n";

/// The write, and the end of EXEC of each request's group, or the end of the request.
fn write(requests: &[Sent]) -> MergedWrite {
    let mut write = MergedWrite::new(vec![1, 2, 3]);
    let block = |sent: &Sent| {
        let commands = encoded(&sent.commands);
        ([MULTI, commands.as_slice(), EXEC].concat(), sent.commands.len() as u32)
    };
    let blocks = |once: bool| -> Vec<_> {
        let of = |sent: &&Sent| matches!(sent.kind, RequestKind::Block { .. }) && sent.once == once;
        requests.iter().filter(of).map(block).collect()
    };
    let (once, plain) = (blocks(true), blocks(false));
    if once.is_empty() {
        write.push_internal(Expect::Unwatch, |bytes| bytes.extend_from_slice(UNWATCH));
    } else {
        write.push_group(once.iter().map(|(bytes, n)| (bytes.as_slice(), *n)), Some(REGISTER));
    }
    if !plain.is_empty() {
        write.push_group(plain.iter().map(|(bytes, n)| (bytes.as_slice(), *n)), None);
    }
    for sent in requests {
        if !matches!(sent.kind, RequestKind::Block { .. }) {
            write.push(sent.kind, &encoded(&sent.commands));
        }
    }
    write.push_internal(Expect::WatchMarker, |bytes| bytes.extend_from_slice(WATCH));
    write
}

/// The model after these bytes, and its replies.
fn serve(bytes: &[u8], mood: Mood) -> (Model, Vec<u8>) {
    let (mut model, mut replies) = (Model::new(), Vec::new());
    // The register is watched since the write before.
    model.watching = true;
    for args in CommandReader::new(bytes) {
        let Ok(args) = args else { break };
        let args = args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        replies.extend_from_slice(model.serve(mood, args).as_bytes());
    }
    (model, replies)
}

/// Reads the replies as a connection does, and returns what they show.
fn outcome(
    write: &MergedWrite,
    replies: &[u8],
    limit: usize,
    lost: Option<Option<usize>>,
) -> MergedOutcome {
    let (mut parser, mut state) = (Parser::default(), ConnectionState::default());
    parser.set_max_bytes(limit);
    for (expect, count) in write.expected() {
        state.sending(*expect, *count);
    }
    for chunk in replies.chunks(4096) {
        let mut chunk = chunk;
        while !chunk.is_empty() {
            let space = parser.read_buffer();
            let count = space.len().min(chunk.len());
            space[..count].copy_from_slice(&chunk[..count]);
            parser.filled(count);
            chunk = &chunk[count..];
        }
    }
    let mut merged = MergedReplies::new(write);
    for (expect, count) in write.expected() {
        let mut left = *count;
        while left > 0 {
            match parser.next(left.min(state.max_queued())) {
                Ok(Some(reply)) => {
                    left -= reply.count();
                    if state.reply(&reply) == ReplyCheck::Unexpected {
                        return merged.finish(Some(None), true);
                    }
                    merged.take(*expect, reply);
                }
                Ok(None) => return merged.finish(lost.or(Some(None)), false),
                Err(fault) => {
                    if let Some(length) = fault.array
                        && *expect == Expect::Exec
                    {
                        merged.take(*expect, Reply::Truncated(length));
                    }
                    return merged.finish(Some(None), fault.kind == FaultKind::Malformed);
                }
            }
        }
    }
    let is_misfit = !parser.is_empty();
    merged.finish(lost.or(is_misfit.then_some(None)), is_misfit)
}

/// The replies of the model to the commands of this request, in their order; `None`: not applied.
fn truth(model: &Model, request: usize, sent: &Sent) -> Option<Vec<Value>> {
    let mark = |nth: usize| format!("{request}/{nth}");
    let of =
        |nth: usize| model.applied.iter().find(|(command, _)| command.last() == Some(&mark(nth)));
    let found: Vec<_> = (0..sent.commands.len()).filter_map(of).collect();
    // Calls are no block: some may have run.
    let calls = matches!(sent.kind, RequestKind::Calls { .. });
    if found.is_empty() || calls && found.len() < sent.commands.len() {
        return None;
    }
    assert_eq!(found.len(), sent.commands.len(), "half a block was applied");
    let parsed =
        |(_, reply): &(Vec<String>, String)| redis::parse_redis_value(reply.as_bytes()).unwrap();
    Some(found.into_iter().map(parsed).collect())
}

fn is_refused(command: &[String]) -> bool {
    command[0] == "NOSUCH" || command.len() < 2
}

/// Checks each piece against the model. `complete`: every reply has arrived.
fn check(outcome: &MergedOutcome, model: &Model, requests: &[Sent], mood: Mood, complete: bool) {
    assert_eq!(outcome.pieces.len(), requests.len());
    for (at, (piece, sent)) in outcome.pieces.iter().zip(requests).enumerate() {
        if mood == Mood::WithoutMulti {
            // Commands ran one by one, which no piece hides.
            if let Piece::Block(verdict) = piece {
                assert!(
                    matches!(verdict, Verdict::WithoutMulti(_) | Verdict::Unknown(_)),
                    "{piece:?}"
                );
            }
            continue;
        }
        let truth = truth(model, at, sent);
        let applied = truth.is_some();
        let honest = mood != Mood::ProxyLosesExec;
        match piece {
            Piece::Block(Verdict::Applied(values)) => {
                let mut expected = truth.expect("told as applied");
                expected.extend(sent.once.then_some(Value::Okay));
                assert_eq!(values, &expected);
            }
            Piece::Block(Verdict::RepliesLost) => assert!(truth.is_some()),
            Piece::Block(Verdict::Nil) => {
                assert!(truth.is_none() && sent.once && mood == Mood::Touched);
            }
            Piece::Block(Verdict::Rejected(rejected)) => {
                assert_eq!(truth, None, "told as rejected");
                match rejected.index {
                    Some(index) => assert!(is_refused(&sent.commands[index as usize])),
                    None => assert!(matches!(mood, Mood::RefusesExec(_))),
                }
            }
            Piece::Again { alone } => {
                assert_eq!(truth, None, "sent again");
                assert!(!sent.commands.iter().any(|command| is_refused(command)));
                assert_eq!(
                    *alone,
                    matches!(mood, Mood::RefusesExec(_)) && !any_refused(requests, sent)
                );
            }
            Piece::Lost { sent: false, .. } => assert_eq!(truth, None, "told as not sent"),
            Piece::Lost { sent: true, .. } => assert!(!complete),
            Piece::Block(Verdict::Unknown(_)) => assert!(!complete || !honest, "{piece:?}"),
            Piece::Block(Verdict::WithoutMulti(_)) => panic!("{piece:?}"),
            Piece::Read(value) => assert_eq!(truth.as_deref(), Some(&[value.clone()][..])),
            Piece::Calls(values) => assert_eq!(truth.as_ref(), Some(values)),
        }
        if complete && honest && applied {
            let whole = matches!(
                piece,
                Piece::Block(Verdict::Applied(_)) | Piece::Read(_) | Piece::Calls(_)
            );
            assert!(whole, "{piece:?}");
        }
    }
}

/// Whether a command was refused in the group of this request.
fn any_refused(requests: &[Sent], of: &Sent) -> bool {
    let blocks = requests
        .iter()
        .filter(|sent| matches!(sent.kind, RequestKind::Block { .. }) && sent.once == of.once);
    blocks.flat_map(|sent| &sent.commands).any(|command| is_refused(command))
}

const MOODS: [Mood; 6] = [
    Mood::Honest,
    Mood::Touched,
    Mood::WithoutMulti,
    Mood::RefusesExec("OOM"),
    Mood::RefusesExec("NOPERM"),
    Mood::ProxyLosesExec,
];

#[test]
fn no_piece_of_a_write_contradicts_the_server_wherever_the_connection_is_lost() {
    for seed in 0..WRITES {
        let mut rng = Rng::with_seed(seed);
        let requests = requests(&mut rng);
        let write = write(&requests);
        let mood = MOODS[(seed % 6) as usize];
        let all = usize::MAX >> 1;
        let (model, replies) = serve(write.bytes(), mood);
        let whole = outcome(&write, &replies, all, None);
        check(&whole, &model, &requests, mood, true);
        assert!(!whole.internal_failed, "seed {seed}");
        for cut in 0..replies.len() {
            let lost = outcome(&write, &replies[..cut], all, Some(None));
            check(&lost, &model, &requests, mood, false);
        }
        // A reply of more bytes than the limit cannot be read to its end.
        for limit in [60, 150, 300, 600] {
            let lost = outcome(&write, &replies, limit, None);
            check(&lost, &model, &requests, mood, false);
        }
        for cut in 0..write.bytes().len() {
            // The server has the bytes up to the cut, and its replies arrive or are lost.
            let (model, replies) = serve(&write.bytes()[..cut], mood);
            for replies in [replies.as_slice(), &[], &replies[..replies.len() / 2]] {
                let lost = outcome(&write, replies, all, Some(Some(cut)));
                check(&lost, &model, &requests, mood, false);
            }
        }
    }
}

fn blocks(commands: &[&[&str]]) -> MergedWrite {
    let mut write = MergedWrite::default();
    let encode = |command: &&[&str]| {
        let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
        [MULTI, &encoded(&[command]), EXEC].concat()
    };
    let blocks: Vec<_> = commands.iter().map(encode).collect();
    write.push_group(blocks.iter().map(|block| (block.as_slice(), 1)), Some(REGISTER));
    write
}

#[test]
fn a_refused_register_is_a_refusal_for_every_block() {
    let write = blocks(&[&["INCR", "a"], &["INCR", "b"]]);
    let replies = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n-OOM command not allowed when used memory > 'maxmemory'.\r\n\
        -EXECABORT Transaction discarded because of previous errors.\r\n";
    let outcome = outcome(&write, replies, 1 << 20, None);
    for piece in outcome.pieces {
        let Piece::Block(Verdict::Rejected(rejected)) = piece else { panic!("{piece:?}") };
        // The index after the block's last command.
        assert_eq!((rejected.index, rejected.error.code()), (Some(1), "OOM"));
    }
    assert_eq!(outcome.errors, ["OOM", "EXECABORT"]);
}

#[test]
fn a_slot_that_has_moved_names_a_command_of_its_own_block_only() {
    let mut write = MergedWrite::default();
    let set = |key: &str| ["SET", key, "1"].map(str::to_owned).to_vec();
    let block = |keys: [&str; 2]| [MULTI, &encoded(&keys.map(set)), EXEC].concat();
    let blocks = [block(["a", "b"]), block(["c", "d"]), block(["e", "f"])];
    write.push_group(blocks.iter().map(|block| (block.as_slice(), 2)), None);
    let queued = "+QUEUED\r\n";
    let replies = format!(
        "+OK\r\n{}-MOVED 1 127.0.0.1:1\r\n{}-EXECABORT x\r\n",
        queued.repeat(3),
        queued.repeat(2)
    );
    let pieces = outcome(&write, replies.as_bytes(), 1 << 20, None).pieces;
    let of = |piece| match piece {
        Piece::Block(Verdict::Rejected(rejected)) => (rejected.index, rejected.word),
        other => panic!("{other:?}"),
    };
    let found: Vec<_> = pieces.into_iter().map(of).collect();
    assert_eq!(found, [(None, "EXEC"), (Some(1), "EXEC"), (None, "EXEC")]);
}

#[test]
fn a_refused_exec_concerns_a_group_of_writes_and_no_group_of_reads() {
    let refused = |write: &MergedWrite, code: &str| {
        let replies = format!(
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n-EXECABORT Transaction discarded because of: {code} x\r\n"
        );
        outcome(write, replies.as_bytes(), 1 << 20, None).pieces
    };
    let write = blocks(&[&["INCR", "a"], &["INCR", "b"]]);
    for code in ["READONLY", "OOM", "NOREPLICAS", "MISCONF"] {
        let pieces = refused(&write, code);
        assert!(matches!(&*pieces, [Piece::Block(Verdict::Rejected(_)), _]), "{pieces:?}");
    }
    assert_eq!(
        refused(&write, "NOPERM"),
        [Piece::Again { alone: true }, Piece::Again { alone: true }]
    );
}

#[test]
fn a_register_that_was_not_written_behind_a_group_is_noticed() {
    let mut write = blocks(&[&["INCR", "a"]]);
    write.push_internal(Expect::Plain, |bytes| bytes.extend_from_slice(REGISTER));
    let applied = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n+OK\r\n";
    let of = |last: &[u8]| outcome(&write, &[applied, last].concat(), 1 << 20, None);
    assert!(!of(b"+OK\r\n").internal_failed);
    assert!(of(b"-OOM no\r\n").internal_failed);
    let lost = outcome(&write, applied, 1 << 20, Some(None));
    assert!(lost.internal_failed && matches!(&*lost.pieces, [Piece::Block(Verdict::Applied(_))]));
}
