//! The service of `web` on axum: tasks instead of threads, and clients that hang up.
//!
//! ```text
//! cargo run --release -p rediscope-integrations --bin axum                       # prints its address and serves
//! cargo run --release -p rediscope-integrations --bin axum -- --requests 20000   # sends requests, checks, ends
//! ```
//!
//! `/put?key=..&value=..` writes through the pooled handle, `/puttx?key=..&value=..` in a transaction that
//! also counts it. `/take?key=..` watches a stock and takes one of it, and `/status` shows both pools.
//!
//! * A client that hangs up ends its handler wherever it waits: the future is dropped. The connection
//!   stays in the pool.
//! * A client that did not get its response sends the request again with the same `Idempotency-Key`. The header
//!   is the key of `exactly_once_as`, so the transaction is applied once.
//! * Requests beyond a limit wait before their handler begins.
//! * SIGINT (Ctrl-C), SIGTERM or the end of `--requests`: no new connection is accepted, requests under way are
//!   finished, then the session manager is closed.
//!
//! The Redis server is $REDIS_URL, or the one on 127.0.0.1:6379. Keys are under one random prefix;
//! with `--requests` they are removed at the end. The keys of `exactly_once_as` are the library's own and
//! end after an hour.

mod clients;
mod handlers;

use std::error::Error;
use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use axum::serve::ListenerExt as _;
use rediscope::aio::SessionManager;
use rediscope::redis::Commands as _;
use rediscope_examples::{args, connections, keys};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use handlers::Service;

/// Maximum number of connections for scopes, of each of both pools.
const POOL: u32 = 8;
/// Number of connections for blocks of many callers, of each of both pools.
const LANES: u32 = 2;
/// Maximum time until requests under way are finished, and then until connections are closed.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let [requests] = args::numbers([("--requests", 0)])?;
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    let prefix = keys::unique_prefix("web");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let service = {
        let _runtime = runtime.enter();
        let builder = SessionManager::builder(url.as_str()).max_size(POOL).lanes(LANES);
        Service::new(builder.build_async()?, &prefix)
    };
    if requests == 0 {
        return runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("listening on http://{}/", listener.local_addr()?);
            Ok(serve(listener, service, interrupted()?).await?)
        });
    }
    let driven = drive(&runtime, service, (&url, &prefix), requests);
    let removed = keys::remove_all(&url, &prefix);
    // Keys are removed after a failure as well; the first error is returned.
    driven?;
    removed?;
    Ok(())
}

/// Serves until `stop`, lets requests under way end, and closes the session manager.
async fn serve(
    listener: TcpListener,
    service: Service,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // An error means that the client has gone.
        let _ = stream.set_nodelay(true);
    });
    let (stopping, stopped) = oneshot::channel();
    let server = axum::serve(listener, handlers::router(service.clone()));
    let server = server.with_graceful_shutdown(async {
        stop.await;
        let _ = stopping.send(());
    });
    let overdue = async {
        let _ = stopped.await;
        tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
    };
    tokio::select! {
        served = server => served?,
        () = overdue => eprintln!("requests under way are given up"),
    }
    println!("closed: {:?}", service.sessions().close(SHUTDOWN_TIMEOUT).await);
    Ok(())
}

/// Completes at SIGINT or SIGTERM.
fn interrupted() -> Result<impl Future<Output = ()> + Send + 'static, io::Error> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Sends `requests` requests to the service and checks their effects.
fn drive(
    runtime: &tokio::runtime::Runtime,
    service: Service,
    (url, prefix): (&str, &str),
    requests: u64,
) -> Result<(), Box<dyn Error>> {
    // Connections from before, this one included, are not counted below.
    let mut admin = keys::connect(url)?;
    let others = connections::count(&mut admin)?;
    let takes = clients::number_of_takes(requests);
    let stock = format!("{prefix}key:{}", clients::STOCK);
    let () = admin.set(&stock, takes / 2)?;

    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    let (address, server) = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        io::Result::Ok((address, tokio::spawn(serve(listener, service, stopped))))
    })?;
    println!("listening on http://{address}/");
    let begun = Instant::now();
    let responses = runtime
        .block_on(clients::send(address, requests))
        .map_err(|error| error as Box<dyn Error>)?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{requests} requests in {seconds:.1} s, {:.0} a second", requests as f64 / seconds);
    println!("{responses}");
    println!("{}", runtime.block_on(clients::get(address, "/status"))?);

    let limit = 2 * (POOL + LANES) as usize;
    let ours = connections::at_most(&mut admin, others, limit)?;
    println!("connections on the server: {ours} (at most 2 pools of {POOL} and {LANES} lanes)");
    let _ = stop.send(());
    runtime.block_on(server)??;
    let left = connections::at_most(&mut admin, others, 0)?;
    println!("connections after close: {left}");
    let counted: u64 = admin.get(format!("{prefix}puts"))?;
    println!("transactions counted by the server: {counted} of {}", responses.transactions);
    let stock: i64 = admin.get(&stock)?;
    println!("left of the stock: {stock}");

    let failures: Vec<_> = [
        (responses.other > 0, "a request failed"),
        (ours > limit, "too many connections on the server"),
        (left > 0, "a connection is left after close"),
        (counted != responses.transactions, "a transaction was lost or applied twice"),
        (responses.taken != takes / 2 || stock != 0, "more or less was taken than there was"),
    ]
    .into_iter()
    .filter_map(|(failed, why)| failed.then_some(why))
    .collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}
