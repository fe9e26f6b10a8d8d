//! Watches on plain sockets: the holder of a socket writes WATCH and GET of the next in line behind its own EXEC,
//! and hands the socket on with those replies due. On a hot key there is one socket: one round trip a commit, and a
//! wake-up of the next worker, which is the limit of a fair line on a key whose blocks are not merged. On many keys
//! there are as many sockets as a pool has connections.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex};
use std::task::Poll;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::raw::{self, Socket};
use super::{tasks, threads};
use crate::measure::Crew;
use crate::scenario::{Job, POOL, Row, Scenario};
use crate::server::{Server, Via};
use crate::work;

/// Sockets that no worker has, and the workers that wait, each with its WATCH and GET.
struct Line<S, W> {
    free: Vec<S>,
    waiting: VecDeque<(W, Vec<u8>)>,
}

impl<S, W> Line<S, W> {
    fn of(row: &Row, open: impl FnMut(usize) -> S) -> Option<Arc<Mutex<Self>>> {
        let sockets = match row.scenario {
            Scenario::Watch(1) => 1,
            Scenario::Watch(_) => POOL,
            _ => return None,
        };
        let free = (0..sockets).map(open).collect();
        Some(Arc::new(Mutex::new(Self { free, waiting: VecDeque::new() })))
    }

    /// A free socket; else the worker waits, behind all others or, after a conflict, before them.
    fn take(&mut self, worker: impl FnOnce() -> W, ask: &[u8], tries: u32) -> Option<S> {
        let socket = self.free.pop();
        if socket.is_none() {
            let waiting = (worker(), ask.to_vec());
            match tries {
                1 => self.waiting.push_back(waiting),
                _ => self.waiting.push_front(waiting),
            }
        }
        socket
    }

    /// Ends a turn in which no worker waited before EXEC: the longest waiting one gets the socket, if there is any by
    /// now.
    fn free(&mut self, socket: S) -> Option<(W, S)> {
        match self.waiting.pop_front() {
            Some((next, _)) => Some((next, socket)),
            None => {
                self.free.push(socket);
                None
            }
        }
    }
}

#[derive(Default)]
struct Waiter {
    turn: Mutex<Option<Turn<Socket>>>,
    ready: Condvar,
}

struct Turn<S> {
    socket: S,
    /// WATCH and GET were written.
    asked: bool,
}

impl Waiter {
    fn wait(&self) -> Turn<Socket> {
        let mut turn = self.turn.lock().unwrap();
        loop {
            match turn.take() {
                Some(turn) => return turn,
                None => turn = self.ready.wait(turn).unwrap(),
            }
        }
    }

    fn wake(&self, turn: Turn<Socket>) {
        *self.turn.lock().unwrap() = Some(turn);
        self.ready.notify_one();
    }
}

pub fn open(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    let line = Line::of(row, |_| Socket::open(server, row.via))?;
    threads(row, |job| {
        let (line, me) = (Arc::clone(&line), Arc::new(Waiter::default()));
        Box::new(move |clock| work!(clock, commit(&line, &me, &job)))
    })
}

/// Commits; returns how many tries that took.
fn commit(line: &Mutex<Line<Socket, Arc<Waiter>>>, me: &Arc<Waiter>, job: &Job) -> u32 {
    let key = job.any();
    let ask = raw::ask(key);
    for tries in 1.. {
        let free = line.lock().unwrap().take(|| Arc::clone(me), &ask, tries);
        let turn = free.map(|socket| Turn { socket, asked: false });
        let Turn { mut socket, asked } = turn.unwrap_or_else(|| me.wait());
        if !asked {
            socket.send(&ask);
        }
        let value = raw::integer(socket.skip(2));
        let mut bytes = raw::change(key, value + 1, &job.first);
        let next = line.lock().unwrap().waiting.pop_front();
        if let Some((_, ask)) = &next {
            bytes.extend_from_slice(ask);
        }
        socket.send(&bytes);
        let committed = !socket.skip(4).starts_with(b"*-1");
        match next {
            Some((next, _)) => next.wake(Turn { socket, asked: true }),
            None => {
                let handed = line.lock().unwrap().free(socket);
                if let Some((next, socket)) = handed {
                    next.wake(Turn { socket, asked: false });
                }
            }
        }
        if committed {
            return tries;
        }
    }
    unreachable!("the tries do not end")
}

/// A socket of tasks and what was read of it beyond the last reply.
struct TaskSocket {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What is read and not yet skipped begins here.
    at: usize,
}

type TaskLine = Line<TaskSocket, oneshot::Sender<Turn<TaskSocket>>>;

pub fn open_tasks(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    if !matches!(row.via, Via::Tcp) {
        return None;
    }
    let line = TaskLine::of(row, |_| {
        let connect = TcpStream::connect(("127.0.0.1", server.port()));
        let stream = runtime.block_on(connect).expect("connect");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        TaskSocket { stream, buffer: Vec::with_capacity(1 << 16), at: 0 }
    })?;
    tasks(row, |job| {
        let line = Arc::clone(&line);
        Box::new(move |clock| {
            Box::pin(async move { work!(clock, commit_in_task(&line, &job).await) })
        })
    })
}

/// As [`commit`].
async fn commit_in_task(line: &Mutex<TaskLine>, job: &Job) -> u32 {
    let key = job.any();
    let ask = raw::ask(key);
    for tries in 1.. {
        let (give, given) = oneshot::channel();
        let free = line.lock().unwrap().take(|| give, &ask, tries);
        let Turn { mut socket, asked } = match free {
            Some(socket) => Turn { socket, asked: false },
            None => given.await.expect("a turn"),
        };
        if !asked {
            socket.stream.write_all(&ask).await.expect("write");
        }
        let value = raw::integer(socket.skip(2).await);
        let mut bytes = raw::change(key, value + 1, &job.first);
        let next = line.lock().unwrap().waiting.pop_front();
        if let Some((_, ask)) = &next {
            bytes.extend_from_slice(ask);
        }
        socket.stream.write_all(&bytes).await.expect("write");
        let committed = !socket.skip(4).await.starts_with(b"*-1");
        match next {
            Some((next, _)) => {
                drop(next.send(Turn { socket, asked: true }));
                let_next_run().await;
            }
            None => {
                let handed = line.lock().unwrap().free(socket);
                if let Some((next, socket)) = handed {
                    drop(next.send(Turn { socket, asked: false }));
                }
            }
        }
        if committed {
            return tries;
        }
    }
    unreachable!("the tries do not end")
}

/// The woken task is this worker's next; an idle worker may take this one.
async fn let_next_run() {
    let mut is_queued = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_queued, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl TaskSocket {
    /// Reads so many replies; returns the last one's bytes.
    async fn skip(&mut self, replies: usize) -> &[u8] {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
        let mut begun = self.at;
        for _ in 0..replies {
            begun = self.at;
            self.at = loop {
                match raw::end_of_value(&self.buffer, begun) {
                    Some(end) => break end,
                    None => {
                        let read = self.stream.read_buf(&mut self.buffer).await.expect("read");
                        assert!(read > 0, "the server has closed the connection");
                    }
                }
            };
        }
        &self.buffer[begun..self.at]
    }
}
