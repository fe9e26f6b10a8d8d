//! One proxied connection: two sockets, a pump thread per direction, and the state the faults set.
//!
//! Do not write while the state is locked, and let `close` end every wait.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::resp::{Direction, Head, Piece, Splitter};
use super::script::{Armed, Fault, Moment, Script};
use super::shared::Shared;
use super::state::{Side, State};

/// Time after which a blocked write checks whether its connection was closed.
const WRITE_SLICE: Duration = Duration::from_millis(20);
const CHUNK: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Connection {
    number: u64,
    sockets: [TcpStream; 2],
    state: Mutex<State>,
    changed: Condvar,
    shared: Arc<Shared>,
}

impl Connection {
    pub(super) fn new(
        number: u64,
        client: TcpStream,
        server: TcpStream,
        script: Script,
        shared: Arc<Shared>,
    ) -> std::io::Result<Self> {
        for socket in [&client, &server] {
            socket.set_nodelay(true)?;
            socket.set_write_timeout(Some(WRITE_SLICE))?;
        }
        let state = Mutex::new(State::default());
        let sockets = [client, server];
        let connection = Self { number, sockets, state, changed: Condvar::new(), shared };
        connection.arm(script);
        Ok(connection)
    }

    /// Replaces the script; counting starts again.
    pub(super) fn arm(&self, script: Script) {
        let mut state = self.state();
        state.armed = Armed::new(script);
        for fault in state.armed.due_at_once() {
            self.apply(&mut state, fault, None);
        }
    }

    /// Lets go of what was held; what a fault threw away or cut stays so.
    pub(super) fn release(&self) {
        self.state().held = [false; 2];
        self.changed.notify_all();
    }

    pub(super) fn hold(&self) {
        self.state().held = [true; 2];
    }

    pub(super) fn is_open(&self) -> bool {
        !self.state().closed[Side::Client as usize]
    }

    pub(super) fn close(&self, sides: &[Side]) {
        self.close_locked(&mut self.state(), sides);
    }

    /// The RST leaves when the last handle to this connection is dropped, which both pumps now do.
    pub(super) fn reset(&self) {
        self.reset_locked(&mut self.state());
    }

    pub(super) fn send_to_client(&self, bytes: &[u8]) {
        // A client that is gone hears nothing.
        let _ = (&self.sockets[Side::Client as usize]).write_all(bytes);
    }

