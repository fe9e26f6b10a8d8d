//! Every cut point of a single command on the pooled handle: a read is sent again, and a write only if it
//! cannot have been sent.
//!
//! Guarantee: the-pooled-handle

use crate::fixture::{SLACK, SOON, add_on_each_pooled};
use crate::side::{BuildSide as _, LANES, open_pooled_lanes};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::side::SessionManager;
use redis::pipe;
use rediscope::Error;
use rediscope::error::Applied;
use rediscope::prelude::*;

use super::model::KINDS;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, try_for, unique};

const RESPONSE: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Read,
    Write,
    /// Two writes in one pipeline; the cut is about the first.
    Pipeline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The connection dies while it lies idle.
    Idle,
    /// In the PING that goes ahead of a write on a connection that is not trusted.
    Ping,
    BeforeCommand,
    InsideCommand,
    Sent,
    BeforeReply,
    InsideReply,
}

/// What the call must return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reported {
    Done,
    /// Lost, and certainly without effect.
    LostUnapplied,
    LostInDoubt,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    call: Call,
    trusted: bool,
    at: At,
    kind: Fault,
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for call in [Call::Read, Call::Write, Call::Pipeline] {
        for trusted in [true, false] {
            let ats = [
                At::Idle,
                At::Ping,
                At::BeforeCommand,
                At::InsideCommand,
                At::Sent,
                At::BeforeReply,
                At::InsideReply,
            ];
            for at in ats {
                for &kind in KINDS {
                    let cell = Cell { call, trusted, at, kind };
                    cells.extend(cell.exists().then_some(cell));
                }
            }
        }
    }
    cells
}

impl Cell {
    /// Not enumerated: a PING where none is sent, and held requests behind the last of them.
    fn exists(&self) -> bool {
        let pings = !self.trusted && self.call != Call::Read;
        let behind = matches!(self.at, At::Ping | At::Sent | At::BeforeReply | At::InsideReply);
        (self.at != At::Ping || pings) && !(behind && self.kind == Fault::HoldRequests)
    }

    fn is_silent(&self) -> bool {
        !matches!(self.kind, Fault::Cut | Fault::Reset | Fault::CutClientSide)
    }

    /// Whether the command reaches the server, if not for good then when it is let go.
    fn arrives(&self) -> bool {
        match self.at {
            At::Sent | At::BeforeReply | At::InsideReply => true,
            _ => matches!(self.kind, Fault::HoldReplies | Fault::HoldRequests | Fault::BlackHole),
        }
    }

    /// What the call returns, and how often the server comes to execute the command.
    fn expected(&self) -> (Reported, u32) {
        let pings = !self.trusted && self.call != Call::Read;
        // The client's kernel knows of it before the command is written.
        let known = self.at == At::Idle && !self.is_silent();
        match self.call {
            // PING meets the fault, or it had done so while the connection was idle.
            _ if pings && matches!(self.at, At::Idle | At::Ping) => (Reported::Done, 1),
            Call::Write | Call::Pipeline if known => (Reported::Done, 1),
            // A server that replied a moment ago is slow: the read is not sent twice.
            Call::Read if self.trusted && self.is_silent() => (Reported::LostUnapplied, 0),
            Call::Read => (Reported::Done, 0),
            Call::Write | Call::Pipeline => (Reported::LostInDoubt, self.arrives().into()),
        }
    }

