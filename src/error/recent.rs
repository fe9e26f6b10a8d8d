//! What the pooled handle was last answered on this thread, for an answer that cannot be decoded:
//! redis-rs decodes it, and its error knows neither the command nor what that did.
//!
//! Never: a value. The kind of the answer is kept, and its length.

use std::cell::RefCell;

use redis::Value;

use super::Applied;
use crate::reply::kind;

/// How many answers back one is looked for.
const KEPT: usize = 8;
const LONGEST: usize = 24;

#[derive(Clone, Copy)]
struct Answer {
    name: [u8; LONGEST],
    length: usize,
    read_only: bool,
    shape: Shape,
    kind: &'static str,
}

/// How redis-rs shows an answer in its error, as far as it is worth comparing.
#[derive(Clone, Copy)]
enum Shape {
    Shows(&'static str),
    Int(i64),
    /// Of a pipeline, or of a kind of which an element may be shown.
    Any,
}

thread_local! {
    static ANSWERS: RefCell<Vec<Answer>> = const { RefCell::new(Vec::new()) };
}

/// The command that was just answered without an error; of a pipeline, its name for errors.
pub(crate) fn note(name: &str, read_only: bool, answer: Option<&Value>) {
    let mut bytes = [0; LONGEST];
    let length = name.len().min(LONGEST);
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let shape = match answer {
        Some(Value::Int(number)) => Shape::Int(*number),
        Some(Value::Nil) => Shape::Shows("nil"),
        Some(Value::Okay) => Shape::Shows("ok"),
        Some(Value::BulkString(_)) => Shape::Shows("b"),
        _ => Shape::Any,
    };
    let kind = answer.map_or("replies", kind);
    let answer = Answer { name: bytes, length, read_only, shape, kind };
    // A thread that is ending has no use for it.
    let _: Result<(), _> = ANSWERS.try_with(|answers| {
        let mut answers = answers.borrow_mut();
        if answers.len() >= KEPT {
            answers.remove(0);
        }
        answers.push(answer);
    });
}

/// Whatever fails to be decoded next may be of another connection.
pub(crate) fn forget() {
    let _: Result<(), _> = ANSWERS.try_with(|answers| answers.borrow_mut().clear());
}

/// The latest answer that this error of redis-rs's can be about: its command, its kind, and what the
/// command did. `None` where there is none.
pub(super) fn find(error: &str) -> Option<(String, &'static str, Applied)> {
    let shown = error.split_once("(value was ").or_else(|| error.split_once("(response was "));
    let shown = shown.map(|(_, shown)| shown);
    let fits = |answer: &&Answer| match (shown, answer.shape) {
        (None, _) | (_, Shape::Any) => true,
        (Some(shown), Shape::Shows(start)) => shown.starts_with(start),
        (Some(shown), Shape::Int(number)) => {
            shown.strip_suffix(')') == Some(&format!("int({number})"))
        }
    };
    ANSWERS
        .try_with(|answers| {
            let answers = answers.borrow();
            let answer = answers.iter().rev().find(fits)?;
            let name = answer.name.get(..answer.length).unwrap_or_default();
            let applied = if answer.read_only { Applied::No } else { Applied::Yes };
            Some((String::from_utf8_lossy(name).into_owned(), answer.kind, applied))
        })
        .ok()?
}
