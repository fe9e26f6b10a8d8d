//! The positions of a command's keys, by its name, as in the server's own table.
//!
//! The keys of a command that is not in the table are unknown; they are not guessed.

use crate::protocol::cluster::slot;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::table::{self, Command, KeyPositions};

/// The slots of a command's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeySlots {
    None,
    One(u16),
    /// Keys of several slots, two of which are these.
    Several(u16, u16),
    /// The positions of the keys are not known.
    Unknown,
}

/// A command with a key of another slot than the bound one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CrossSlot {
    pub(crate) command: String,
    pub(crate) bound: u16,
    pub(crate) other: u16,
}

/// The slot of a command (the name included).
pub(crate) fn slot_of(args: &[&[u8]]) -> KeySlots {
    let Some(positions) = positions(args) else { return KeySlots::Unknown };
    let mut found = KeySlots::None;
    each(positions, args, |key| {
        let slot = slot::of_key(key);
        found = match found {
            KeySlots::None => KeySlots::One(slot),
            KeySlots::One(first) if first != slot => KeySlots::Several(first, slot),
            found => found,
        };
    });
    found
}

/// Binds to the slot of these commands' keys. A command with unknown key positions binds to
/// nothing.
pub(crate) fn bind(binding: &mut SlotBinding, bytes: &[u8]) -> Result<(), CrossSlot> {
    if *binding == SlotBinding::None {
        return Ok(());
    }
    CommandReader::new(bytes).flatten().try_for_each(|args| bind_to(binding, &args).map(|_| ()))
}

/// Binds to the slot of one command's keys, and returns it.
pub(crate) fn bind_to(binding: &mut SlotBinding, args: &[&[u8]]) -> Result<KeySlots, CrossSlot> {
    let slots = slot_of(args);
    let (bound, other) = match slots {
        KeySlots::None | KeySlots::Unknown => return Ok(slots),
        KeySlots::One(slot) => match binding.bind(slot) {
            Ok(()) => return Ok(slots),
            Err(bound) => (bound, slot),
        },
        KeySlots::Several(one, other) => (one, other),
    };
    let command = display_name(args.first().copied().unwrap_or_default());
    Err(CrossSlot { command, bound, other })
}

/// Whether every key of these commands is one of `watch`.
pub(crate) fn are_among(bytes: &[u8], watch: &[u8]) -> bool {
    let watched = CommandReader::new(watch).next().and_then(Result::ok).unwrap_or_default();
    let mut among = true;
    for args in CommandReader::new(bytes).flatten() {
        match positions(&args) {
            Some(positions) => {
                each(positions, &args, |key| among &= watched.iter().skip(1).any(|k| *k == key))
            }
            None => among = false,
        }
    }
    among
}

/// Calls `with` for each key that a command may change (the name included). Returns whether these are
/// known.
pub(crate) fn for_each_written(args: &[&[u8]], with: impl FnMut(&[u8])) -> bool {
    let Some(command) = args.first().and_then(|name| table::find(name)) else { return false };
    if command.is_read_only(args.get(1).copied()) {
        return true;
    }
    let Some(positions) = positions_of(command, args) else { return false };
    each(positions, args, with);
    true
}

/// Returns the keys of one command. If they are not known: its arguments in this slot, where its keys are.
pub(crate) fn in_slot<'a>(args: &[&'a [u8]], slot: Option<u16>) -> Vec<&'a [u8]> {
    let mut keys = Vec::new();
    match positions(args) {
        Some(positions) => each(positions, args, |key| keys.push(key)),
        None => keys.extend(args.iter().skip(1).filter(|arg| Some(slot::of_key(arg)) == slot)),
    }
    keys
}

/// Calls `with` for each key. An incomplete command has fewer, and the server rejects it.
fn each<'a>(positions: KeyPositions, args: &[&'a [u8]], mut with: impl FnMut(&'a [u8])) {
    let mut at = |index: usize| args.get(index).copied().into_iter().for_each(&mut with);
    match positions {
        KeyPositions::None => {}
        KeyPositions::Range { first, trailing, step } => {
            (first..args.len().saturating_sub(trailing)).step_by(step).for_each(at);
        }
        KeyPositions::Pair(one, two) => {
            at(one);
            if two != one {
                at(two);
            }
        }
        KeyPositions::Counted { at: count, step } => counted(args, count, step).for_each(at),
        KeyPositions::AndCounted { at: count } => {
            at(1);
            counted(args, count, 1).for_each(at);
        }
        KeyPositions::Streams => {
            let word = args.iter().position(|arg| arg.eq_ignore_ascii_case(b"STREAMS"));
            let first = word.map_or(args.len(), |word| word + 1);
            (first..first + (args.len() - first) / 2).for_each(at);
        }
        KeyPositions::Store(words) => {
            at(1);
            let is_word =
                |arg: &&[u8]| words.iter().any(|word| arg.eq_ignore_ascii_case(word.as_bytes()));
            // The last one counts, as on the server.
            let last = args.iter().skip(2).rposition(is_word);
            last.map(|word| word + 3).into_iter().for_each(at);
        }
    }
}

