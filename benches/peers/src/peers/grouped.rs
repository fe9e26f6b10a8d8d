//! Group commit on plain sockets: a worker that has one of the 8 sockets writes what waits, at most 16
//! transactions, each its own MULTI…EXEC, and hands the socket to the next in line. With one
//! transaction in each write there is no group: this is the limit of any fair hand-over.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use tokio::runtime::Runtime;

use super::raw::{self, Bytes, Socket};
use super::threads;
use crate::measure::Crew;
use crate::scenario::{POOL, Row, Scenario};
use crate::server::Server;
use crate::work;

const GROUP: usize = 16;
const ALONE: usize = 1;

/// A waiting worker.
struct Waiter {
    bytes: Bytes,
    turn: Mutex<Turn>,
    ready: Condvar,
}

enum Turn {
    Wait,
    /// Its transaction was written and answered.
    Done,
    /// The socket is its own now, and it writes these with its own.
    Lead(Socket, Vec<Arc<Waiter>>),
    /// The socket is its own now, and its transaction was written.
    Sent(Socket),
}

struct Line {
    /// So many transactions go in one write.
    group: usize,
    /// Who hands a socket on writes the transaction of the next in line first.
    ahead: bool,
    sockets: Vec<Socket>,
    /// Empty whenever a socket is free.
    waiting: VecDeque<Arc<Waiter>>,
}

pub fn open(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    sharing(server, row, GROUP, false)
}

pub fn handed_on(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    // With no more workers than sockets, nothing is handed on.
    (row.workers > POOL).then(|| sharing(server, row, ALONE, false))?
}

pub fn sent_ahead(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    (row.workers > POOL).then(|| sharing(server, row, ALONE, true))?
}

fn sharing(server: &Server, row: &Row, group: usize, ahead: bool) -> Option<Crew> {
    if !matches!(row.scenario, Scenario::Two | Scenario::Ten | Scenario::Get) {
        return None;
    }
    let sockets = (0..POOL).map(|_| Socket::open(server, row.via)).collect();
    let line = Arc::new(Mutex::new(Line { group, ahead, sockets, waiting: VecDeque::new() }));
    threads(row, |job| {
        let bytes = raw::encoded(&job).expect("a scenario without reads");
        let me = Arc::new(Waiter { bytes, turn: Mutex::new(Turn::Wait), ready: Condvar::new() });
        let line = Arc::clone(&line);
        Box::new(move |clock| {
            let mut joined = Vec::new();
            work!(clock, {
                commit(&line, &me, &mut joined);
                1
            })
        })
    })
}

fn commit(line: &Mutex<Line>, me: &Arc<Waiter>, joined: &mut Vec<u8>) {
    let Some((mut socket, group, sent)) = take(line, me).or_else(|| wait(me)) else {
        return; // another worker wrote it
    };
    if group.is_empty() {
        if !sent {
            socket.send(&me.bytes.bytes);
        }
        socket.skip(me.bytes.replies);
    } else {
        joined.clear();
        joined.extend_from_slice(&me.bytes.bytes);
        group.iter().for_each(|member| joined.extend_from_slice(&member.bytes.bytes));
        socket.send(joined);
        socket.skip(me.bytes.replies);
        for member in &group {
            socket.skip(member.bytes.replies);
        }
    }
    hand_on(line, socket);
    for member in group {
        notify(&member, Turn::Done);
    }
}

/// A free socket, or a place in the line.
fn take(line: &Mutex<Line>, me: &Arc<Waiter>) -> Option<(Socket, Vec<Arc<Waiter>>, bool)> {
    let mut state = line.lock().unwrap();
    let socket = state.sockets.pop();
    if socket.is_none() {
        state.waiting.push_back(Arc::clone(me));
    }
    Some((socket?, Vec::new(), false))
}

fn wait(me: &Waiter) -> Option<(Socket, Vec<Arc<Waiter>>, bool)> {
    let mut turn = me.turn.lock().unwrap();
    loop {
        match std::mem::replace(&mut *turn, Turn::Wait) {
            Turn::Wait => turn = me.ready.wait(turn).unwrap(),
            Turn::Done => return None,
            Turn::Lead(socket, group) => return Some((socket, group, false)),
            Turn::Sent(socket) => return Some((socket, Vec::new(), true)),
        }
    }
}

/// The socket goes to the first in line, with those behind it as its group.
fn hand_on(line: &Mutex<Line>, mut socket: Socket) {
    let mut state = line.lock().unwrap();
    let Some(leader) = state.waiting.pop_front() else {
        state.sockets.push(socket);
        return;
    };
    let members = state.waiting.len().min(state.group - 1);
    let (group, ahead) = (state.waiting.drain(..members).collect(), state.ahead);
    drop(state);
    if ahead {
        socket.send(&leader.bytes.bytes);
        return notify(&leader, Turn::Sent(socket));
    }
    notify(&leader, Turn::Lead(socket, group));
}

fn notify(waiter: &Waiter, turn: Turn) {
    *waiter.turn.lock().unwrap() = turn;
    waiter.ready.notify_one();
}
