//! A small HTTP service over one session manager, after a real one whose pool was exhausted.
//!
//! ```text
//! cargo run --release -p rediscope-integrations --bin web                        # prints its address and serves
//! cargo run --release -p rediscope-integrations --bin web -- --requests 100000   # sends requests, checks, ends
//! ```
//!
//! In that service each call kept a connection for good: after 8 requests a pool of 8 was empty, and
//! every further request hung. Here a write goes
//!
//! * through the pooled handle: `/put?key=..&value=..`
//! * or through the transactional one, which also counts it: `/puttx?key=..&value=..`
//!
//! and `/status` shows both pools with their open scopes. The server counts at most 8 + 8
//! connections after any number of requests; with `--requests` the program checks that.
//!
//! The Redis server is $REDIS_URL, or the one on 127.0.0.1:6379. Keys are under one random prefix;
//! with `--requests` they are removed at the end.

mod clients;

use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rediscope::{SessionManager, prelude::*, redis};
use rediscope_examples::{args, connections, keys};
use tiny_http::{Request, Response, Server};

const POOL: u32 = 8;
/// Number of worker threads: twice the pool, so that requests wait for connections.
const WORKERS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let [requests] = args::numbers([("--requests", 0)])?;
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    // Connections from before, this one included, are not counted below.
    let mut admin = keys::connect(&url)?;
    let others = connections::count(&mut admin)?;

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
        // Each call ends one worker.
        (0..WORKERS).for_each(|_| server.unblock());
        let removed = keys::remove_all(&url, &service.prefix);
        // Keys are removed after a failure as well; the first error is returned.
        driven?;
        removed?;
        Ok(())
    })
}

/// The state that the workers share.
#[derive(Debug)]
struct Service {
    sessions: SessionManager,
    prefix: String,
}

/// The result of a request.
enum Reply {
    Ok(String),
    BadRequest(&'static str),
    NotFound,
}

impl Service {
    /// Handles requests until the server is unblocked.
    fn work(&self, server: &Server) {
        while let Ok(request) = server.recv() {
            let (status, body) = match self.handle(&request) {
                Ok(Reply::Ok(body)) => (200, body),
                Ok(Reply::BadRequest(why)) => (400, format!("{why}\n")),
                Ok(Reply::NotFound) => (404, "try /put, /puttx or /status\n".to_owned()),
                // The library's errors contain no key and no value, so a client may see them.
                Err(error) if error.is_retryable() => (503, format!("{error:#}\n")),
                Err(error) => (500, format!("{error:#}\n")),
            };
            // An error means that the client has closed its connection.
            let _ = request.respond(Response::from_string(body).with_status_code(status));
        }
    }

    fn handle(&self, request: &Request) -> Result<Reply, rediscope::Error> {
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        let put = match path {
            "/status" => return Ok(Reply::Ok(format!("{}\n", self.sessions.status()))),
            "/put" => Self::put,
            "/puttx" => Self::put_in_transaction,
            _ => return Ok(Reply::NotFound),
        };
        let parameters = parameters(query);
        let (Some(key), Some(value)) = (parameters.get("key"), parameters.get("value")) else {
            return Ok(Reply::BadRequest("key and value are needed"));
        };
        put(self, key, value)
    }

    /// One command: a connection is borrowed for its round trip.
    fn put(&self, key: &str, value: &str) -> Result<Reply, rediscope::Error> {
        let _: () = self.sessions.pooled().set(self.key(key), value)?;
        Ok(Reply::Ok("stored\n".to_owned()))
    }

    /// Two commands or none: a connection is pinned until the reply to EXEC.
    fn put_in_transaction(&self, key: &str, value: &str) -> Result<Reply, rediscope::Error> {
        let ((), puts) = self.sessions.transactional().run(|tx| {
            Ok((tx.set(self.key(key), value), tx.incr(format!("{}puts", self.prefix), 1)))
        })?;
        Ok(Reply::Ok(format!("stored, put {puts}\n")))
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
        let (decoded, after) = match (byte, escaped) {
            (b'%', Some(escaped)) => (escaped, tail.get(2..).unwrap_or_default()),
            (b'+', _) => (b' ', tail),
            (other, _) => (other, tail),
        };
        bytes.push(decoded);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends `requests` requests and checks their effects.
fn drive(
    service: &Service,
    address: SocketAddr,
    requests: u64,
    admin: &mut redis::Connection,
    others: usize,
) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let responses = clients::send(address, requests)?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{requests} requests in {seconds:.1} s, {:.0} a second", requests as f64 / seconds);
    println!("{} stored, {} other responses", responses.stored, responses.other);
    println!("{}", clients::get(address, "/status")?);

    let limit = 2 * POOL as usize;
    let ours = connections::at_most(admin, others, limit)?;
    println!("connections on the server: {ours} (at most {POOL} + {POOL})");
    let counted: u64 = admin.get(format!("{}puts", service.prefix))?;
    println!("transactions counted by the server: {counted} of {}", responses.transactions);

    let failures: Vec<_> = [
        (responses.other > 0, "a request failed"),
        (ours > limit, "too many connections on the server"),
        (counted != responses.transactions, "a transaction was lost or applied twice"),
    ]
    .into_iter()
    .filter_map(|(failed, why)| failed.then_some(why))
    .collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}
