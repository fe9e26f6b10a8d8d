//! The command table without a server. The tests with one are in `tests/it`.
//!
//! Guarantee: refused

pub(crate) mod bytes;

use std::panic::{AssertUnwindSafe, catch_unwind};

use redis::streams::StreamReadOptions;
use redis::{Value, cmd};

use super::*;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::queue::{CommandQueue, Limits};
use crate::reply::queued::Queued;

/// A block without a connection.
struct Probe(CommandQueue);

impl Probe {
    fn new() -> Self {
        Self(CommandQueue::new(1, Limits { commands: 10, bytes: 10_000 }, Vec::new()))
    }

    fn commands(&self) -> Vec<String> {
        let args = CommandReader::new(self.0.body()).map(Result::unwrap);
        args.map(|args| String::from_utf8(args.join(&b' ')).unwrap()).collect()
    }
}

impl sealed::Queue for Probe {
    fn target(&mut self) -> (&mut CommandQueue, usize) {
        (&mut self.0, 0)
    }
}

#[test]
fn no_method_is_in_two_families() {
    let mut names = [
        bitmaps::READS,
        bitmaps::WRITES,
        geo::READS,
        geo::WRITES,
        hashes::READS,
        hashes::WRITES,
        hyperloglogs::READS,
        hyperloglogs::WRITES,
        keys::READS,
        keys::WRITES,
        lists::READS,
        lists::WRITES,
        publish::READS,
        publish::WRITES,
        scripts::READS,
        scripts::WRITES,
        server::READS,
        server::WRITES,
        sets::READS,
        sets::WRITES,
        sorted_sets::READS,
        sorted_sets::WRITES,
        streams::READS,
        streams::WRITES,
        strings::READS,
        strings::WRITES,
        vectors::READS,
        vectors::WRITES,
        &["queue", "savepoint", "part", "query", "multi", "abandon", "attempt"],
        &["commit", "discard", "check", "release"],
    ]
    .concat();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn a_read_with_block_is_refused() {
    let mut probe = Probe::new();
    let options = StreamReadOptions::default().group("g", "c").block(5);
    let _: Queued<Value> = probe.xread_options(&["k"], &[">"], &options);
    assert!(probe.0.error().is_some());
    assert_eq!(probe.0.commands(), 0);
}

#[test]
fn a_part_is_kept_when_its_closure_succeeds_and_forgotten_when_it_fails_or_panics() {
    let mut probe = Probe::new();
    let kept: Result<i32, ()> = probe.part(|part| {
        part.set("kept", 1);
        Ok(7)
    });
    let failed: Result<(), &str> = probe.part(|part| {
        part.set("failed", 1);
        Err("no")
    });
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _ = probe.part(|part| -> Result<(), ()> {
            part.set("panicked", 1);
            panic!("in the middle of a part");
        });
    }));
    probe.queue::<()>(cmd("SET").arg("after").arg(1).take());
    assert_eq!((kept, failed, panicked.is_err()), (Ok(7), Err("no"), true));
    assert_eq!(probe.commands(), ["SET kept 1", "SET after 1"]);
}
