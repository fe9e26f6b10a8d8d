//! The outcome of a commit that is cut, by the rules of TCP and of Redis alone.
//!
//! A form of a commit is a list of *flights*: one write each, whose replies are all awaited before
//! the next. A cut falls into one flight, or into the *gap* before it. What the call must return
//! then follows from four facts, none of them taken from the crate:
//!
//! 1. A write that reached the proxy was a success for the client: it cannot know how far its
//!    bytes came. A connection that the client's kernel knows to be closed or reset is not written
//!    to.
//! 2. The server runs EXEC if and when it gets its last byte. In a flight the proxy passes on, all
//!    replies come after all commands. A held request arrives when it is let go, however late.
//! 3. Replies that came before the cut were read.
//! 4. A flight without commands of the user's may be repeated on another connection, unless WATCH
//!    is armed on this one.
//!
//! So the model does not call the crate, and it permits exactly one outcome.

use crate::side;
use rediscope_testing::proxy::{Fault, Trigger};

/// One write of the client's and the replies it then waits for.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) commands: &'static [&'static str],
    lost: Lost,
    /// The time before it is the user's own, so the test can fill it; else it is within a call.
    users_gap: bool,
}

/// What happens to the scope when a flight's reply is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// Nothing of the user's was in it: the same on another connection.
    Replaced,
    /// The scope cannot go on, and EXEC was never written.
    NotSent,
    /// EXEC was in it.
    InDoubt,
    /// The scope was being given up: it is, but its connection goes too.
    Unclean,
}

/// What the transaction would come to on an honest network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    Sound,
    /// Its second command is refused while it is queued.
    Refused,
    /// The watched key changes before EXEC.
    Conflicting,
    /// It is given up instead of committed.
    GivenUp,
}

/// By which call the transaction is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Guard,
    ImmediateGuard,
    Watching,
    WatchRun,
    Run,
    ImmediateWatching,
    ImmediateRun,
    ChunkedGuard,
    ChunkedRun,
    Discard,
    Abandon,
}

#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) name: &'static str,
    pub(crate) call: Call,
    pub(crate) block: Block,
    /// Whether the pool's connection counts as alive without a check.
    pub(crate) trusted: bool,
    pub(crate) flights: &'static [Flight],
    /// Whether the call itself repeats what was not sent.
    repeats: bool,
}

const fn of(commands: &'static [&'static str], lost: Lost, users_gap: bool) -> Flight {
    Flight { commands, lost, users_gap }
}

const fn form(
    name: &'static str,
    call: Call,
    block: Block,
    trusted: bool,
    flights: &'static [Flight],
) -> Form {
    let repeats = matches!(call, Call::Run | Call::ImmediateRun | Call::WatchRun);
    Form { name, call, block, trusted, flights, repeats }
}

const ONE: &[Flight] = &[of(&["MULTI", "INCRBY", "HINCRBY", "EXEC"], Lost::InDoubt, true)];
const TWO: &[Flight] = &[
    of(&["MULTI"], Lost::Replaced, true),
    of(&["INCRBY", "HINCRBY", "EXEC"], Lost::InDoubt, false),
];
const BEGUN: &[Flight] = &[
    of(&["MULTI"], Lost::Replaced, true),
    of(&["INCRBY", "HINCRBY", "EXEC"], Lost::InDoubt, true),
];
const BEGUN_ANEW: &[Flight] = &[
    of(&["MULTI"], Lost::Replaced, true),
    of(&["DISCARD", "MULTI"], Lost::Replaced, true),
    of(&["INCRBY", "HINCRBY", "EXEC"], Lost::InDoubt, false),
];
const WATCHED_ONE: &[Flight] = &[
    of(&["WATCH"], Lost::Replaced, true),
    of(&["GET"], Lost::NotSent, true),
    of(&["MULTI", "INCRBY", "HINCRBY", "EXEC"], Lost::InDoubt, true),
];
const WATCHED_TWO: &[Flight] = &[
    of(&["WATCH"], Lost::Replaced, true),
    of(&["GET"], Lost::NotSent, true),
    of(&["MULTI"], Lost::NotSent, true),
    of(&["INCRBY", "HINCRBY", "EXEC"], Lost::InDoubt, false),
];
const BEGUN_DISCARDED: &[Flight] =
    &[of(&["MULTI"], Lost::Replaced, true), of(&["DISCARD"], Lost::Unclean, true)];
const WATCHED_ABANDONED: &[Flight] =
    &[of(&["WATCH"], Lost::Replaced, true), of(&["UNWATCH"], Lost::Unclean, true)];
const CHUNKED: &[Flight] = &[
    of(&["MULTI"], Lost::Replaced, true),
    of(&["INCRBY", "HINCRBY"], Lost::NotSent, false),
    of(&["RPUSH", "EXEC"], Lost::InDoubt, true),
];

