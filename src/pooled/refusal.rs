//! Whether an error reply proves that a node of a cluster refused a command before it started.
//!
//! A script, a module's command and MIGRATE may return any error after they have written. So the node is
//! asked for their keys by a read too, which it has to refuse in the same words.

use redis::Value;

use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::command::keys;
use crate::protocol::command::table::is_read_only;
use crate::protocol::known_errors;
use crate::protocol::resp::encode::{self, words};

/// An error reply that redirects or postpones a command.
pub(crate) enum Refusal {
    /// The command may be sent again: it did not start, or it only reads.
    Proven,
    /// The command may have returned the error itself, unless the node refuses this read too. A read behind a
    /// later attempt goes in one write with it, before the node's state can change.
    Doubtful { read: Vec<u8> },
}

impl Refusal {
    /// `None`: the reply is the command's own. `slot`: that of the command's keys if it is known.
    pub(crate) fn of(args: &[&[u8]], reply: &Value, slot: Option<u16>) -> Option<Self> {
        let (code, text) = code_and_text(reply)?;
        let redirect = RedirectReply::of(code, text)?;
        let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
        if is_read_only(name, sub) || known_errors::proves(name, code, text) {
            return Some(Self::Proven);
        }
        let keys = keys::in_slot(args, redirect.slot().or(slot));
        if keys.is_empty() || !known_errors::is_before_start(code, text) {
            return None;
        }
        let mut read = Vec::new();
        encode::command_with(&mut read, words!("EXISTS"), keys);
        Some(Self::Doubtful { read })
    }
}

/// Whether a node that replies `read` to the read of a command's keys has refused the command too.
pub(crate) fn is_confirmed(reply: &Value, read: &Value) -> bool {
    let (Some((code, text)), Some(read)) = (code_and_text(reply), code_and_text(read)) else {
        return false;
    };
    // A migration may have ended in between.
    let names_node = |code: &str| matches!(code, "MOVED" | "ASK");
    (code == read.0 || names_node(code) && names_node(read.0)) && text == read.1
}

/// The code and the text of an error reply.
pub(crate) fn code_and_text(reply: &Value) -> Option<(&str, &str)> {
    let Value::ServerError(error) = reply else { return None };
    Some((error.code(), error.details().unwrap_or_default()))
}
