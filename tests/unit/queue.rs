//! What the buffer hands out, part by part.
//!
//! Never: a server.

use super::*;

fn buffer() -> Buffer {
    Buffer::new(7, Limits { commands: 100, bytes: 10_000 }, Vec::new())
}

#[test]
fn a_transaction_is_encoded_as_one_run_of_requests() {
    let mut buffer = buffer();
    buffer.push(0, &Head::new(&["SET"]), |args| {
        args.arg("key").arg(42);
    });
    let mut many = vec!["MSET".to_owned()];
    many.extend((0..14).map(|n| n.to_string()));
    buffer.push(0, &Head::new(&["MSET"]), |args| {
        args.arg(many.get(1..).unwrap());
    });
    let sent: Vec<_> = Requests::new(buffer.closed(Start::Multi, b"", b"").bytes)
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
    assert_eq!(Requests::new(buffer.closed(Start::Commands, b"", b"").bytes).count(), 3);
}

#[test]
fn a_forgotten_part_leaves_holes_and_nothing_else() {
    let mut buffer = buffer();
    let set = |buffer: &mut Buffer, depth| {
        buffer.push(depth, &Head::new(&["SET"]), |args| {
            args.arg("k").arg("v");
        })
    };
    assert_eq!(set(&mut buffer, 0), 0);
    let outer = buffer.open_part(0);
    set(&mut buffer, outer);
    let inner = buffer.open_part(outer);
    set(&mut buffer, inner);
    buffer.forget_part(inner);
    set(&mut buffer, outer);
    buffer.keep_part(outer);
    assert_eq!(buffer.commands(), 3);
    assert_eq!(buffer.take_holes(), [(2, 3)]);
}

#[test]
fn a_part_nobody_closed_is_forgotten_at_the_next_use_of_its_parent() {
    let mut buffer = buffer();
    let outer = buffer.open_part(0);
    buffer.push(outer, &Head::new(&["SET"]), |_| {});
    buffer.push(0, &Head::new(&["GET"]), |_| {});
    assert_eq!(buffer.commands(), 1);
    assert_eq!(buffer.name(0).unwrap(), "GET");
}

#[test]
fn a_refused_command_goes_with_the_part_it_was_in() {
    let mut buffer = buffer();
    let part = buffer.open_part(0);
    buffer.push_cmd(part, &redis::cmd("watch"));
    assert_eq!(buffer.refusal(), Some(&Refusal::Command("WATCH".into())));
    buffer.forget_part(part);
    assert_eq!(buffer.refusal(), None);
}

#[test]
fn a_panic_while_encoding_leaves_no_half_command() {
    let mut buffer = buffer();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        buffer.push(0, &Head::new(&["SET"]), |args| {
            args.arg("k");
            panic!("an argument type that cannot be encoded");
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(buffer.body(), b"");
    assert_eq!(
        Requests::new(buffer.closed(Start::Multi, b"", b"").bytes).filter(Result::is_ok).count(),
        2
    );
}

#[test]
fn names_of_flushed_commands_are_kept() {
    let mut buffer = buffer();
    buffer.push(0, &Head::new(&["SET"]), |_| {});
    buffer.push(0, &Head::new(&["GET"]), |_| {});
    buffer.flushed();
    buffer.push(0, &Head::new(&["INCR"]), |_| {});
    let names: Vec<_> = (0..4).map(|index| buffer.name(index)).collect();
    assert_eq!(names, [Some("SET".into()), Some("GET".into()), Some("INCR".into()), None]);
}

#[test]
fn limits_are_kept() {
    let mut buffer = Buffer::new(1, Limits { commands: 2, bytes: 100 }, Vec::new());
    for _ in 0..3 {
        buffer.push(0, &Head::new(&["PING"]), |_| {});
    }
    assert_eq!(buffer.refusal(), Some(&Refusal::TooManyCommands { limit: 2 }));
    let mut buffer = Buffer::new(1, Limits { commands: 2, bytes: 100 }, Vec::new());
    buffer.push(0, &Head::new(&["SET"]), |args| {
        args.arg("k").arg(&[0_u8; 200][..]);
    });
    assert_eq!(buffer.refusal(), Some(&Refusal::TooManyBytes { limit: 100 }));
    assert_eq!(buffer.commands(), 0);
}
