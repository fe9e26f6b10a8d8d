//! The server reads, byte for byte, what was queued.
//!
//! Guarantee: committed

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::prelude::*;
use redis::{Connection, RedisWrite, ToRedisArgs, Value};
use rediscope::error::ReplyError;
use rediscope::{Begin, Error, Queued, Replies, SessionManager, TransactionOptions, prelude::*};

use rediscope_testing::server::Server;

const SEQUENCES: u32 = 10_000;
const LIST: &str = "list";

type Bytes = Vec<u8>;

#[derive(Clone, Debug)]
enum Node {
    /// By a method of the command table.
    Push(Vec<Bytes>),
    /// By a command that the caller built, its name in any case.
    Built(String, Vec<Bytes>),
    Echo(Bytes),
    /// A command whose last argument panics while it is encoded.
    Panics(Vec<Bytes>),
    Part(Ending, Vec<Node>),
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Released,
    Dropped,
    Forgotten,
}

/// The form of the transaction.
#[derive(Clone, Copy, Debug)]
enum Form {
    Block,
    Guard,
    Immediate,
    Watching,
    Chunks,
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        6 => prop::collection::vec(any::<u8>(), 0..12),
        3 => prop::sample::select(vec![
            &b""[..], b"\r\n", b"a\r\n$1\r\nb\r\n", b"*1\r\n$4\r\nEXEC\r\n", b"\0", b"\xff\xfe",
            b"+QUEUED\r\n", b"EXEC", b"DISCARD",
        ])
        .prop_map(<[u8]>::to_vec),
        1 => (any::<u8>(), prop::sample::select(vec![9_usize, 10, 99, 100, 999, 1000, 9999]))
            .prop_map(|(byte, length)| vec![byte; length]),
    ]
}

/// At least one: RPUSH wants a value. The header grows past 9 and past 99 words.
fn values() -> impl Strategy<Value = Vec<Bytes>> {
    prop_oneof![
        8 => prop::collection::vec(bytes(), 1..4),
        3 => prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2), 6..12),
        1 => prop::sample::select(vec![97_usize, 98, 99])
            .prop_map(|count| vec![b"x".to_vec(); count]),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        4 => values().prop_map(Node::Push),
        3 => ("[rR][pP][uU][sS][hH]", values()).prop_map(|(name, values)| Node::Built(name, values)),
        4 => bytes().prop_map(Node::Echo),
        1 => prop::collection::vec(bytes(), 0..3).prop_map(Node::Panics),
    ];
    let ending = prop::sample::select(vec![
        Ending::Released,
        Ending::Released,
        Ending::Dropped,
        Ending::Forgotten,
    ]);
    leaf.prop_recursive(3, 12, 3, move |node| {
        (ending.clone(), prop::collection::vec(node, 0..3))
            .prop_map(|(ending, nodes)| Node::Part(ending, nodes))
    })
}

struct Unencodable;

impl ToRedisArgs for Unencodable {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg(b"half of it");
        resume_unwind(Box::new("an argument that cannot be encoded"));
    }
}

/// What the server must hold, and its replies.
#[derive(Default)]
struct Expected {
    list: Vec<Bytes>,
    /// Every handle that was given out; `None` where its part was not kept.
    replies: Vec<(Queued<Value>, Option<Value>)>,
}

impl Expected {
    fn queue(&mut self, nodes: &[Node], tx: &mut impl QueueCommands) {
        for node in nodes {
            match node {
                Node::Push(values) => {
                    let handle = tx.rpush(LIST, values).cast();
                    self.pushed(handle, values);
                }
                Node::Built(name, values) => {
                    let handle = tx.queue(redis::cmd(name).arg(LIST).arg(values).take());
                    self.pushed(handle, values);
                }
                Node::Echo(bytes) => {
                    let handle = tx.queue(redis::cmd("ECHO").arg(bytes).take());
                    self.replies.push((handle, Some(Value::BulkString(bytes.clone()))));
                }
                Node::Panics(values) => {
                    let queue = || tx.rpush(LIST, (values, Unencodable));
                    assert!(catch_unwind(AssertUnwindSafe(queue)).is_err());
                }
                Node::Part(ending, nodes) => self.part(*ending, nodes, tx.savepoint()),
            }
        }
    }

