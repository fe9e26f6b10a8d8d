//! Commands that wait on the server, and their timeouts.

use std::time::Duration;

use crate::protocol::command::upper_name::UpperName;

/// Time that a command may wait on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// Not at all.
    No,
    /// At most this long.
    For(Duration),
    /// Without a bound (a timeout of 0), or its timeout cannot be read.
    Forever,
}

/// Reads the timeout of a blocking command from its arguments (the name included).
pub(crate) fn blocking(args: &[&[u8]]) -> Blocking {
    let Some(name) = args.first().copied().and_then(UpperName::new) else { return Blocking::No };
    match name.as_str() {
        "BLPOP" | "BRPOP" | "BRPOPLPUSH" | "BLMOVE" | "BZPOPMIN" | "BZPOPMAX" => {
            seconds(args.last().copied())
        }
        "BLMPOP" | "BZMPOP" => seconds(args.get(1).copied()),
        "WAIT" => milliseconds(args.get(2).copied()),
        "WAITAOF" => milliseconds(args.get(3).copied()),
        "XREAD" | "XREADGROUP" => match block_option(args) {
            Some(at) => milliseconds(args.get(at + 1).copied()),
            None => Blocking::No,
        },
        _ => Blocking::No,
    }
}

/// Whether a queued command has BLOCK, which has no effect inside MULTI.
pub(crate) fn blocks_in_multi(args: &[&[u8]]) -> bool {
    args.first()
        .copied()
        .and_then(UpperName::new)
        .is_some_and(|name| matches!(name.as_str(), "XREAD" | "XREADGROUP"))
        && block_option(args).is_some()
}

/// Position of the option BLOCK: before STREAMS, and not the name of a group or a consumer.
fn block_option(args: &[&[u8]]) -> Option<usize> {
    let mut at = 1;
    loop {
        let option = args.get(at)?;
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        at += match () {
            () if is(b"BLOCK") => return Some(at),
            () if is(b"STREAMS") => return None,
            () if is(b"GROUP") => 3,
            () if is(b"COUNT") => 2,
            () => 1,
        };
    }
}

fn seconds(arg: Option<&[u8]>) -> Blocking {
    bounded(number(arg).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
}

fn milliseconds(arg: Option<&[u8]>) -> Blocking {
    bounded(number(arg).and_then(|millis| Duration::try_from_secs_f64(millis / 1e3).ok()))
}

fn number(arg: Option<&[u8]>) -> Option<f64> {
    std::str::from_utf8(arg?).ok()?.parse().ok()
}

/// Maximum timeout, so that clocks do not overflow: a year. Longer ones count as unbounded.
const LONGEST_BLOCK: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn bounded(timeout: Option<Duration>) -> Blocking {
    match timeout {
        Some(timeout) if !timeout.is_zero() && timeout <= LONGEST_BLOCK => Blocking::For(timeout),
        _ => Blocking::Forever,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocking_timeout_is_found_where_the_command_keeps_it() {
        let blocks =
            |args: &[&str]| blocking(&args.iter().map(|arg| arg.as_bytes()).collect::<Vec<_>>());
        assert_eq!(blocks(&["BLPOP", "k", "1.5"]), Blocking::For(Duration::from_millis(1500)));
        assert_eq!(
            blocks(&["blmpop", "2", "1", "k", "LEFT"]),
            Blocking::For(Duration::from_secs(2))
        );
        assert_eq!(blocks(&["BLPOP", "k", "0"]), Blocking::Forever);
        assert_eq!(blocks(&["BLPOP", "k", "soon"]), Blocking::Forever);
        assert_eq!(blocks(&["XREAD", "BLOCK", "0", "STREAMS", "s", "$"]), Blocking::Forever);
        assert_eq!(blocks(&["XREAD", "STREAMS", "BLOCK", "$"]), Blocking::No);
        let group = ["XREADGROUP", "GROUP", "block", "streams", "COUNT", "1"];
        assert_eq!(blocks(&[&group[..], &["STREAMS", "s", ">"]].concat()), Blocking::No);
        let blocking = blocks(&[&group[..], &["BLOCK", "5", "STREAMS", "s", ">"]].concat());
        assert_eq!(blocking, Blocking::For(Duration::from_millis(5)));
        assert_eq!(blocks(&["WAIT", "1", "250"]), Blocking::For(Duration::from_millis(250)));
        assert_eq!(blocks(&["GET", "k"]), Blocking::No);
    }
}
