//! Other protocols for groups, under the same cuts: two of them are wrong, so the cuts show something. The third is that of the
//! library, by the same plain client.
//!
//! Guarantee: exactly-once

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use fastrand::Rng;
use redis::{Connection, RedisError, Value};
use rediscope_testing::packed;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

use super::groups::RESPONSE_TIMEOUT;
use super::number;
use super::queue_soak::cut::{Cut, wait_for_late_bytes, wrong};

const WORKERS: u64 = 4;
const HOUR: &str = "3600000";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// Each block has its own MULTI … EXEC and register write, in one write of all.
    Pipelined,
    /// One MULTI … EXEC, with a key that shows that it ran.
    Marker,
    /// One MULTI … EXEC and one register write, under a WATCH that was acknowledged.
    Merged,
}

/// What the caller of a block would be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belief {
    Applied,
    NotApplied,
    Unknown,
}

struct Client {
    protocol: Protocol,
    url: String,
    nth: u64,
    connection: Option<Connection>,
    opened: u64,
    /// The number in the register.
    number: u64,
}

/// What finds out about a block whose reply is lost.
enum Token {
    Marker(String),
    Register(String, u64),
}

impl Client {
    fn register(&self) -> String {
        format!("register:{}:{}", self.nth, self.opened)
    }

    /// The next write of the register.
    fn set(&mut self) -> Vec<u8> {
        self.number += 1;
        packed(&["SET", &self.register(), &self.number.to_string(), "PX", HOUR])
    }

    fn connect(&mut self) -> Result<(), RedisError> {
        if self.connection.is_none() {
            let client = redis::Client::open(self.url.as_str())?;
            let connection = client.get_connection()?;
            connection.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
            connection.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
            self.connection = Some(connection);
            self.opened += 1;
            if self.protocol != Protocol::Marker {
                let arm = [self.set(), packed(&["WATCH", &self.register()])].concat();
                self.exchange(&arm, 2).into_iter().collect::<Result<Vec<_>, _>>()?;
            }
        }
        Ok(())
    }

    /// The replies as far as they came.
    fn exchange(&mut self, bytes: &[u8], replies: usize) -> Vec<Result<Value, RedisError>> {
        let connection = self.connection.as_mut().expect("connected");
        if let Err(error) = connection.send_packed_command(bytes) {
            return vec![Err(error)];
        }
        let mut received = Vec::new();
        for _ in 0..replies {
            received.push(connection.recv_response());
            if received.last().is_some_and(Result::is_err) {
                break;
            }
        }
        received
    }

    /// Sends a group, and returns what is known of each block, or what finds it out.
    fn commit(&mut self, keys: &[String]) -> Vec<Result<Belief, Token>> {
        if self.connect().is_err() {
            self.connection = None;
            return keys.iter().map(|_| Ok(Belief::NotApplied)).collect();
        }
        let (multi, exec) = (packed(&["MULTI"]), packed(&["EXEC"]));
        let watch = packed(&["WATCH", &self.register()]);
        let mut bytes = Vec::new();
        // The replies in order: which of them is EXEC's, and its block's token.
        let (mut replies, mut execs, mut tokens) = (0, Vec::new(), Vec::new());
        let blocks: Vec<&[String]> = match self.protocol {
            Protocol::Pipelined => keys.chunks(1).collect(),
            Protocol::Marker | Protocol::Merged => vec![keys],
        };
        for block in blocks {
            bytes.extend_from_slice(&multi);
            block.iter().for_each(|key| bytes.extend(packed(&["INCR", key])));
            let token = match self.protocol {
                Protocol::Marker => {
                    let marker = format!("marker:{}", block[0]);
                    bytes.extend(packed(&["SET", &marker, "1", "PX", HOUR]));
                    bytes.extend_from_slice(&exec);
                    replies += 3 + block.len();
                    execs.push(replies - 1);
                    Token::Marker(marker)
                }
                Protocol::Pipelined | Protocol::Merged => {
                    bytes.extend(self.set());
                    bytes.extend_from_slice(&exec);
                    bytes.extend_from_slice(&watch);
                    replies += 4 + block.len();
                    execs.push(replies - 2);
                    Token::Register(self.register(), self.number)
                }
            };
            tokens.push(token);
        }
        let received = self.exchange(&bytes, replies);
        if received.iter().any(Result::is_err) {
            self.connection = None;
        }
        let known = |at: &usize| match received.get(*at) {
            Some(Ok(Value::Array(_))) => Some(Belief::Applied),
            Some(Ok(Value::Nil)) => Some(Belief::NotApplied),
            _ => None,
        };
        let ends = execs.iter().map(known).zip(tokens);
        let ends: Vec<_> = ends.map(|(known, token)| known.ok_or(token)).collect();
        match self.protocol {
            Protocol::Pipelined => ends,
            Protocol::Marker | Protocol::Merged => {
                let [end] = <[_; 1]>::try_from(ends).ok().expect("one for all");
                keys.iter().map(|_| end.as_ref().copied().map_err(Token::again)).collect()
            }
        }
    }
}

