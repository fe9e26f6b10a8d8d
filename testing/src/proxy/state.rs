//! What the faults have done to one connection so far.
//!
//! It has no sockets and does not wait.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::resp::Direction;
use super::script::{Armed, Moment};

/// An end of a connection. Doubles as an index into per-side pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client = 0,
    Server = 1,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) armed: Armed,
    pub(super) closed: [bool; 2],
    pub(super) held: [bool; 2],
    /// A direction stands still while the other one writes up to a trigger and acts on it, so that
    /// a reply cannot overtake the fault.
    pub(super) frozen: [bool; 2],
    pub(super) paused_until: [Option<Instant>; 2],
    pub(super) drop_requests: bool,
    /// The current command is discarded: the proxy replies to it.
    pub(super) refusing: bool,
    /// A reply has begun whose last bytes were not written yet.
    pub(super) replying: bool,
    /// The current reply is being thrown away.
    pub(super) swallowing: bool,
    /// Number of the next replies to discard.
    swallow_next: u32,
    /// Whether to discard the reply to the next command.
    swallow_beginning: bool,
    pub(super) one_byte: bool,
    /// The last bytes came from the client.
    pub(super) asking: bool,
    /// The replies still to come, in order.
    owed: VecDeque<Owed>,
}

#[derive(Debug, Default)]
struct Owed {
    command: String,
    swallow: bool,
    /// The server never received the command: this is the reply.
    own: Option<&'static str>,
}

impl State {
    pub(super) fn any_closed(&self) -> bool {
        self.closed.contains(&true)
    }

    /// Whether bytes going this way are thrown away.
    pub(super) fn drops(&self, direction: Direction) -> bool {
        self.any_closed()
            || match direction {
                Direction::Requests => self.drop_requests || self.refusing,
                Direction::Replies => self.swallowing,
            }
    }

    pub(super) fn command_begins(&mut self, command: String) {
        let swallow = std::mem::take(&mut self.swallow_beginning);
        self.owed.push_back(Owed { command, swallow, own: None });
    }

    /// The server never gets the command that is about to begin.
    pub(super) fn refuse(&mut self, answer: &'static str) {
        self.refusing = true;
        let command = String::new();
        self.owed.push_back(Owed { command, swallow: false, own: Some(answer) });
    }

    /// The proxy's own replies that are due before any further reply of the server's.
    pub(super) fn own_answers(&mut self) -> Vec<&'static str> {
        let mut answers = Vec::new();
        while let Some(own) = self.owed.front().and_then(|owed| owed.own) {
            self.owed.pop_front();
            answers.push(own);
        }
        answers
    }

    /// Returns the name of the command that it replies to.
    pub(super) fn reply_begins(&mut self) -> String {
        let owed = self.owed.pop_front().unwrap_or_default();
        self.swallowing = owed.swallow || self.swallow_next > 0;
        self.swallow_next = self.swallow_next.saturating_sub(1);
        owed.command
    }

    /// Chooses the reply to throw away by where the fault fired.
    pub(super) fn swallow(&mut self, at: Option<(Direction, Moment)>) {
        match (at, self.owed.back_mut()) {
            (Some((Direction::Replies, Moment::Begin | Moment::Within)), _) => {
                self.swallowing = true
            }
            (Some((Direction::Requests, Moment::Begin)), _) => self.swallow_beginning = true,
            (Some((Direction::Requests, _)), Some(owed)) => owed.swallow = true,
            _ => self.swallow_next += 1,
        }
    }

    /// Stops one direction, or both, for a while.
    pub(super) fn pause(&mut self, pause: Duration, direction: Option<Direction>) {
        let until = Some(Instant::now() + pause);
        match direction {
            Some(direction) => self.paused_until[direction as usize] = until,
            None => self.paused_until = [until; 2],
        }
    }
}
