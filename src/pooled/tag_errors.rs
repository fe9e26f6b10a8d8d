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
use crate::protocol::server_error::ServerError;

/// The kind of a redis-rs call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// One command, whose error is its own.
    Single,
    /// One or more commands: redis-rs makes one error of all that failed.
    Pipeline,
}

/// Tags the error replies among those of `sent`, which belong to the commands of `bytes` after the
/// first `offset` ones.
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
    recent_replies::record(name, request.read_only, replies, single);
    let fails = |value: &Value| match request.may_nest {
        true => holds_error(value),
        false => matches!(value, Value::ServerError(_)),
    };
    // This is nearly always the case.
    if !replies.iter().any(fails) {
        return;
    }
    let commands = || {
        let commands = CommandReader::new(bytes).flatten().enumerate().skip(offset);
        commands.map(|(at, args)| (args, in_part.contains(&at)))
    };
    let whole = (!single).then(|| whole(commands(), replies));
    for ((args, in_part), value) in commands().zip(replies) {
        let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
        put(value, &|error| error_tag::tagged((name, sub), error, in_part, whole, full));
    }
}

/// The same for the reply to one small command, which contains no other error.
#[cfg(feature = "tokio")]
pub(crate) fn tag_error(row: &Command, cmd: &redis::Cmd, reply: &mut Value, full: bool) {
    recent_replies::record(row.name, row.has(table::READ), slice::from_ref(reply), true);
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

fn holds_error(value: &Value) -> bool {
    match value {
        Value::ServerError(_) => true,
        Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => {
            values.iter().any(holds_error)
        }
        Value::Map(pairs) => {
            pairs.iter().any(|(key, value)| holds_error(key) || holds_error(value))
        }
        Value::Attribute { data, .. } => holds_error(data),
        _ => false,
    }
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