impl Token {
    fn again(&self) -> Self {
        match self {
            Self::Marker(marker) => Self::Marker(marker.clone()),
            Self::Register(register, number) => Self::Register(register.clone(), *number),
        }
    }

    /// Asks the server, past the proxy.
    fn resolve(&self, db: &mut Connection) -> Belief {
        match self {
            Self::Marker(marker) => {
                match redis::cmd("EXISTS").arg(marker).query::<bool>(db).unwrap() {
                    true => Belief::Applied,
                    false => Belief::NotApplied,
                }
            }
            Self::Register(register, number) => {
                let mut query = redis::pipe();
                query.cmd("PEXPIRE").arg(register).arg(HOUR).cmd("GET").arg(register);
                match query.query::<(bool, Option<u64>)>(db).unwrap() {
                    (_, Some(found)) if found == *number => Belief::Applied,
                    (true, Some(found)) if found < *number => Belief::NotApplied,
                    _ => Belief::Unknown,
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Found {
    cuts: u64,
    blocks: usize,
    asked: u64,
    unknown: u64,
    wrong: usize,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, blocks, asked, unknown, wrong } = self;
        write!(f, "{cuts} cuts, {blocks} blocks, {asked} asked, {unknown} unknown, {wrong} wrong")
    }
}

fn worker(
    (protocol, nth): (Protocol, u64),
    server: &Server,
    groups: u64,
    (asked, cuts): (&AtomicU64, &AtomicU64),
    mut rng: Rng,
) -> Vec<(String, Option<bool>)> {
    let proxy = Proxy::to(server);
    let mut db = server.connection();
    let url = proxy.url();
    let mut client = Client { protocol, url, nth, connection: None, opened: 0, number: 0 };
    let mut ends = Vec::new();
    for group in 0..groups {
        let keys: Vec<_> =
            (0..rng.u64(2..17)).map(|member| format!("key:{nth}:{group}:{member}")).collect();
        // Without a cut, the client connects.
        let _ = client.connect();
        let cut = Cut::any(&mut rng);
        let bytes = match protocol {
            Protocol::Pipelined => 170 * keys.len() as u64,
            Protocol::Marker | Protocol::Merged => 150 + 40 * keys.len() as u64,
        };
        let fired = proxy.fired();
        proxy.arm(cut.script(bytes, &mut rng));
        for (key, end) in keys.iter().zip(client.commit(&keys)) {
            let belief = end.unwrap_or_else(|token| {
                asked.fetch_add(1, Ordering::Relaxed);
                token.resolve(&mut db)
            });
            let belief = match belief {
                Belief::Applied => Some(true),
                Belief::NotApplied => Some(false),
                Belief::Unknown => None,
            };
            ends.push((key.clone(), belief));
        }
        proxy.disarm();
        cut.end(&proxy);
        cuts.fetch_add((proxy.fired() - fired) as u64, Ordering::Relaxed);
    }
    proxy.release();
    ends
}

fn play(protocol: Protocol, groups: u64, seed: u64) -> Found {
    let server = Server::start();
    let (asked, cuts) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut rng = Rng::with_seed(seed);
    let ends: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|nth| {
                let (server, counts, rng) = (&server, (&asked, &cuts), rng.fork());
                let groups = groups.div_ceil(WORKERS);
                scope.spawn(move || worker((protocol, nth), server, groups, counts, rng))
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    wait_for_late_bytes(&server);
    let known: Vec<_> =
        ends.iter().filter_map(|(key, end)| end.map(|end| (key.clone(), end))).collect();
    Found {
        cuts: cuts.into_inner(),
        blocks: ends.len(),
        asked: asked.into_inner(),
        unknown: (ends.len() - known.len()) as u64,
        wrong: wrong(&server, &known).len(),
    }
}

#[test]
fn the_cuts_of_groups_find_two_wrong_protocols_out() {
    rediscope_testing::own_process!(alone);
    let seed = rediscope_testing::soak::seed();
    let groups = number("REDISCOPE_CONTROL_CUTS", 200);
    let [pipelined, marker, merged] = thread::scope(|scope| {
        [Protocol::Pipelined, Protocol::Marker, Protocol::Merged]
            .map(|protocol| scope.spawn(move || play(protocol, groups, seed)))
            .map(|found| found.join().unwrap())
    });
    println!("pipelined: {pipelined}\na marker inside: {marker}\nmerged: {merged}");
    assert!(pipelined.wrong > 0 && marker.wrong > 0, "the cuts find nothing out");
    assert_eq!((merged.wrong, merged.unknown), (0, 0), "{merged:?}");
    for found in [&pipelined, &marker, &merged] {
        assert!(found.cuts > groups / 4, "too few cuts to mean anything: {found:?}");
    }
}