pub(crate) const FORMS: &[Form] = &[
    form("guard, trusted", Call::Guard, Block::Sound, true, ONE),
    form("guard, trusted, refused", Call::Guard, Block::Refused, true, ONE),
    form("guard, untrusted", Call::Guard, Block::Sound, false, TWO),
    form("guard, untrusted, refused", Call::Guard, Block::Refused, false, TWO),
    form("immediate guard", Call::ImmediateGuard, Block::Sound, true, BEGUN),
    form("immediate guard, stale", Call::ImmediateGuard, Block::Sound, false, BEGUN_ANEW),
    form("watching by hand, trusted", Call::Watching, Block::Sound, true, WATCHED_ONE),
    form("watching by hand, untrusted", Call::Watching, Block::Sound, false, WATCHED_TWO),
    form("watching by hand, conflict", Call::Watching, Block::Conflicting, true, WATCHED_ONE),
    form("watch().run, trusted", Call::WatchRun, Block::Sound, true, WATCHED_ONE),
    form("watch().run, untrusted", Call::WatchRun, Block::Sound, false, WATCHED_TWO),
    form("run, trusted", Call::Run, Block::Sound, true, ONE),
    form("run, trusted, refused", Call::Run, Block::Refused, true, ONE),
    form("run, untrusted", Call::Run, Block::Sound, false, TWO),
    form("watching by hand, immediate", Call::ImmediateWatching, Block::Sound, true, WATCHED_TWO),
    form("run, immediate", Call::ImmediateRun, Block::Sound, true, TWO),
    form("discarded behind MULTI", Call::Discard, Block::GivenUp, true, BEGUN_DISCARDED),
    form("abandoned while watching", Call::Abandon, Block::GivenUp, true, WATCHED_ABANDONED),
    form("chunked guard", Call::ChunkedGuard, Block::Sound, true, CHUNKED),
    form("chunked run", Call::ChunkedRun, Block::Sound, true, CHUNKED),
];

/// How a connection is cut.
pub(crate) const KINDS: &[Fault] = &[
    Fault::Cut,
    Fault::Reset,
    Fault::BlackHole,
    Fault::HoldReplies,
    Fault::HoldRequests,
    Fault::CutClientSide,
    Fault::CutServerSide,
];

/// A place in a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// Nothing is under way; the flight is about to be written.
    Gap,
    BeforeCommand(usize),
    InsideCommand(usize, u64),
    /// Its last byte was passed on, and no reply.
    Sent,
    BeforeReply(usize),
    InsideReply(usize, u64),
    /// The last flight's last reply was passed on: the connection dies behind the transaction.
    Over,
}

/// A cell of the matrix but for the kind of cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) flight: usize,
    pub(crate) at: At,
}

/// What the call must return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reported {
    Committed,
    Conflict,
    /// The second command was refused.
    Rejected,
    NotSent,
    /// The scope was given up, and its connection goes on.
    GivenUp,
    /// The scope was given up; its connection could not be cleaned.
    Unclean,
    /// Because of a silence, or else because the connection ended.
    InDoubt {
        silence: bool,
    },
}

/// When the server applies the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    Never,
    Once,
    /// Once, but not before the held bytes are let go.
    OnceLate,
}

/// Length of the reply to EXEC, or of its first bytes, which stand for all the others.
fn reply_length(form: &Form, command: &str) -> u64 {
    match (command, form.block) {
        ("EXEC", Block::Conflicting) => "*-1\r\n".len() as u64,
        ("EXEC", Block::Refused) => "-EXECABORT ".len() as u64,
        ("EXEC", _) if form.is_chunked() => "*3\r\n:1\r\n:1\r\n:1\r\n".len() as u64,
        ("EXEC", _) => "*2\r\n:1\r\n:1\r\n".len() as u64,
        ("INCRBY" | "RPUSH", _)
        | ("HINCRBY", Block::Sound | Block::Conflicting | Block::GivenUp) => {
            "+QUEUED\r\n".len() as u64
        }
        ("HINCRBY", Block::Refused) => "-ERR wrong number".len() as u64,
        ("GET", _) => "$1\r\n7\r\n".len() as u64,
        _ => "+OK\r\n".len() as u64,
    }
}

impl Form {
    /// Whether this side sends the form's flights: a block in chunks is one of threads.
    pub(crate) fn is_written(&self) -> bool {
        side::SENDS_CHUNKS || self.call != Call::ChunkedRun
    }

    /// Every boundary of the form. Not among them, because they are one with another:
    /// after a command, where the next one begins; after a reply, where the next one begins; and
    /// after a flight's last reply, which is the gap before the next.
    fn points(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for (nth, flight) in self.flights.iter().enumerate() {
            let mut add = |at| points.push(Point { flight: nth, at });
            add(At::Gap);
            for (command, name) in flight.commands.iter().enumerate() {
                add(At::BeforeCommand(command));
                // The shortest command is EXEC, of 14 bytes.
                [1, 9, 13].into_iter().for_each(|byte| add(At::InsideCommand(command, byte)));
                add(At::BeforeReply(command));
                let length = reply_length(self, name);
                // EXEC's reply is cut at every byte, the others in the first and the last one.
                let every = |byte: &u64| *name == "EXEC" || [1, length - 1].contains(byte);
                (1..length).filter(every).for_each(|byte| add(At::InsideReply(command, byte)));
            }
            add(At::Sent);
        }
        points.push(Point { flight: self.flights.len() - 1, at: At::Over });
        points
    }

