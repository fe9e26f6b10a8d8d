//! Random programs on the public API: scopes of every kind, interleaved, left in every way.
//!
//! Guarantee: clean-connections

use proptest::prelude::*;

use super::fixture::Environment;
use super::model::{KEYS, Write};
use rediscope_testing::server::Server;

const SEQUENCES: u32 = 10_000;

/// One step. A step that makes no sense where it stands does nothing.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Begin {
        slot: usize,
        immediate: bool,
    },
    Watch {
        slot: usize,
        keys: Vec<usize>,
    },
    Reading {
        slot: usize,
    },
    /// Queued on a transaction; on a watching scope its key is read.
    Queue {
        slot: usize,
        write: Write,
    },
    Part {
        slot: usize,
        part: Part,
    },
    /// From reading to queueing.
    Multi {
        slot: usize,
    },
    Leave {
        slot: usize,
        exit: Exit,
    },
    Run {
        body: Vec<Node>,
        end: End,
    },
    WatchRun {
        keys: Vec<usize>,
        body: Vec<Node>,
        meanwhile: Option<Write>,
        end: End,
    },
    /// Another client writes, or the pooled handle.
    Elsewhere(Write),
    Pooled(Write),
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Write(Write),
    Part(Part),
}

#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) nodes: Vec<Node>,
    pub(crate) ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Released,
    Dropped,
    Forgotten,
    /// By a closure that fails.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Commit,
    GiveUp,
    Drop,
    Panic,
    Forget,
}

/// How a closure ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Ok,
    Err,
    Panic,
}

fn write() -> impl Strategy<Value = Write> {
    let key = 0..KEYS.len();
    prop_oneof![
        6 => key.clone().prop_map(Write::Incr),
        4 => (key.clone(), 0..30_u8).prop_map(|(key, value)| Write::Set(key, value)),
        3 => (key.clone(), 0..30_u8).prop_map(|(key, value)| Write::Append(key, value)),
        3 => (key.clone(), 0..30_u8).prop_map(|(key, value)| Write::Push(key, value)),
        2 => key.prop_map(Write::Del),
    ]
}

/// Some that cannot be queued are among them.
fn queued() -> impl Strategy<Value = Write> {
    prop_oneof![40 => write(), 1 => Just(Write::Unknown), 1 => Just(Write::Refused)]
}

fn part() -> impl Strategy<Value = Part> {
    let ending = prop::sample::select(vec![
        Ending::Released,
        Ending::Released,
        Ending::Dropped,
        Ending::Forgotten,
        Ending::Failed,
    ]);
    let flat = (prop::collection::vec(queued().prop_map(Node::Write), 0..3), ending.clone())
        .prop_map(|(nodes, ending)| Part { nodes, ending });
    flat.prop_recursive(2, 6, 2, move |inner| {
        let node = prop_oneof![queued().prop_map(Node::Write), inner.prop_map(Node::Part)];
        (prop::collection::vec(node, 0..3), ending.clone())
            .prop_map(|(nodes, ending)| Part { nodes, ending })
    })
}

fn body() -> impl Strategy<Value = Vec<Node>> {
    let node = prop_oneof![4 => queued().prop_map(Node::Write), 1 => part().prop_map(Node::Part)];
    prop::collection::vec(node, 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..2_usize;
    let keys = || prop::sample::subsequence((0..KEYS.len()).collect::<Vec<_>>(), 1..4);
    let end = || prop::sample::select(vec![End::Ok, End::Ok, End::Ok, End::Err, End::Panic]);
    let exit = prop_oneof![
        8 => Just(Exit::Commit),
        2 => Just(Exit::GiveUp),
        2 => Just(Exit::Drop),
        1 => Just(Exit::Panic),
        1 => Just(Exit::Forget),
    ];
    prop_oneof![
        4 => (slot.clone(), any::<bool>())
            .prop_map(|(slot, immediate)| Step::Begin { slot, immediate }),
        4 => (slot.clone(), keys()).prop_map(|(slot, keys)| Step::Watch { slot, keys }),
        1 => slot.clone().prop_map(|slot| Step::Reading { slot }),
        10 => (slot.clone(), queued()).prop_map(|(slot, write)| Step::Queue { slot, write }),
        3 => (slot.clone(), part()).prop_map(|(slot, part)| Step::Part { slot, part }),
        4 => slot.clone().prop_map(|slot| Step::Multi { slot }),
        7 => (slot, exit).prop_map(|(slot, exit)| Step::Leave { slot, exit }),
        2 => (body(), end()).prop_map(|(body, end)| Step::Run { body, end }),
        3 => (keys(), body(), prop::option::of(write()), end()).prop_map(
            |(keys, body, meanwhile, end)| Step::WatchRun { keys, body, meanwhile, end }
        ),
        6 => write().prop_map(Step::Elsewhere),
        2 => write().prop_map(Step::Pooled),
    ]
}

/// A watching scope from end to end, so that conflicts are not left to chance.
fn story() -> impl Strategy<Value = Vec<Step>> {
    let slot = 0..2_usize;
    let keys = prop::sample::subsequence((0..KEYS.len()).collect::<Vec<_>>(), 1..4);
    let (queue, meanwhile) = (prop::collection::vec(queued(), 1..4), prop::option::of(write()));
    (slot, keys, queue, meanwhile).prop_map(|(slot, keys, queue, meanwhile)| {
        let mut steps = vec![Step::Watch { slot, keys }, Step::Multi { slot }];
        steps.extend(queue.into_iter().map(|write| Step::Queue { slot, write }));
        steps.extend(meanwhile.map(Step::Elsewhere));
        steps.push(Step::Leave { slot, exit: Exit::Commit });
        steps
    })
}

fn program() -> impl Strategy<Value = Vec<Step>> {
    let steps = prop_oneof![12 => step().prop_map(|step| vec![step]), 1 => story()];
    prop::collection::vec(steps, 3..12).prop_map(|steps| steps.concat())
}

#[test]
fn whatever_a_program_does_the_server_holds_what_was_reported() {
    let server = Server::start();
    let fixture = Environment::on(&server);
    let programs = (any::<bool>(), program());
    super::check(file!(), SEQUENCES, &programs, |(small_chunks, steps)| {
        fixture.play(small_chunks, &steps)
    });
    println!("{}", fixture.seen());
}
