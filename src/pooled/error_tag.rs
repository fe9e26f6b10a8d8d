//! The pooled handle's judgement of a reply, carried through `redis::RedisError` and back.
//!
//! A `RedisError` holds an error reply as a code and a text. So the text has the judgement at its end:
//! `… [INCR: not applied, ref 1f3ac2]`. The reference is a keyed sum over the line, so that no
//! server, script or proxy can write one.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use crate::error::applied::Applied;
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::effects;
use crate::protocol::command::effects::is_script;
use crate::protocol::server_error::ServerError;

/// What is known of a whole pipeline of which some command failed.
pub(crate) type Whole = Option<Applied>;

/// An error reply of one command, as the pooled handle hands it out.
pub(crate) fn tagged(
    (name, sub): (&[u8], Option<&[u8]>),
    reply: &redis::ServerError,
    whole: Whole,
    full: bool,
) -> redis::ServerError {
    let error = ServerError::of_command(name, sub, reply).in_full(full);
    let code = error.code();
    let whole = whole.map_or("", |applied| match applied {
        Applied::No => "; pipeline: not applied",
        Applied::Yes | Applied::Partly => "; pipeline: partly applied",
        Applied::Unknown => "; pipeline: unknown",
    });
    let applied = if error.changed_nothing() { "not applied" } else { "unknown whether applied" };
    let gap = if error.message().is_empty() { "" } else { " " };
    let name = display_name(name);
    let text = format!("{}{gap}[{name}: {applied}{whole}", error.message());
    let line = format!("-{code} {text}, ref {}]\r\n", reference(code, &text));
    match redis::parse_redis_value(line.as_bytes()) {
        Ok(redis::Value::ServerError(error)) => error,
        // It is one line that begins with a dash.
        _ => reply.clone(),
    }
}

/// An error reply that came back, its command, and what is known of a whole pipeline. Without a
/// judgement of this process's the command is not known, and neither is what it did.
pub(crate) fn read(code: &str, text: &str) -> (Option<String>, ServerError, Whole) {
    parsed(code, text).unwrap_or_else(|| (None, ServerError::of_any(code, text), None))
}

fn parsed(code: &str, text: &str) -> Option<(Option<String>, ServerError, Whole)> {
    let (line, own) = text.strip_suffix(']')?.rsplit_once(", ref ")?;
    let (shown, tag) = line.rsplit_once('[')?;
    if own != reference(code, line) {
        return None;
    }
    let (name, applied) = tag.split_once(": ")?;
    let (applied, whole) = applied.split_once("; pipeline: ").unwrap_or((applied, ""));
    let whole = match whole {
        "not applied" => Some(Applied::No),
        "partly applied" => Some(Applied::Partly),
        "unknown" => Some(Applied::Unknown),
        _ => None,
    };
    let from_script = is_script(name.as_bytes());
    let unrun = applied == "not applied";
    let error = ServerError::carried(code, shown.trim_end(), from_script, unrun);
    Some((Some(name.to_owned()), error, whole))
}

/// A sum that only this process can make.
fn reference(code: &str, text: &str) -> String {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    let sum = KEYS.get_or_init(RandomState::new).hash_one((code, text));
    format!("{:08x}", sum >> 32)
}

/// Whether errors may stand inside of a reply of this command's: no command on keys answers so.
pub(crate) fn may_nest(name: &[u8]) -> bool {
    !effects::is_data_command(name)
}