    /// Every boundary under every kind of cut that means something there.
    pub(crate) fn cells(&self, kind: Fault) -> Vec<Point> {
        let possible = |point: &Point| match (point.at, kind) {
            // Behind the last request of a flight there is none to be held: it is the next gap.
            (At::Sent | At::BeforeReply(_) | At::InsideReply(..), Fault::HoldRequests) => false,
            // Within a call either the end of the connection or the next write comes first. Both
            // orders have a cell: the write first is `BeforeCommand(0)`, the end first a gap
            // of the user's. If the outcome is the same the cell stays.
            (At::Gap, kind) if is_known(kind) => {
                self.flights[point.flight].users_gap || self.lost(point) != Lost::InDoubt
            }
            _ => true,
        };
        self.points().into_iter().filter(possible).collect()
    }

    fn lost(&self, point: &Point) -> Lost {
        self.flights[point.flight].lost
    }

    /// Whether its last flight can go to no other connection: keys are watched on this one, or
    /// commands were sent ahead.
    fn is_bound(&self) -> bool {
        self.is_chunked()
            || matches!(self.call, Call::Watching | Call::WatchRun | Call::ImmediateWatching)
    }

    pub(crate) fn is_chunked(&self) -> bool {
        matches!(self.call, Call::ChunkedGuard | Call::ChunkedRun)
    }

    pub(crate) fn has_users_gap(&self, flight: usize) -> bool {
        self.flights[flight].users_gap
    }

    /// Whether the test has to bring the fault about itself, in a gap of the user's.
    pub(crate) fn is_users_gap(&self, point: &Point) -> bool {
        point.at == At::Gap && self.flights[point.flight].users_gap
    }

    /// The trigger of the proxy, for every point that is not in a gap of the caller's.
    pub(crate) fn trigger(&self, point: &Point) -> Trigger {
        let commands = self.flights[point.flight].commands;
        let last = |flight: &Flight| *flight.commands.last().unwrap();
        match point.at {
            At::Gap => Trigger::AfterReplyTo(last(&self.flights[point.flight - 1])),
            At::BeforeCommand(nth) => Trigger::BeforeCommandNamed(commands[nth]),
            At::InsideCommand(nth, byte) => Trigger::InsideCommandNamed(commands[nth], byte),
            At::Sent => Trigger::AfterCommandNamed(last(&self.flights[point.flight])),
            At::BeforeReply(nth) => Trigger::BeforeReplyTo(commands[nth]),
            At::InsideReply(nth, byte) => Trigger::InsideReplyTo(commands[nth], byte),
            At::Over => Trigger::AfterReplyTo(last(&self.flights[point.flight])),
        }
    }

    /// The one outcome of a cell.
    pub(crate) fn expected(&self, point: &Point, kind: Fault) -> (Reported, Applied) {
        let uncut = match self.block {
            Block::Sound => (Reported::Committed, Applied::Once),
            Block::Refused => (Reported::Rejected, Applied::Never),
            Block::Conflicting => (Reported::Conflict, Applied::Never),
            Block::GivenUp => (Reported::GivenUp, Applied::Never),
        };
        let not_sent = if self.repeats { uncut } else { (Reported::NotSent, Applied::Never) };
        match (self.lost(point), point.at) {
            (_, At::Over) | (Lost::Replaced, _) => uncut,
            (Lost::NotSent, _) => not_sent,
            (Lost::Unclean, _) => (Reported::Unclean, Applied::Never),
            // It is known before the write: another connection takes its place, unless it holds
            // a part of the scope.
            (Lost::InDoubt, At::Gap) if is_known(kind) && self.is_bound() => not_sent,
            (Lost::InDoubt, At::Gap) if is_known(kind) => uncut,
            (Lost::InDoubt, at) => {
                let silence = !is_known(kind);
                let applied = match self.block {
                    Block::Sound => exec_arrives(at, kind),
                    _ => Applied::Never,
                };
                (Reported::InDoubt { silence }, applied)
            }
        }
    }
}

/// Whether the client's kernel receives the connection's end.
pub(crate) fn is_known(kind: Fault) -> bool {
    matches!(kind, Fault::Cut | Fault::Reset | Fault::CutClientSide)
}

/// Whether, and when, EXEC's last byte reaches the server when EXEC's flight is cut.
fn exec_arrives(at: At, kind: Fault) -> Applied {
    match (at, kind) {
        (At::Sent | At::BeforeReply(_) | At::InsideReply(..) | At::Over, _) => Applied::Once,
        (_, Fault::HoldReplies) => Applied::Once,
        (_, Fault::BlackHole | Fault::HoldRequests) => Applied::OnceLate,
        _ => Applied::Never,
    }
}
