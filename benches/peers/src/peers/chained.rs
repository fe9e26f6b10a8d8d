//! A hot key on one plain socket: its holder writes WATCH and GET of the next in line behind its own EXEC, and
//! hands the socket on with those replies due. One round trip a commit, and a wake-up of the next worker: the limit
//! of a fair line on a key whose blocks are not merged. Tasks do the same in the order of tokio's mutex.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::raw::{self, Socket};
use super::{tasks, threads};
use crate::measure::Crew;
use crate::scenario::{Row, Scenario};
use crate::server::{Server, Via};
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

/// The socket of tasks, with the key's value as the replies before have it.
struct TaskSocket {
    stream: TcpStream,
    bytes: Vec<u8>,
    replies: Vec<u8>,
    value: Option<i64>,
}

pub fn open_tasks(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    if row.scenario != Scenario::Watch(1) || !matches!(row.via, Via::Tcp) {
        return None;
    }
    let connect = TcpStream::connect(("127.0.0.1", server.port()));
    let stream = runtime.block_on(connect).expect("connect");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let socket = TaskSocket { stream, bytes: Vec::new(), replies: Vec::new(), value: None };
    let line = Arc::new(tokio::sync::Mutex::new(socket));
    tasks(row, |job| {
        let line = Arc::clone(&line);
        Box::new(move |clock| {
            Box::pin(async move {
                let (key, ask) = (job.any(), raw::ask(job.any()));
                work!(clock, {
                    // First come, first served.
                    let mut socket = line.lock().await;
                    socket.commit(key, &job.first, &ask).await;
                    1
                })
            })
        })
    })
}

impl TaskSocket {
    async fn commit(&mut self, key: &str, first: &str, ask: &[u8]) {
        let value = match self.value {
            Some(value) => value,
            None => {
                self.stream.write_all(ask).await.expect("write");
                raw::integer(&self.last(2).await)
            }
        };
        self.bytes.clear();
        self.bytes.extend(raw::change(key, value + 1, first));
        self.bytes.extend_from_slice(ask); // all ask for the same key
        self.stream.write_all(&self.bytes).await.expect("write");
        // +OK, two times +QUEUED, EXEC's array, and those of the next.
        self.value = Some(raw::integer(&self.last(6).await));
        assert_eq!(self.value, Some(value + 1), "nothing else writes the key");
    }

    /// Reads so many replies, which are all that are due; returns the last one's bytes.
    async fn last(&mut self, replies: usize) -> Vec<u8> {
        self.replies.clear();
        let (mut at, mut begun) = (0, 0);
        for _ in 0..replies {
            begun = at;
            at = loop {
                match raw::end_of_value(&self.replies, begun) {
                    Some(end) => break end,
                    None => {
                        let read = self.stream.read_buf(&mut self.replies).await.expect("read");
                        assert!(read > 0, "the server has closed the connection");
                    }
                }
            };
        }
        self.replies.get(begun..at).unwrap_or_default().to_vec()
    }
}
