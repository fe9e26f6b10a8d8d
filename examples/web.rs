//! A small HTTP service over one session manager: the service in which a pool once ran dry.
//!
//! ```text
//! cargo run --release --example web                        # prints its address and serves
//! cargo run --release --example web -- --requests 100000   # asks itself, checks, and ends
//! ```
//!
//! In the accident every call bound a connection and never gave it back: after 8 requests a pool
//! of 8 was dry, and every request hung. Here a write goes
//!
//! * through the pooled handle: `/put?key=..&value=..`
//! * or through the transactional one, which also counts it: `/puttx?key=..&value=..`
//!
//! and `/status` shows what both pools hold and who holds it. The server counts at most 8 + 8
//! connections however many requests there were; with `--requests` the program checks that.
//!
//! The Redis server is $REDIS_URL, or the one on 127.0.0.1:6379. Keys are under one random prefix;
//! with `--requests` they are removed at the end.

#[path = "support/args.rs"]
mod args;
#[path = "web/customers.rs"]
mod customers;
#[path = "support/keys.rs"]
mod keys;

use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{SessionManager, prelude::*, redis};
use tiny_http::{Request, Response, Server};

const POOL: u32 = 8;
/// Twice the pool, so that requests do wait for connections.
const WORKERS: usize = 16;
/// How long connections that were closed may stay in the server's list.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let [requests] = args::numbers([("--requests", 0)])?;
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    // Whoever was there before, this connection included, is not ours to count.
    let mut admin = keys::connect(&url)?;
    let others = connections(&mut admin)?;

    let service = Service {
        sessions: SessionManager::builder(url.as_str()).max_size(POOL).build()?,
        prefix: keys::unique_prefix("web"),
    };
    let server = Arc::new(Server::http("127.0.0.1:0").map_err(|error| error as Box<dyn Error>)?);
    let address = server.server_addr().to_ip().ok_or("not listening on an address")?;
    println!("listening on http://{address}/");

    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| service.work(&server));
        }
        if requests == 0 {
            return Ok(());
        }
        let driven = drive(&service, address, requests, &mut admin, others);
        // One wakes one.
        (0..WORKERS).for_each(|_| server.unblock());
        let removed = keys::remove_all(&url, &service.prefix);
        // The first error is the one to tell.
        driven?;
        removed?;
        Ok(())
    })
}

/// What the workers share.
#[derive(Debug)]
struct Service {
    sessions: SessionManager,
    prefix: String,
}

/// What becomes of a request.
enum Answer {
    Ok(String),
    BadRequest(&'static str),
    NotFound,
}

impl Service {
    /// Answers requests until somebody unblocks the server.
    fn work(&self, server: &Server) {
        while let Ok(request) = server.recv() {
            let (status, body) = match self.answer(&request) {
                Ok(Answer::Ok(body)) => (200, body),
                Ok(Answer::BadRequest(why)) => (400, format!("{why}\n")),
                Ok(Answer::NotFound) => (404, "try /put, /puttx or /status\n".to_owned()),
                // The library's errors show no key and no value, so they may be shown.
                Err(error) if error.is_retryable() => (503, format!("{error:#}\n")),
                Err(error) => (500, format!("{error:#}\n")),
            };
            // The customer may have left meanwhile, which is no failure of ours.
            let _ = request.respond(Response::from_string(body).with_status_code(status));
        }
    }

    fn answer(&self, request: &Request) -> Result<Answer, rediscope::Error> {
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        let put = match path {
            "/status" => return Ok(Answer::Ok(format!("{}\n", self.sessions.status()))),
            "/put" => Self::put,
            "/puttx" => Self::put_in_transaction,
            _ => return Ok(Answer::NotFound),
        };
        let parameters = parameters(query);
        let (Some(key), Some(value)) = (parameters.get("key"), parameters.get("value")) else {
            return Ok(Answer::BadRequest("key and value are needed"));
        };
        put(self, key, value)
    }

    /// One command: a connection is borrowed for its round trip.
    fn put(&self, key: &str, value: &str) -> Result<Answer, rediscope::Error> {
        let _: () = self.sessions.pooled().set(self.key(key), value)?;
        Ok(Answer::Ok("stored\n".to_owned()))
    }

    /// Two commands or none: a connection is pinned until EXEC was answered.
    fn put_in_transaction(&self, key: &str, value: &str) -> Result<Answer, rediscope::Error> {
        let ((), puts) = self.sessions.transactional().run(|tx| {
            Ok((tx.set(self.key(key), value), tx.incr(format!("{}puts", self.prefix), 1)))
        })?;
        Ok(Answer::Ok(format!("stored, put {puts}\n")))
    }

    fn key(&self, key: &str) -> String {
        format!("{}key:{key}", self.prefix)
    }
}

/// `key=..&value=..`, percent-decoded.
fn parameters(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = hex.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (meant, behind) = match (byte, escaped) {
            (b'%', Some(escaped)) => (escaped, tail.get(2..).unwrap_or_default()),
            (b'+', _) => (b' ', tail),
            (other, _) => (other, tail),
        };
        bytes.push(meant);
        rest = behind;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends `requests` requests and checks what they left behind.
fn drive(
    service: &Service,
    address: SocketAddr,
    requests: u64,
    admin: &mut redis::Connection,
    others: usize,
) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let answers = customers::ask(address, requests)?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{requests} requests in {seconds:.1} s, {:.0} a second", requests as f64 / seconds);
    println!("{} stored, {} other answers", answers.stored, answers.other);
    println!("{}", customers::get(address, "/status")?);

    let limit = 2 * POOL as usize;
    let ours = connections_once_quiet(admin, others, limit)?;
    println!("connections on the server: {ours} (at most {POOL} + {POOL})");
    let counted: u64 = admin.get(format!("{}puts", service.prefix))?;
    println!("transactions counted by the server: {counted} of {}", answers.transactions);

    let failures: Vec<_> = [
        (answers.other > 0, "a request was not answered with 200"),
        (ours > limit, "too many connections on the server"),
        (counted != answers.transactions, "a transaction was lost or applied twice"),
    ]
    .into_iter()
    .filter_map(|(failed, why)| failed.then_some(why))
    .collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

fn connections(admin: &mut redis::Connection) -> redis::RedisResult<usize> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(admin)?;
    Ok(list.lines().count())
}

fn connections_once_quiet(
    admin: &mut redis::Connection,
    others: usize,
    limit: usize,
) -> redis::RedisResult<usize> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ours = connections(admin)?.saturating_sub(others);
        if ours <= limit || Instant::now() > deadline {
            return Ok(ours);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
