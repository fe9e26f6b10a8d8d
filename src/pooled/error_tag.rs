//! The effect that a reply proves, carried through `redis::RedisError` and back.
//!
//! A `RedisError` holds an error reply as a code and a text. So a tag is appended to the text: `…
//! [INCR: not applied, ref 1f3ac2]`. The reference is a keyed hash of the line, so that no server,
//! script or proxy can forge a tag.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use crate::error::applied::Applied;
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::table;
use crate::protocol::command::table::is_script;
use crate::protocol::server_error::ServerError;

/// The effect of a pipeline with a failed command.
pub(crate) type PipelineEffect = Option<Applied>;

/// The error reply of one command with its tag. `in_part`: another server may have applied it.
pub(crate) fn tagged(
    (name, sub): (&[u8], Option<&[u8]>),
    reply: &redis::ServerError,
    in_part: bool,
    pipeline: PipelineEffect,
    full: bool,
) -> redis::ServerError {
    let error = ServerError::of_command(name, sub, reply).with_full_text(full);
    let code = error.code();
    let pipeline = pipeline.map_or("", |applied| match applied {
        Applied::No => "; pipeline: not applied",
        Applied::Yes | Applied::Partly => "; pipeline: partly applied",
        Applied::Unknown => "; pipeline: unknown",
    });
    let applied = match error.changed_nothing() && !in_part {
        true => "not applied",
        false => "unknown whether applied",
    };
    let gap = if error.message().is_empty() { "" } else { " " };
    let name = display_name(name);
    let text = format!("{}{gap}[{name}: {applied}{pipeline}", error.message());
    let line = format!("-{code} {text}, ref {}]\r\n", reference(code, &text));
    match redis::parse_redis_value(line.as_bytes()) {
        Ok(redis::Value::ServerError(error)) => error,
        // The reply is one line that begins with a dash.
        _ => reply.clone(),
    }
}

/// Parses an error: its command, and the effect of a pipeline. Without a valid tag of this process
/// neither is known.
pub(crate) fn parse(code: &str, text: &str) -> (Option<String>, ServerError, PipelineEffect) {
    parse_tag(code, text).unwrap_or_else(|| (None, ServerError::of_any(code, text), None))
}

fn parse_tag(code: &str, text: &str) -> Option<(Option<String>, ServerError, PipelineEffect)> {
    let (line, own) = text.strip_suffix(']')?.rsplit_once(", ref ")?;
    let (shown, tag) = line.rsplit_once('[')?;
    if own != reference(code, line) {
        return None;
    }
    let (name, applied) = tag.split_once(": ")?;
    let (applied, pipeline) = applied.split_once("; pipeline: ").unwrap_or((applied, ""));
    let pipeline = match pipeline {
        "not applied" => Some(Applied::No),
        "partly applied" => Some(Applied::Partly),
        "unknown" => Some(Applied::Unknown),
        _ => None,
    };
    let from_script = is_script(name.as_bytes());
    let no_effect = applied == "not applied";
    let error = ServerError::restored(code, shown.trim_end(), from_script, no_effect);
    Some((Some(name.to_owned()), error, pipeline))
}

/// A hash that only this process can compute.
fn reference(code: &str, text: &str) -> String {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    let sum = KEYS.get_or_init(RandomState::new).hash_one((code, text));
    format!("{:08x}", sum >> 32)
}

/// Whether a reply of this command may contain errors; that of a data command does not.
pub(crate) fn may_nest(name: &[u8]) -> bool {
    !table::is_data_command(name)
}
