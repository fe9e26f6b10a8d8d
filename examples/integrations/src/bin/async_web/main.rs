//! The service of `web` on tokio: tasks instead of threads, and clients that hang up.
//!
//! ```text
//! cargo run --release -p rediscope-integrations --bin async_web                       # prints its address and serves
//! cargo run --release -p rediscope-integrations --bin async_web -- --requests 20000   # sends requests, checks, ends
//! ```
//!
//! `/put?key=..&value=..` writes through the pooled handle, `/puttx?key=..&value=..` in a transaction that
//! also counts it, `/status` shows both pools. The handlers are plain `async fn`s, as they would be
//! in a framework; the HTTP itself is in `http.rs`.
//!
//! * A client that hangs up ends its handler wherever it waits: the future is dropped. The connection
//!   stays in the pool.
//! * A client that did not get its response sends the request again with the same `Idempotency-Key`. The header
//!   is the key of `exactly_once_as`, so the transaction is applied once.
//! * SIGINT (Ctrl-C), SIGTERM or the end of `--requests`: no new connection is accepted, requests under way are
//!   finished, then the session manager is closed.
//!
//! The Redis server is $REDIS_URL, or the one on 127.0.0.1:6379. Keys are under one random prefix;
//! with `--requests` they are removed at the end. The keys of `exactly_once_as` are the library's own and
//! end after an hour.

mod clients;
mod http;

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use rediscope::aio::SessionManager;
use rediscope::redis::AsyncCommands;
use rediscope::{CommitError, TransactionOptions, prelude::*, redis};
use rediscope_examples::{args, keys};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use http::{Handler, Request, Response};

const POOL: u32 = 8;
/// Maximum time until requests under way are finished and connections are closed.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which a request may be sent again under its `Idempotency-Key`.
const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(3_600);

fn main() -> Result<(), Box<dyn Error>> {
    let [requests] = args::numbers([("--requests", 0)])?;
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    // Before the runtime, so that its threads leave both signals to the one that waits for them.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let (interrupt, interrupted) = oneshot::channel();
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            let _ = interrupt.send(());
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let prefix = keys::unique_prefix("web");
    let served = runtime.block_on(serve(&url, &prefix, requests, interrupted));
    if requests > 0 {
        let removed = keys::remove_all(&url, &prefix);
        // Keys are removed after a failure as well; the first error is returned.
        served?;
        removed?;
        return Ok(());
    }
    served
}

async fn serve(
    url: &str,
    prefix: &str,
    requests: u64,
    interrupted: oneshot::Receiver<()>,
) -> Result<(), Box<dyn Error>> {
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        tokio::select! {
            _ = interrupted => {}
            _ = stopped => {}
        }
    };
    // Connections from before, this one included, are not counted below.
    let mut admin = keys::connect(url)?;
    let others = connections(&mut admin)?;
    let sessions = SessionManager::builder(url).max_size(POOL).build_async()?;
    let service = Service { sessions: sessions.clone(), prefix: Arc::from(prefix) };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}/");

    if requests == 0 {
        http::serve(listener, service, SHUTDOWN_TIMEOUT, stopped).await?;
        println!("closed: {:?}", sessions.close(SHUTDOWN_TIMEOUT).await);
        return Ok(());
    }
    let server = tokio::spawn(http::serve(listener, service, SHUTDOWN_TIMEOUT, stopped));
    let begun = Instant::now();
    let responses = clients::send(address, requests).await?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{requests} requests in {seconds:.1} s, {:.0} a second", requests as f64 / seconds);
    println!(
        "{} hung up and sent again, {} of them stored before",
        responses.hung_up, responses.stored_before
    );
    println!("{} stored, {} other responses", responses.stored, responses.other);
    println!("{}", clients::get(address, "/status").await?);

    let limit = 2 * (POOL as usize + LANES);
    let ours = at_most(&mut admin, others, limit).await?;
    println!("connections on the server: {ours} (at most 2 pools of {POOL} and {LANES} lanes)");
    let _ = stop.send(());
    server.await??;
    println!("closed: {:?}", sessions.close(SHUTDOWN_TIMEOUT).await);
    let left = at_most(&mut admin, others, 0).await?;
    println!("connections after close: {left}");
    let counted: u64 = redis::Commands::get(&mut admin, format!("{prefix}puts"))?;
    println!("transactions counted by the server: {counted} of {}", responses.transactions);

    let failures: Vec<_> = [
        (responses.other > 0, "a request failed"),
        (ours > limit, "too many connections on the server"),
        (left > 0, "a connection is left after close"),
        (counted != responses.transactions, "a transaction was lost or applied twice"),
    ]
    .into_iter()
    .filter_map(|(failed, why)| failed.then_some(why))
    .collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

