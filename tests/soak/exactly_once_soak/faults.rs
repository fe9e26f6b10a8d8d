//! The kinds of cut: where on the wire a transaction is hit, and how.
//!
//! A cut fires once, because what a client sends again must arrive.

use std::time::Duration;

use fastrand::Rng;

use rediscope_testing::proxy::{Fault, Script, Trigger};

macro_rules! cuts {
    ($($name:ident: $text:literal;)+) => {
        /// The place on the wire at which a transaction is hit, and how.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Cut {
            $($name,)+
        }

        impl Cut {
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)+];

            pub(crate) fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

cuts! {
    BeforeMulti: "before MULTI";
    InsideMulti: "inside MULTI";
    AfterMulti: "after MULTI";
    InsideACommand: "inside a command";
    BeforeExec: "before EXEC";
    InsideExec: "inside EXEC";
    AfterExec: "after EXEC";
    InsideTheLastWatch: "inside a WATCH";
    BeforeFirstReply: "before MULTI's reply";
    BeforeExecReply: "before EXEC's reply";
    InsideExecReply: "inside EXEC's reply";
    BeforeWatchReply: "before a WATCH's reply";
    SwallowedExecReply: "EXEC's reply swallowed";
    RequestsHeld: "requests held, let go later";
    ExecHeld: "EXEC held, let go later";
    HalfExecHeld: "EXEC held half-way, let go later";
    BlackHole: "nothing passes, let go later";
    RepliesHeld: "replies held";
    ServerSide: "server side cut, client left";
    ClientSide: "client side cut, server left";
    TailLost: "requests lost from a point on";
    ResetBefore: "RST before EXEC";
    ResetAfter: "RST before a reply";
    OneByte: "one byte at a time, then cut";
    Unnoticed: "connection closed unnoticed";
    KilledBefore: "CLIENT KILL before";
    KilledDuring: "CLIENT KILL during";
}

/// The lengths of `*1\r\n$4\r\nEXEC\r\n` and of MULTI's twin.
const EXEC: u64 = 14;
const MULTI: u64 = 15;

impl Cut {
    pub(crate) fn any(random: &mut Rng) -> Self {
        Self::ALL[random.usize(..Self::ALL.len())]
    }

    /// The ones that a proxy does by script.
    pub(crate) fn any_scripted(random: &mut Rng) -> Self {
        loop {
            let cut = Self::any(random);
            if !matches!(cut, Self::Unnoticed | Self::KilledBefore | Self::KilledDuring) {
                return cut;
            }
        }
    }

    /// Requests wait in the proxy, to arrive when the client has gone.
    pub(crate) fn holds_requests(self) -> bool {
        matches!(self, Self::RequestsHeld | Self::ExecHeld | Self::HalfExecHeld | Self::BlackHole)
    }

    pub(crate) fn holds(self) -> bool {
        self.holds_requests() || self == Self::RepliesHeld
    }

    pub(crate) fn kills(self) -> bool {
        matches!(self, Self::KilledBefore | Self::KilledDuring)
    }

    /// Best aimed at a connection that is in use already: a handshake that hangs only costs time.
    pub(crate) fn wants_an_open_connection(self) -> bool {
        self.holds() || self.kills() || matches!(self, Self::ServerSide | Self::TailLost)
    }

    /// The proxy's script; the number of faults that fire when it is met.
    pub(crate) fn script(self, random: &mut Rng) -> (Script, usize) {
        use Trigger::{
            AfterCommandNamed, BeforeCommandNamed, BeforeReplyTo, InsideCommandNamed,
            InsideReplyTo, Now,
        };
        let one = |trigger, fault| (Script::from((trigger, fault)).once(), 1);
        let word =
            [BeforeCommandNamed("EXEC"), AfterCommandNamed("MULTI"), AfterCommandNamed("SET")]
                [random.usize(..3)];
        let reply = [BeforeReplyTo("MULTI"), BeforeReplyTo("EXEC")][random.usize(..2)];
        match self {
            Self::BeforeMulti => one(BeforeCommandNamed("MULTI"), Fault::Cut),
            Self::InsideMulti => one(InsideCommandNamed("MULTI", random.u64(1..MULTI)), Fault::Cut),
            Self::AfterMulti => one(AfterCommandNamed("MULTI"), Fault::Cut),
            Self::InsideACommand => {
                let name = ["INCRBY", "RPUSH", "SET"][random.usize(..3)];
                one(InsideCommandNamed(name, random.u64(1..80)), Fault::Cut)
            }
            Self::BeforeExec => one(BeforeCommandNamed("EXEC"), Fault::Cut),
            Self::InsideExec => one(InsideCommandNamed("EXEC", random.u64(1..EXEC)), Fault::Cut),
            Self::AfterExec => one(AfterCommandNamed("EXEC"), Fault::Cut),
            Self::InsideTheLastWatch => {
                one(InsideCommandNamed("WATCH", random.u64(1..60)), Fault::Cut)
            }
            Self::BeforeFirstReply => one(BeforeReplyTo("MULTI"), Fault::Cut),
            Self::BeforeExecReply => one(BeforeReplyTo("EXEC"), Fault::Cut),
            Self::InsideExecReply => one(InsideReplyTo("EXEC", random.u64(1..24)), Fault::Cut),
            Self::BeforeWatchReply => one(BeforeReplyTo("WATCH"), Fault::Cut),
            Self::SwallowedExecReply => one(BeforeReplyTo("EXEC"), Fault::SwallowReply),
            Self::RequestsHeld => {
                let at = [BeforeCommandNamed("MULTI"), Now][random.usize(..2)];
                one(at, Fault::HoldRequests)
            }
            Self::ExecHeld => one(BeforeCommandNamed("EXEC"), Fault::HoldRequests),
            Self::HalfExecHeld => {
                one(InsideCommandNamed("EXEC", random.u64(1..EXEC)), Fault::HoldRequests)
            }
            Self::BlackHole => one(word, Fault::BlackHole),
            Self::RepliesHeld => one(reply, Fault::HoldReplies),
            Self::ServerSide => {
                let at = [word, reply][random.usize(..2)];
                one(at, Fault::CutServerSide)
            }
            Self::ClientSide => one(reply, Fault::CutClientSide),
            Self::TailLost => one(word, Fault::DropRequestTail),
            Self::ResetBefore => one(word, Fault::Reset),
            Self::ResetAfter => {
                let at = [reply, BeforeReplyTo("WATCH")][random.usize(..2)];
                one(at, Fault::Reset)
            }
            Self::OneByte => {
                let at = match random.u8(..4) {
                    0 => InsideCommandNamed("RPUSH", random.u64(1..30)),
                    1 => InsideCommandNamed("EXEC", random.u64(1..=EXEC)),
                    2 => InsideReplyTo("EXEC", random.u64(1..24)),
                    _ => BeforeReplyTo("EXEC"),
                };
                let script = Script::new()
                    .on(BeforeCommandNamed("MULTI"), Fault::OneByteAtATime)
                    .on(at, Fault::Cut);
                (script.once(), 2)
            }
            Self::KilledDuring => {
                let at = [word, reply, BeforeReplyTo("WATCH")][random.usize(..3)];
                let pause = Duration::from_micros(random.u64(200..3_000));
                one(at, Fault::Delay(pause))
            }
            Self::Unnoticed | Self::KilledBefore => (Script::new(), 0),
        }
    }
}
