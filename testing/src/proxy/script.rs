//! Scripts: which fault happens at which point of a connection.
//!
//! [`Armed`] counts and returns what is due, without sockets, threads or a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::resp::Direction;

/// A point of a connection, for [`Faults::arm`](crate::Faults::arm). Everything is counted from 1 and from the moment the script was armed;
/// names are the first argument of a command, in any case. A rule fires once per connection.
///
/// The `Inside…` points fire at the value's end at the latest, so a loop over "after n bytes" may
/// run past the value's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trigger {
    /// When armed, or when the connection is made.
    Now,
    /// After this many bytes of the client's were forwarded.
    ClientBytes(u64),
    /// Before the first byte of the n-th command.
    BeforeCommand(u64),
    /// After the last byte of the n-th command.
    AfterCommand(u64),
    /// After this many bytes of the n-th command.
    InsideCommand(u64, u64),
    /// Before the next command of that name.
    BeforeCommandNamed(&'static str),
    /// After the next command of that name.
    AfterCommandNamed(&'static str),
    /// After this many bytes of the next command of that name.
    InsideCommandNamed(&'static str, u64),
    /// Before the first byte of the n-th reply.
    BeforeReply(u64),
    /// After the last byte of the n-th reply.
    AfterReply(u64),
    /// After this many bytes of the n-th reply.
    InsideReply(u64, u64),
    /// Before the reply to the next command of that name: the server has executed it for certain.
    BeforeReplyTo(&'static str),
    /// After the reply to the next command of that name.
    AfterReplyTo(&'static str),
    /// After this many bytes of the reply to the next command of that name.
    InsideReplyTo(&'static str, u64),
}

/// What happens at a [`Trigger`]. Bytes before the trigger are always written first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// FIN to both sides.
    Cut,
    /// FIN to the client; the server is left connected and its replies are thrown away.
    CutClientSide,
    /// FIN to the server; the client is left connected, unanswered, its bytes are thrown away.
    CutServerSide,
    /// RST to both sides. As on any network, bytes the receiver's kernel had no room for are lost.
    Reset,
    /// Replies wait (they are not lost) until [`Faults::release`](crate::Faults::release).
    HoldReplies,
    /// Requests wait until `release`: an EXEC that arrives late, even after its client is gone.
    HoldRequests,
    /// Both of the above: nothing passes, not even a FIN, and neither side notices.
    BlackHole,
    /// Throws away the reply to the command the trigger is about, or the reply it is in; behind a
    /// reply and with [`Trigger::Now`] the next one.
    SwallowReply,
    /// The trigger's direction pauses once (both directions with [`Trigger::Now`]).
    Delay(Duration),
    /// From here on every byte, either way, is written alone.
    OneByteAtATime,
    /// The client's further bytes are read and thrown away; replies still pass.
    DropRequestTail,
    /// With [`Trigger::BeforeReplyTo`] or [`Trigger::BeforeReply`]: the server's reply is thrown
    /// away and these bytes are sent in its place.
    Answer(&'static str),
    /// With [`Trigger::BeforeCommandNamed`] or [`Trigger::BeforeCommand`]: the server never gets
    /// the command; these bytes are sent in the place of its reply, in order with the others.
    Refuse(&'static str),
}

/// Rules in the order in which they are looked at.
#[derive(Debug, Clone, Default)]
pub struct Script {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    trigger: Trigger,
    fault: Fault,
    /// Shared by all connections when the rule may fire only once over all of them.
    spent: Option<Arc<AtomicBool>>,
    /// That of the rule before it, if this one fires only after that.
    after: Option<Arc<AtomicBool>>,
}

impl Script {
    /// A script without rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule.
    #[must_use]
    pub fn on(mut self, trigger: Trigger, fault: Fault) -> Self {
        self.rules.push(Rule { trigger, fault, spent: None, after: None });
        self
    }

    /// Each rule fires once over all connections, not once on each: what a client that connects
    /// again and repeats its work would otherwise meet for ever.
    #[must_use]
    pub fn once(mut self) -> Self {
        for rule in &mut self.rules {
            rule.spent = Some(Arc::new(AtomicBool::new(false)));
        }
        self
    }

    /// Like [`once`](Self::once), and no rule fires before the rule in front of it has: what
    /// happens to one copy of a request, and then to the next one on another connection.
    #[must_use]
    pub fn in_turn(self) -> Self {
        let mut script = self.once();
        let mut former = None;
        for rule in &mut script.rules {
            rule.after = std::mem::replace(&mut former, rule.spent.clone());
        }
        script
    }
}

impl From<(Trigger, Fault)> for Script {
    fn from((trigger, fault): (Trigger, Fault)) -> Self {
        Self::new().on(trigger, fault)
    }
}

impl<const N: usize> From<[(Trigger, Fault); N]> for Script {
    fn from(rules: [(Trigger, Fault); N]) -> Self {
        rules.into_iter().fold(Self::new(), |script, (trigger, fault)| script.on(trigger, fault))
    }
}

/// The place of a direction inside a value when [`Armed::due`] is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Begin,
    Within,
    End,
}

/// A script at work on one connection.
#[derive(Debug, Default)]
pub(super) struct Armed {
    rules: Vec<Rule>,
    client_bytes: u64,
    tracks: [Track; 2],
}

/// The values of one direction since arming.
#[derive(Debug, Default)]
struct Track {
    begun: u64,
    /// Name of the current command, or of the command of the current reply.
    name: String,
    /// Bytes of the current value that went by; `None` between values and inside a value that had
    /// begun before the script was armed.
    passed: Option<u64>,
}

impl Armed {
    pub(super) fn new(script: Script) -> Self {
        Self { rules: script.rules, ..Self::default() }
    }

    /// A value begins: a command of this name, or the reply to one.
    pub(super) fn begin(&mut self, direction: Direction, name: &str) {
        let track = &mut self.tracks[direction as usize];
        track.begun += 1;
        name.clone_into(&mut track.name);
        track.passed = Some(0);
    }

    /// How many of the next `len` bytes may pass before some rule has to be looked at.
    pub(super) fn distance(&self, direction: Direction, len: usize) -> usize {
        self.rules
            .iter()
            .filter_map(|rule| {
                let (target, passed) = self.byte_point(rule.trigger, direction)?;
                usize::try_from(target.checked_sub(passed)?).ok().filter(|&left| left > 0)
            })
            .fold(len, usize::min)
    }

    pub(super) fn advance(&mut self, direction: Direction, bytes: usize) {
        if direction == Direction::Requests {
            self.client_bytes += bytes as u64;
        }
        if let Some(passed) = &mut self.tracks[direction as usize].passed {
            *passed += bytes as u64;
        }
    }

    /// The faults due at this very point, each handed out once.
    pub(super) fn due(&mut self, direction: Direction, moment: Moment) -> Vec<Fault> {
        let has_turn =
            |rule: &Rule| rule.after.as_ref().is_none_or(|former| former.load(Ordering::SeqCst));
        let due = |rule: &Rule| has_turn(rule) && self.is_due(rule.trigger, direction, moment);
        let fires: Vec<bool> = self.rules.iter().map(due).collect();
        self.take(&fires)
    }

    /// The faults of [`Trigger::Now`].
    pub(super) fn due_at_once(&mut self) -> Vec<Fault> {
        let fires: Vec<bool> = self.rules.iter().map(|rule| rule.trigger == Trigger::Now).collect();
        self.take(&fires)
    }

    /// To be called after [`due`](Self::due) was called for the value's end.
    pub(super) fn end(&mut self, direction: Direction) {
        self.tracks[direction as usize].passed = None;
    }

    fn take(&mut self, fires: &[bool]) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fires = fires.iter();
        self.rules.retain(|rule| {
            let fire = *fires.next().unwrap();
            let spent = |flag: &Arc<AtomicBool>| flag.swap(true, Ordering::SeqCst);
            if fire && !rule.spent.as_ref().is_some_and(spent) {
                faults.push(rule.fault);
            }
            !fire
        });
        faults
    }

    /// For a trigger that counts bytes of this direction: the bytes wanted and the bytes passed.
    fn byte_point(&self, trigger: Trigger, direction: Direction) -> Option<(u64, u64)> {
        if let Trigger::ClientBytes(wanted) = trigger {
            return (direction == Direction::Requests).then_some((wanted, self.client_bytes));
        }
        let wanted = match trigger {
            Trigger::InsideCommand(_, bytes)
            | Trigger::InsideCommandNamed(_, bytes)
            | Trigger::InsideReply(_, bytes)
            | Trigger::InsideReplyTo(_, bytes) => bytes,
            _ => return None,
        };
        let passed = self.tracks[direction as usize].passed?;
        self.is_about_current(trigger, direction).then_some((wanted, passed))
    }

    fn is_due(&self, trigger: Trigger, direction: Direction, moment: Moment) -> bool {
        match trigger {
            Trigger::Now => false,
            Trigger::BeforeCommand(_)
            | Trigger::BeforeCommandNamed(_)
            | Trigger::BeforeReply(_)
            | Trigger::BeforeReplyTo(_) => {
                moment == Moment::Begin && self.is_about_current(trigger, direction)
            }
            Trigger::AfterCommand(_)
            | Trigger::AfterCommandNamed(_)
            | Trigger::AfterReply(_)
            | Trigger::AfterReplyTo(_) => {
                moment == Moment::End && self.is_about_current(trigger, direction)
            }
            Trigger::ClientBytes(_) => {
                self.byte_point(trigger, direction).is_some_and(|(wanted, passed)| passed >= wanted)
            }
            Trigger::InsideCommand(..)
            | Trigger::InsideCommandNamed(..)
            | Trigger::InsideReply(..)
            | Trigger::InsideReplyTo(..) => self
                .byte_point(trigger, direction)
                .is_some_and(|(wanted, passed)| passed >= wanted || moment == Moment::End),
        }
    }

    /// Whether the current value of this direction is the one the trigger names.
    fn is_about_current(&self, trigger: Trigger, direction: Direction) -> bool {
        let track = &self.tracks[direction as usize];
        let (of, matches) = match trigger {
            Trigger::Now | Trigger::ClientBytes(_) => return false,
            Trigger::BeforeCommand(n) | Trigger::AfterCommand(n) | Trigger::InsideCommand(n, _) => {
                (Direction::Requests, track.begun == n)
            }
            Trigger::BeforeReply(n) | Trigger::AfterReply(n) | Trigger::InsideReply(n, _) => {
                (Direction::Replies, track.begun == n)
            }
            Trigger::BeforeCommandNamed(name)
            | Trigger::AfterCommandNamed(name)
            | Trigger::InsideCommandNamed(name, _) => {
                (Direction::Requests, track.name.eq_ignore_ascii_case(name))
            }
            Trigger::BeforeReplyTo(name)
            | Trigger::AfterReplyTo(name)
            | Trigger::InsideReplyTo(name, _) => {
                (Direction::Replies, track.name.eq_ignore_ascii_case(name))
            }
        };
        of == direction && matches && track.passed.is_some()
    }
}