/// Default number of lanes of each pool.
const LANES: usize = 2;

/// The state of all handlers.
#[derive(Clone, Debug)]
struct Service {
    sessions: SessionManager,
    prefix: Arc<str>,
}

impl Handler for Service {
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send {
        let service = self.clone();
        async move {
            match service.respond(&request).await {
                Ok(response) => response,
                // The library's errors contain no key and no value, so a client may see them.
                Err(error) if error.is_retryable() => Response::new(503, format!("{error:#}\n")),
                Err(error) => Response::new(500, format!("{error:#}\n")),
            }
        }
    }
}

impl Service {
    async fn respond(&self, request: &Request) -> Result<Response, rediscope::Error> {
        let put = match request.path() {
            "/status" => return Ok(Response::new(200, format!("{}\n", self.sessions.status()))),
            "/put" => false,
            "/puttx" => true,
            _ => return Ok(Response::new(404, "try /put, /puttx or /status\n")),
        };
        let parameters = request.parameters();
        let (Some(key), Some(value)) = (parameters.get("key"), parameters.get("value")) else {
            return Ok(Response::new(400, "key and value are needed\n"));
        };
        match put {
            false => self.put(key, value).await,
            true => self.put_in_transaction(key, value, request.header("idempotency-key")).await,
        }
    }

    /// One command.
    async fn put(&self, key: &str, value: &str) -> Result<Response, rediscope::Error> {
        let _: () = self.sessions.pooled().set(self.key(key), value).await?;
        Ok(Response::new(200, "stored\n"))
    }

    /// Two commands or none; with a key of the client's, once at most.
    async fn put_in_transaction(
        &self,
        key: &str,
        value: &str,
        once: Option<&str>,
    ) -> Result<Response, rediscope::Error> {
        let mut handle = self.sessions.transactional();
        if let Some(once) = once {
            let once = format!("{}once:{once}", self.prefix);
            handle =
                handle.with(TransactionOptions::new().exactly_once_as(once, IDEMPOTENCY_WINDOW));
        }
        let counter = format!("{}puts", self.prefix);
        let stored = handle.run(|tx| Ok((tx.set(self.key(key), value), tx.incr(counter, 1)))).await;
        match stored {
            Ok(((), puts)) => Ok(Response::new(200, format!("stored, put {puts}\n"))),
            Err(rediscope::Error::Commit(CommitError::AlreadyCommitted)) => {
                Ok(Response::new(200, "stored before\n"))
            }
            Err(error) => Err(error),
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}key:{key}", self.prefix)
    }
}

fn connections(admin: &mut redis::Connection) -> redis::RedisResult<usize> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(admin)?;
    Ok(list.lines().count())
}

/// Number of the program's connections, as soon as it is at most `limit`: the server lists a closed
/// one for a moment.
async fn at_most(
    admin: &mut redis::Connection,
    others: usize,
    limit: usize,
) -> redis::RedisResult<usize> {
    let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
    loop {
        let ours = connections(admin)?.saturating_sub(others);
        if ours <= limit || Instant::now() > deadline {
            return Ok(ours);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