    /// Moves one direction's bytes until its source ends.
    pub(super) fn pump(&self, direction: Direction) {
        let [client, server] = &self.sockets;
        let mut source = match direction {
            Direction::Requests => client,
            Direction::Replies => server,
        };
        let mut splitter = Splitter::new(direction);
        // Not on the heap: of the soaks that count memory some open hundreds of connections at once.
        let mut chunk = [0; CHUNK];
        let mut out = Vec::new();
        let ended_with = loop {
            match source.read(&mut chunk) {
                Ok(0) => break None,
                Ok(length) => {
                    self.count_turn(direction);
                    self.wait_out_latency(direction);
                    for piece in splitter.feed(&chunk[..length]) {
                        self.deliver(direction, piece, &mut out);
                    }
                    self.flush(direction, &mut out, false);
                    if direction == Direction::Replies && !splitter.is_inside() {
                        self.reply_for_the_server(&mut out);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Some(error.kind()),
            }
        };
        out.extend(splitter.rest());
        // Also when there is nothing left to write: an end waits behind a hold like any byte.
        self.flush(direction, &mut out, false);
        self.pass_on_the_end(direction, ended_with);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Takes a piece apart at the points where a rule is due.
    fn deliver(&self, direction: Direction, piece: Piece, out: &mut Vec<u8>) {
        if let Some(head) = piece.head {
            self.begin(direction, head, out);
        }
        let mut bytes = &piece.bytes[..];
        while !bytes.is_empty() {
            let mut state = self.state();
            if state.any_closed() {
                return out.clear();
            }
            let length =
                if state.one_byte { 1 } else { state.armed.distance(direction, bytes.len()) };
            let (next, rest) = bytes.split_at(length);
            if !state.drops(direction) {
                out.extend_from_slice(next);
            }
            bytes = rest;
            state.armed.advance(direction, length);
            let last = piece.ends && bytes.is_empty();
            let moment = if last { Moment::End } else { Moment::Within };
            let due = state.armed.due(direction, moment);
            let one_byte = state.one_byte;
            drop(state);
            self.fire(direction, moment, &due, out);
            if one_byte {
                self.flush(direction, out, false);
            }
            if last {
                let mut state = self.state();
                state.armed.end(direction);
                match direction {
                    Direction::Requests => state.refusing = false,
                    Direction::Replies => {
                        state.swallowing = false;
                        extend(out, &state.own_answers());
                    }
                }
            }
        }
    }

    fn begin(&self, direction: Direction, head: Head, out: &mut Vec<u8>) {
        let mut state = self.state();
        while state.frozen[direction as usize] && !state.any_closed() {
            state = self.changed.wait(state).unwrap();
        }
        if state.any_closed() {
            return;
        }
        let name = match head {
            Head::Push => return,
            Head::Command(name) => name,
            Head::Reply => {
                state.replying = true;
                extend(out, &state.own_answers());
                state.reply_begins()
            }
        };
        state.armed.begin(direction, &name);
        let due = state.armed.due(direction, Moment::Begin);
        drop(state);
        self.fire(direction, Moment::Begin, &due, out);
        let mut state = self.state();
        if direction == Direction::Requests && !state.drops(direction) {
            self.shared.command_goes(self.number, &name);
            state.command_begins(name);
        }
    }

    /// Writes everything before the trigger, then applies the faults, with the other way frozen.
    fn fire(&self, direction: Direction, moment: Moment, due: &[Fault], out: &mut Vec<u8>) {
        if due.is_empty() {
            return;
        }
        self.flush(direction, out, true);
        let mut state = self.state();
        for &fault in due {
            self.apply(&mut state, fault, Some((direction, moment)));
            if let Fault::Answer(answer) = fault {
                out.extend_from_slice(answer.as_bytes());
            }
        }
        // No reply is due or under way and the other pump stands still: this is the only writer.
        let idle = direction == Direction::Requests && !state.replying;
        let own = if idle { state.own_answers().concat() } else { String::new() };
        drop(state);
        self.write(Direction::Replies, own.as_bytes());
        self.state().frozen[opposite(direction) as usize] = false;
        self.changed.notify_all();
    }

    /// The last reply is written: sends the proxy's own replies that wait behind it.
    fn reply_for_the_server(&self, out: &mut Vec<u8>) {
        loop {
            let mut state = self.state();
            extend(out, &state.own_answers());
            if out.is_empty() {
                state.replying = false;
                return;
            }
            drop(state);
            self.flush(Direction::Replies, out, false);
        }
    }

    fn apply(&self, state: &mut State, fault: Fault, at: Option<(Direction, Moment)>) {
        self.shared.fault_fires();
        match fault {
            Fault::Cut => self.close_locked(state, &[Side::Client, Side::Server]),
            Fault::CutClientSide => self.close_locked(state, &[Side::Client]),
            Fault::CutServerSide => self.close_locked(state, &[Side::Server]),
            Fault::Reset => self.reset_locked(state),
            Fault::HoldReplies => state.held[Direction::Replies as usize] = true,
            Fault::HoldRequests => state.held[Direction::Requests as usize] = true,
            Fault::BlackHole => state.held = [true; 2],
            Fault::SwallowReply => state.swallow(at),
            Fault::Delay(pause) => state.pause(pause, at.map(|(direction, _)| direction)),
            Fault::OneByteAtATime => state.one_byte = true,
            Fault::DropRequestTail => state.drop_requests = true,
            Fault::Answer(_) => state.swallow(at),
            Fault::Refuse(answer) => state.refuse(answer),
        }
    }

    fn close_locked(&self, state: &mut State, sides: &[Side]) {
        for &side in sides {
            state.closed[side as usize] = true;
            // Both ways: the FIN leaves, and a pump that reads there wakes up. An error here means
            // that the peer was faster.
            let _ = self.sockets[side as usize].shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    fn reset_locked(&self, state: &mut State) {
        for socket in &self.sockets {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            // Wakes a reader without sending a FIN.
            let _ = socket.shutdown(Shutdown::Read);
        }
        state.closed = [true; 2];
        self.changed.notify_all();
    }

    /// Writes `out` once the direction is free to go. With `freeze` the other direction stands
    /// still from before the write until [`fire`](Self::fire) is done.
    fn flush(&self, direction: Direction, out: &mut Vec<u8>, freeze: bool) {
        let mut state = self.state();
        let way = direction as usize;
        loop {
            let now = Instant::now();
            if state.any_closed() {
                return out.clear();
            } else if state.held[way] || state.frozen[way] {
                state = self.changed.wait(state).unwrap();
            } else if let Some(until) = state.paused_until[way].filter(|&until| until > now) {
                state = self.changed.wait_timeout(state, until - now).unwrap().0;
            } else {
                break;
            }
        }
        state.frozen[opposite(direction) as usize] |= freeze;
        drop(state);
        // Counted first: a client that has read a reply finds its request counted.
        self.shared.bytes_go(direction, out.len());
        self.write(direction, out);
        out.clear();
    }

    fn write(&self, direction: Direction, mut bytes: &[u8]) {
        let [client, server] = &self.sockets;
        let mut target = match direction {
            Direction::Requests => server,
            Direction::Replies => client,
        };
        while !bytes.is_empty() {
            match target.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if !self.state().any_closed() => {}
                    // The target is gone; its own pump is about to learn that and say so.
                    _ => return,
                },
            }
        }
    }

    fn count_turn(&self, direction: Direction) {
        let asks = direction == Direction::Requests;
        let asked_before = std::mem::replace(&mut self.state().asking, asks);
        if asks && !asked_before {
            self.shared.turn_begins();
        }
    }

    fn wait_out_latency(&self, direction: Direction) {
        let until = Instant::now() + self.shared.latency(direction);
        let mut state = self.state();
        while !state.any_closed() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// The source ended by itself: ends the other side as the network would.
    fn pass_on_the_end(&self, direction: Direction, ended_with: Option<ErrorKind>) {
        let mut state = self.state();
        match direction {
            Direction::Requests => {
                if !state.any_closed() {
                    let _ = self.sockets[Side::Server as usize].shutdown(Shutdown::Write);
                }
                state.closed[Side::Client as usize] = true;
            }
            Direction::Replies if state.any_closed() => {
                state.closed[Side::Server as usize] = true;
            }
            Direction::Replies if ended_with == Some(ErrorKind::ConnectionReset) => {
                self.reset_locked(&mut state);
            }
            Direction::Replies => self.close_locked(&mut state, &[Side::Client, Side::Server]),
        }
        self.changed.notify_all();
    }
}

fn extend(out: &mut Vec<u8>, answers: &[&str]) {
    answers.iter().for_each(|answer| out.extend_from_slice(answer.as_bytes()));
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Requests => Direction::Replies,
        Direction::Replies => Direction::Requests,
    }
}
