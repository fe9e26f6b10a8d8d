//! What the queue returns, part by part.
//!
//! Guarantee: large

use super::*;

fn queue() -> CommandQueue {
    CommandQueue::new(7, Limits { commands: 100, bytes: 10_000 }, Vec::new())
}

#[test]
fn a_transaction_is_encoded_as_one_run_of_requests() {
    let mut queue = queue();
    queue.push(0, &EncodedCommand::new(&["SET"]), |args| {
        args.arg("key").arg(42);
    });
    let mut many = vec!["MSET".to_owned()];
    many.extend((0..14).map(|n| n.to_string()));
    queue.push(0, &EncodedCommand::new(&["MSET"]), |args| {
        args.arg(many.get(1..).unwrap());
    });
    let sent: Vec<_> = CommandReader::new(queue.finish(Prefix::Multi, b"", &[]).bytes)
        .map(|command| {
            command
                .unwrap()
                .iter()
                .map(|a| String::from_utf8(a.to_vec()).unwrap())
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(
        sent,
        [
            vec!["MULTI".to_owned()],
            vec!["SET".to_owned(), "key".to_owned(), "42".to_owned()],
            many,
            vec!["EXEC".to_owned()],
        ]
    );
    assert_eq!(CommandReader::new(queue.finish(Prefix::Commands, b"", &[]).bytes).count(), 3);
}

#[test]
fn a_forgotten_part_leaves_holes_and_nothing_else() {
    let mut queue = queue();
    let set = |queue: &mut CommandQueue, depth| {
        queue.push(depth, &EncodedCommand::new(&["SET"]), |args| {
            args.arg("k").arg("v");
        })
    };
    assert_eq!(set(&mut queue, 0), 0);
    let outer = queue.savepoint(0);
    set(&mut queue, outer);
    let inner = queue.savepoint(outer);
    set(&mut queue, inner);
    queue.rollback_local(inner);
    set(&mut queue, outer);
    queue.release(outer);
    assert_eq!(queue.commands(), 3);
    assert_eq!(queue.take_dropped_ids(), [(2, 3)]);
}

#[test]
fn a_part_left_open_is_forgotten_at_the_next_use_of_its_parent() {
    let mut queue = queue();
    let outer = queue.savepoint(0);
    queue.push(outer, &EncodedCommand::new(&["SET"]), |_| {});
    queue.push(0, &EncodedCommand::new(&["GET"]), |_| {});
    assert_eq!(queue.commands(), 1);
    assert_eq!(queue.name(0).unwrap(), "GET");
}

#[test]
fn a_refused_command_goes_with_the_part_it_was_in() {
    let mut queue = queue();
    let part = queue.savepoint(0);
    queue.push_cmd(part, &redis::cmd("watch"));
    let hint = refusal_hint("WATCH", SendContext::InMulti);
    assert_eq!(queue.error(), Some(&QueueError::Refused { command: "WATCH".into(), hint }));
    queue.rollback_local(part);
    assert_eq!(queue.error(), None);
}

#[test]
fn a_panic_while_encoding_leaves_no_half_command() {
    let mut queue = queue();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        queue.push(0, &EncodedCommand::new(&["SET"]), |args| {
            args.arg("k");
            panic!("an argument type that cannot be encoded");
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(queue.body(), b"");
    assert_eq!(
        CommandReader::new(queue.finish(Prefix::Multi, b"", &[]).bytes)
            .filter(Result::is_ok)
            .count(),
        2
    );
}

#[test]
fn names_of_flushed_commands_are_kept() {
    let mut queue = queue();
    queue.push(0, &EncodedCommand::new(&["SET"]), |_| {});
    queue.push(0, &EncodedCommand::new(&["GET"]), |_| {});
    queue.flushed();
    queue.push(0, &EncodedCommand::new(&["INCR"]), |_| {});
    let names: Vec<_> = (0..4).map(|index| queue.name(index)).collect();
    assert_eq!(names, [Some("SET".into()), Some("GET".into()), Some("INCR".into()), None]);
}

#[test]
fn limits_are_kept() {
    let too_large = |what, limit, setting| QueueError::TooLarge { what, limit, setting };
    let mut queue = CommandQueue::new(1, Limits { commands: 2, bytes: 100 }, Vec::new());
    for _ in 0..3 {
        queue.push(0, &EncodedCommand::new(&["PING"]), |_| {});
    }
    assert_eq!(queue.error(), Some(&too_large("commands", 2, "max_commands")));
    let mut queue = CommandQueue::new(1, Limits { commands: 2, bytes: 100 }, Vec::new());
    queue.push(0, &EncodedCommand::new(&["SET"]), |args| {
        args.arg("k").arg(&[0_u8; 200][..]);
    });
    assert_eq!(queue.error(), Some(&too_large("bytes", 100, "max_bytes")));
    assert_eq!(queue.commands(), 0);
}