    fn pushed(&mut self, handle: Queued<Value>, values: &[Bytes]) {
        self.list.extend_from_slice(values);
        self.replies.push((handle, Some(Value::Int(self.list.len() as i64))));
    }

    // Its own function, for else the types of nested parts would never end.
    fn part(&mut self, ending: Ending, nodes: &[Node], mut part: rediscope::Savepoint<'_>) {
        let before = (self.list.len(), self.replies.len());
        {
            let part: &mut dyn FnMut(&mut Self) =
                &mut |expected| expected.queue_dyn(nodes, &mut part);
            part(self);
        }
        match ending {
            Ending::Released => part.release(),
            Ending::Dropped => drop(part),
            Ending::Forgotten => std::mem::forget(part),
        }
        if !matches!(ending, Ending::Released) {
            self.list.truncate(before.0);
            self.replies.iter_mut().skip(before.1).for_each(|(_, reply)| *reply = None);
        }
    }

    fn queue_dyn(&mut self, nodes: &[Node], part: &mut rediscope::Savepoint<'_>) {
        self.queue(nodes, part);
    }

    fn judge(self, replies: &Replies, elsewhere: &mut Connection) -> Result<(), TestCaseError> {
        for (handle, expected) in self.replies {
            match (replies.get(handle), expected) {
                (Ok(reported), Some(expected)) => prop_assert_eq!(reported, expected),
                (Err(Error::Reply(ReplyError::Forgotten)), None) => {}
                (reported, expected) => prop_assert!(false, "{:?} for {:?}", reported, expected),
            }
        }
        let mut pipe = redis::pipe();
        let (list, _): (Vec<Bytes>, i64) = pipe
            .cmd("LRANGE")
            .arg(LIST)
            .arg(0)
            .arg(-1)
            .cmd("DEL")
            .arg(LIST)
            .query(elsewhere)
            .unwrap();
        prop_assert!(list == self.list, "the server has another list: {} values", list.len());
        Ok(())
    }
}

#[test]
fn the_server_reads_exactly_what_was_queued_and_kept() {
    let server = Server::start();
    let elsewhere = RefCell::new(server.connection());
    let manager = |flush_bytes| {
        SessionManager::builder(server.url()).flush_bytes(flush_bytes).build().unwrap()
    };
    let (whole, chunks) = (manager(1 << 20), manager(100));
    let accounts = whole.transactional();
    let immediate = accounts.with(TransactionOptions::new().begin(Begin::Immediate));
    let form = prop::sample::select(vec![
        Form::Block,
        Form::Guard,
        Form::Immediate,
        Form::Watching,
        Form::Chunks,
    ]);
    let sequences = (form, prop::collection::vec(node(), 0..5));
    super::check(file!(), SEQUENCES, &sequences, |(form, nodes)| {
        let mut expected = Expected::default();
        let replies = match form {
            Form::Block => {
                let mut handles = Vec::new();
                let reported = accounts.run(|tx| {
                    expected.queue(&nodes, tx);
                    let kept = expected.replies.iter().filter(|(_, reply)| reply.is_some());
                    handles = kept.map(|(handle, _)| *handle).collect();
                    Ok(handles.clone())
                });
                let kept = expected.replies.iter().filter_map(|(_, reply)| reply.clone());
                prop_assert_eq!(reported.unwrap(), kept.collect::<Vec<_>>());
                expected.replies.clear();
                None
            }
            Form::Guard | Form::Immediate | Form::Chunks => {
                let accounts = match form {
                    Form::Immediate => immediate.clone(),
                    Form::Chunks => chunks.transactional(),
                    _ => accounts.clone(),
                };
                let mut tx = accounts.begin().unwrap();
                expected.queue(&nodes, &mut tx);
                Some(tx.commit().unwrap())
            }
            Form::Watching => {
                let mut tx = accounts.watch([LIST]).begin().unwrap().multi();
                expected.queue(&nodes, &mut tx);
                Some(tx.commit().unwrap().committed().unwrap())
            }
        };
        let none = || accounts.begin().unwrap().commit().unwrap();
        expected.judge(&replies.unwrap_or_else(none), &mut elsewhere.borrow_mut())
    });
    let status = whole.status();
    assert_eq!(status.transactional.in_use, 0, "{status}");
    assert_eq!(status.transactional.counts.all_replaced(), 0, "{status}");
}