    /// What failed, if a machine that is too busy may be why. Of anything else it panics.
    fn play(&self, server: &Server, response: Duration) -> Result<(), String> {
        let proxy = Proxy::to(server);
        let trust = Duration::from_secs(if self.trusted { 3600 } else { 0 });
        let builder = SessionManager::builder(proxy.url())
            .max_size(1)
            .trust_window(trust)
            .connect_timeout(Duration::from_secs(2))
            .response_timeout(response)
            .checkout_timeout(4 * SOON);
        let sessions = builder.build_side().unwrap();
        let mut db = sessions.pooled();
        let (key, warm) = (unique("cell"), unique("warm"));
        add_on_each_pooled(&mut db, &warm);
        open_pooled_lanes(&sessions, &warm);
        let fired = proxy.fired();
        self.arm(&proxy);
        let begun = Instant::now();
        let result = match self.call {
            Call::Read => db.get::<_, Option<i64>>(&key).map(drop),
            Call::Write => db.incr::<_, _, ()>(&key, 1),
            Call::Pipeline => pipe().incr(&key, 1).append(&warm, "0").exec(&mut db),
        };
        let took = begun.elapsed();
        let reported = match result.map_err(Error::from) {
            Ok(()) => Reported::Done,
            Err(Error::Lost { applied: Applied::No, .. }) => Reported::LostUnapplied,
            Err(Error::Lost { applied: Applied::Unknown, .. }) => Reported::LostInDoubt,
            Err(error) => return Err(format!("{error}")),
        };
        if proxy.fired() == fired {
            return Err(format!("the fault did not fire; returned {reported:?}"));
        }
        let (expected, executions) = self.expected();
        if reported != expected {
            return Err(format!("returned {reported:?}, not {expected:?}"));
        }
        if took > response + SLACK {
            return Err(format!("took {took:?}"));
        }
        let status = sessions.status().pooled;
        if status.in_use != 0 || status.size > 1 {
            return Err(format!("the pool was not whole when the call returned: {status}"));
        }
        proxy.disarm();
        proxy.release();
        let word = unique("word");
        let echo: String =
            redis::cmd("ECHO").arg(&word).query(&mut db).map_err(|e| e.to_string())?;
        assert_eq!(echo, word, "{self:?}: the next borrower was given another reply");
        for _ in (0..).take(LANES) {
            let text: String = db.get(&warm).map_err(|e| e.to_string())?;
            let right: String = server.ask(&["GET", &warm]);
            assert_eq!(text, right, "{self:?}: the next borrower of a lane");
        }
        let count = || server.ask::<Option<u32>>(&["GET", &key]).unwrap_or(0);
        try_for(SOON, || (count() >= executions).then_some(()));
        // When the proxy is gone nothing is on its way any more.
        drop((db, sessions, proxy));
        assert_eq!(count(), executions, "{self:?}: executed");
        Ok(())
    }

    fn arm(&self, proxy: &Proxy) {
        let command = if self.call == Call::Read { "GET" } else { "INCRBY" };
        let trigger = match self.at {
            At::Idle => {
                proxy.arm((Trigger::Now, self.kind));
                proxy.disarm();
                if self.kind == Fault::Reset && cfg!(target_os = "linux") {
                    let known = || !super::cuts::has_client(proxy.port());
                    eventually(SOON, "the client's kernel knows of the reset", known);
                }
                return;
            }
            At::Ping => Trigger::BeforeReplyTo("PING"),
            At::BeforeCommand => Trigger::BeforeCommandNamed(command),
            At::InsideCommand => Trigger::InsideCommandNamed(command, 9),
            At::Sent => Trigger::AfterCommandNamed(command),
            At::BeforeReply => Trigger::BeforeReplyTo(command),
            At::InsideReply => Trigger::InsideReplyTo(command, 1),
        };
        proxy.arm(Script::from((trigger, self.kind)).once());
    }
}

#[test]
fn a_read_is_sent_again_and_a_write_only_if_it_was_not_sent() {
    let server = Server::start();
    let cells = cells();
    let (count, queue) = (cells.len(), Mutex::new(cells));
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let Some(cell) = queue.lock().unwrap().pop() else { break };
                    if let Err(why) = cell.play(&server, RESPONSE) {
                        println!("to be played again: {cell:?}: {why}");
                        failures.lock().unwrap().push(cell);
                    }
                }
            });
        }
    });
    println!("{count} cells");
    let failures = failures.into_inner().unwrap();
    assert!(failures.len() <= count / 20, "{} of {count}", failures.len());
    // Alone, and with four times the time.
    for cell in failures {
        cell.play(&server, 4 * RESPONSE).unwrap_or_else(|why| panic!("{cell:?}: {why}"));
    }
}