fn counted(args: &[&[u8]], at: usize, step: usize) -> impl Iterator<Item = usize> + use<> {
    let digits = args.get(at).and_then(|digits| std::str::from_utf8(digits).ok());
    let count: usize = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let most = args.len().saturating_sub(at + 1).div_ceil(step);
    (0..count.min(most)).map(move |nth| at + 1 + nth * step)
}

fn positions(args: &[&[u8]]) -> Option<KeyPositions> {
    positions_of(table::find(args.first()?)?, args)
}

fn positions_of(command: &Command, args: &[&[u8]]) -> Option<KeyPositions> {
    let sub = args.get(1).copied();
    let is_help = || sub.is_some_and(|sub| sub.eq_ignore_ascii_case(b"HELP"));
    match command.keys {
        // The two whose subcommands differ in it.
        _ if command.is_memory_usage(sub) => Some(KeyPositions::Pair(2, 2)),
        Some(KeyPositions::Pair(2, 2)) if is_help() => Some(KeyPositions::None),
        positions => positions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(line: &str) -> Option<Vec<String>> {
        let args: Vec<_> = line.split(' ').map(str::as_bytes).collect();
        let mut keys = Vec::new();
        each(positions(&args)?, &args, |key| keys.push(String::from_utf8_lossy(key).into_owned()));
        Some(keys)
    }

    #[test]
    fn a_commands_keys_are_where_the_server_says() {
        for (line, expected) in [
            ("get k", "k"),
            ("PING", ""),
            ("MSET a 1 b 2", "a b"),
            ("BLPOP a b 0", "a b"),
            ("BITOP AND d a b", "d a b"),
            ("OBJECT ENCODING k", "k"),
            ("OBJECT HELP", ""),
            ("MEMORY USAGE k", "k"),
            ("EVAL return 2 a b c", "a b"),
            ("EVAL return 0 c", ""),
            ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "d a b"),
            ("ZMPOP 2 a b MIN", "a b"),
            ("MSETEX 2 a 1 b 2 EX 5", "a b"),
            ("XREAD COUNT 5 STREAMS a b 0 0", "a b"),
            ("XREADGROUP GROUP g c STREAMS a >", "a"),
            ("SORT a BY x STORE d", "a d"),
            ("SORT a", "a"),
            ("GEORADIUS a 1 1 1 m STOREDIST d", "a d"),
            ("RENAME a b", "a b"),
            ("VSIM a ELE b", "a"),
            ("vadd a VALUES 1 1 b", "a"),
            ("JSON.GET a $", "a"),
            ("JSON.MGET a b $", "a b"),
            ("TDIGEST.QUANTILE a 0.5", "a"),
            // Incomplete: the server rejects it.
            ("GET", ""),
            ("EVAL return 9 a", "a"),
            ("EVAL return x a", ""),
            ("XREAD STREAMS", ""),
            ("ZUNIONSTORE d", "d"),
            ("SORT a STORE", "a"),
        ] {
            let keys = keys(line).map(|keys| keys.join(" "));
            assert_eq!(keys.as_deref(), Some(expected), "{line}");
        }
        assert_eq!(keys("JSON.SET a $ 1"), None);
        assert_eq!(keys("TS.MRANGE - + FILTER a=b"), None);
        assert_eq!(keys("MIGRATE host 1 k 0 1"), None);
    }

    #[test]
    fn keys_of_two_slots_are_reported_with_both_slots() {
        let slots = |line: &str| slot_of(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        assert_eq!(slots("SET a 1"), KeySlots::One(slot::of_key(b"a")));
        assert_eq!(slots("MGET {a}1 {a}2"), KeySlots::One(slot::of_key(b"a")));
        let (a, b) = (slot::of_key(b"a"), slot::of_key(b"b"));
        assert_eq!(slots("MGET a b c"), KeySlots::Several(a, b));
        assert_eq!(slots("TIME"), KeySlots::None);
        assert_eq!(slots("FT.SEARCH idx"), KeySlots::Unknown);
    }
}
