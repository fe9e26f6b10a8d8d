//! A hot key on one plain socket: its holder writes WATCH and GET of the next in line behind its own EXEC, and
//! hands the socket on with those replies due. One round trip a commit, and a wake-up of the next worker: the limit
//! of a fair line on a key whose blocks are not merged.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use tokio::runtime::Runtime;

use super::raw::{self, Socket};
use super::threads;
use crate::measure::Crew;
use crate::scenario::{Row, Scenario};
use crate::server::Server;
use crate::work;

struct Line {
    /// `None`: a worker has it.
    socket: Option<Socket>,
    waiting: VecDeque<Arc<Waiter>>,
}

struct Waiter {
    turn: Mutex<Option<Turn>>,
    ready: Condvar,
}

struct Turn {
    socket: Socket,
    /// WATCH and GET were written.
    asked: bool,
}

/// A worker, with the bytes that it sends again and again.
struct Worker {
    me: Arc<Waiter>,
    ask: Vec<u8>,
    first: String,
    key: String,
    bytes: Vec<u8>,
}

pub fn open(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    if row.scenario != Scenario::Watch(1) {
        return None;
    }
    let socket = Some(Socket::open(server, row.via));
    let line = Arc::new(Mutex::new(Line { socket, waiting: VecDeque::new() }));
    threads(row, |job| {
        let key = job.any().to_owned();
        let me = Arc::new(Waiter { turn: Mutex::new(None), ready: Condvar::new() });
        let ask = raw::ask(&key);
        let mut worker = Worker { me, ask, first: job.first.clone(), key, bytes: Vec::new() };
        let line = Arc::clone(&line);
        Box::new(move |clock| {
            work!(clock, {
                worker.commit(&line);
                1
            })
        })
    })
}

impl Worker {
    fn commit(&mut self, line: &Mutex<Line>) {
        let Turn { mut socket, asked } = take(line, &self.me);
        if !asked {
            socket.send(&self.ask);
        }
        let value = raw::integer(socket.skip(2));
        self.bytes.clear();
        self.bytes.extend(raw::change(&self.key, value + 1, &self.first));
        let mut next = line.lock().unwrap().waiting.pop_front();
        if next.is_some() {
            self.bytes.extend_from_slice(&self.ask); // all ask for the same key
        }
        socket.send(&self.bytes);
        assert!(!socket.skip(4).starts_with(b"*-1"), "nothing else writes the key");
        let asked = next.is_some();
        if next.is_none() {
            let mut state = line.lock().unwrap();
            next = state.waiting.pop_front();
            if next.is_none() {
                state.socket = Some(socket);
                return;
            }
        }
        if let Some(next) = next {
            *next.turn.lock().unwrap() = Some(Turn { socket, asked });
            next.ready.notify_one();
        }
    }
}

fn take(line: &Mutex<Line>, me: &Arc<Waiter>) -> Turn {
    {
        let mut state = line.lock().unwrap();
        if let Some(socket) = state.socket.take() {
            return Turn { socket, asked: false };
        }
        state.waiting.push_back(Arc::clone(me));
    }
    let mut turn = me.turn.lock().unwrap();
    loop {
        match turn.take() {
            Some(turn) => return turn,
            None => turn = me.ready.wait(turn).unwrap(),
        }
    }
}
