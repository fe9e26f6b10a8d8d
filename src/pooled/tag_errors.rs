//! Adds to each error reply of a request the effect that it proves, before redis-rs has it.
//!
//! No error reply is returned as received: its text may repeat keys and values.

#[cfg(feature = "tokio")]
use std::slice;

use redis::Value;

use crate::error::applied::Applied;
use crate::pooled::fan_out::Responses;
use crate::pooled::request::Request;
use crate::pooled::{error_tag, recent_replies};
use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::table::is_read_only;
#[cfg(feature = "tokio")]
use crate::protocol::command::table::{self, Command};
use crate::protocol::resp::reply::holds_error;
use crate::protocol::server_error::ServerError;

/// The kind of a redis-rs call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// One command, whose error is its own.
    Single,
    /// One or more commands: redis-rs makes one error of all that failed.
    Pipeline,
}

/// Tags the error replies among those of `sent`, which belong to the commands of `bytes`, and leaves out the
/// replies to the first `offset` ones.
pub(crate) fn tag_errors(
    request: &Request,
    sent: &mut Responses,
    (bytes, offset): (&[u8], usize),
    call: CallKind,
    full: bool,
) {
    let Responses { replies, in_part } = sent;
    let single = call == CallKind::Single;
    let name = if single { &*request.name } else { "a pipeline" };
    let is_error = |value: &Value| matches!(value, Value::ServerError(_));
    let fails = |value: &Value| is_error(value) || request.may_nest && holds_error(value);
    let commands = || {
        let commands = CommandReader::new(bytes).flatten().enumerate();
        commands.map(|(at, args)| (args, in_part.contains(&at)))
    };
    // The commands whose replies are left out have had their effects too.
    let whole = (!single && replies.iter().any(fails)).then(|| whole(commands(), replies));
    let applied = match whole.filter(|_| replies.iter().any(is_error)) {
        Some(applied) => applied,
        None if request.read_only => Applied::No,
        None => Applied::Yes,
    };
    let asked_for = replies.get(offset..).unwrap_or_default();
    recent_replies::record(name, applied, asked_for, single);
    if asked_for.iter().any(fails) {
        for ((args, in_part), value) in commands().zip(&mut *replies).skip(offset) {
            let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
            put(value, &|error| error_tag::tagged((name, sub), error, in_part, whole, full));
        }
    }
    replies.drain(..offset.min(replies.len()));
}

/// The same for the reply to one small command, which contains no other error.
#[cfg(feature = "tokio")]
pub(crate) fn tag_error(row: &Command, cmd: &redis::Cmd, reply: &mut Value, full: bool) {
    let applied = if row.has(table::READ) { Applied::No } else { Applied::Yes };
    recent_replies::record(row.name, applied, slice::from_ref(reply), true);
    if let Value::ServerError(error) = reply {
        let sub = match cmd.args_iter().nth(1) {
            Some(redis::Arg::Simple(sub)) => Some(sub),
            _ => None,
        };
        *error = error_tag::tagged((row.name.as_bytes(), sub), error, false, None, full);
    }
}

/// Returns the effect of a pipeline in which some commands failed. Of each command: whether another
/// server may have applied it.
fn whole<'b>(commands: impl Iterator<Item = (Vec<&'b [u8]>, bool)>, replies: &[Value]) -> Applied {
    let mut applied = Applied::No;
    for ((args, in_part), reply) in commands.zip(replies) {
        let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
        match reply {
            Value::ServerError(error)
                if !in_part && ServerError::of_command(name, sub, error).changed_nothing() => {}
            Value::ServerError(_) => applied = Applied::Unknown,
            _ if is_read_only(name, sub) => {}
            _ => return Applied::Partly,
        }
    }
    applied
}

/// Replaces each error in `value` by its tagged form.
fn put(value: &mut Value, tagged: &impl Fn(&redis::ServerError) -> redis::ServerError) {
    match value {
        Value::ServerError(error) => *error = tagged(error),
        Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => {
            values.iter_mut().for_each(|value| put(value, tagged));
        }
        Value::Map(pairs) => pairs.iter_mut().for_each(|(key, value)| {
            put(key, tagged);
            put(value, tagged);
        }),
        Value::Attribute { data, .. } => put(data, tagged),
        _ => {}
    }
}
