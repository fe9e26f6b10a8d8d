//! Bytes that were encoded beforehand, on plain sockets: what the wire and the server allow.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use tokio::runtime::Runtime;

use super::threads;
use crate::measure::Crew;
use crate::scenario::{BATCH, Job, Row, Scenario};
use crate::server::{Server, Via};
use crate::tens;
use crate::work;

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket and what was read of it beyond the last reply.
pub struct Socket {
    stream: Stream,
    buffer: Vec<u8>,
    /// What is read and not yet skipped begins here.
    at: usize,
}

impl Socket {
    pub fn open(server: &Server, via: Via) -> Self {
        let stream = match via {
            Via::Tcp => {
                let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("connect");
                stream.set_nodelay(true).expect("TCP_NODELAY");
                Stream::Tcp(stream)
            }
            Via::Unix => Stream::Unix(UnixStream::connect(server.socket()).expect("connect")),
        };
        Self { stream, buffer: Vec::with_capacity(1 << 16), at: 0 }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
        .expect("write");
    }

    /// Reads so many replies; returns the last one's bytes.
    pub fn skip(&mut self, replies: usize) -> &[u8] {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
        let mut begun = self.at;
        for _ in 0..replies {
            begun = self.at;
            self.at = loop {
                match end_of_value(&self.buffer, begun) {
                    Some(end) => break end,
                    None => self.fill().expect("read"),
                }
            };
        }
        let last = &self.buffer[begun..self.at];
        assert_ne!(last.first(), Some(&b'-'), "{}", String::from_utf8_lossy(last));
        last
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 1 << 14];
        let read = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(&mut chunk),
            Stream::Unix(stream) => stream.read(&mut chunk),
        }?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..read]);
        Ok(())
    }
}

/// The end of the value that begins at `at`, if all of it is there.
pub fn end_of_value(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    let line = rest.iter().position(|byte| *byte == b'\n')?;
    let next = at + line + 1;
    let number = || {
        let digits = rest.get(1..line - 1)?;
        std::str::from_utf8(digits).ok()?.parse::<i64>().ok()
    };
    match rest.first()? {
        b'$' => match number()? {
            -1 => Some(next),
            length => {
                let end = next + length as usize + 2;
                (end <= bytes.len()).then_some(end)
            }
        },
        b'*' => (0..number()?.max(0)).try_fold(next, |at, _| end_of_value(bytes, at)),
        _ => Some(next),
    }
}

/// What a worker sends again and again, and how many replies that has.
pub struct Bytes {
    pub bytes: Vec<u8>,
    pub replies: usize,
}

pub fn encoded(job: &Job) -> Option<Bytes> {
    let mut pipe = redis::pipe();
    let commands = match job.scenario {
        Scenario::Two => {
            pipe.atomic().incr(&job.first, 1).incr(&job.second, 1);
            2
        }
        Scenario::Ten => {
            pipe = tens::pipe(&job.ten);
            10
        }
        Scenario::Batch => {
            pipe.atomic();
            (0..BATCH).for_each(|_| {
                pipe.incr(&job.first, 1);
            });
            BATCH
        }
        Scenario::Get => {
            pipe.get(&job.first);
            return Some(Bytes { bytes: pipe.get_packed_pipeline(), replies: 1 });
        }
        Scenario::Watch(_) => return None,
    };
    Some(Bytes { bytes: pipe.get_packed_pipeline(), replies: commands + 2 })
}

pub fn open(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    threads(row, |job| {
        let mut socket = Socket::open(server, row.via);
        Box::new(move |clock| match encoded(&job) {
            Some(Bytes { bytes, replies }) => work!(clock, {
                socket.send(&bytes);
                socket.skip(replies);
                1
            }),
            None => work!(clock, watch(&mut socket, &job)),
        })
    })
}

/// WATCH and GET in one write, the transaction in another, until EXEC is not nil.
fn watch(socket: &mut Socket, job: &Job) -> u32 {
    let key = job.any();
    let ask = ask(key);
    for tries in 1.. {
        socket.send(&ask);
        let value = integer(socket.skip(2));
        socket.send(&change(key, value + 1, &job.first));
        if !socket.skip(4).starts_with(b"*-1") {
            return tries;
        }
    }
    unreachable!("the tries do not end")
}

/// WATCH and GET of a key.
pub fn ask(key: &str) -> Vec<u8> {
    let mut ask = redis::cmd("WATCH").arg(key).get_packed_command();
    ask.extend(redis::cmd("GET").arg(key).get_packed_command());
    ask
}

/// The block that sets the key, and counts.
pub fn change(key: &str, value: i64, counter: &str) -> Vec<u8> {
    let mut pipe = redis::pipe();
    pipe.atomic().set(key, value).incr(counter, 1);
    pipe.get_packed_pipeline()
}

/// The number in a bulk string's bytes.
pub fn integer(value: &[u8]) -> i64 {
    let digits = value.split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
    std::str::from_utf8(digits).unwrap().trim_end().parse().unwrap()
}
