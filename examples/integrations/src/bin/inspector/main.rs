//! A page that shows which calls hold connections, since when and from which place in the source, with plots of the
//! counters. It refreshes by itself.
//!
//! ```text
//! cargo run -p rediscope-integrations --bin inspector                   # for a minute
//! cargo run -p rediscope-integrations --bin inspector -- --seconds 600
//! ```
//!
//! The page is on the loopback interface, at the address that is printed. It has no external source. `/status.json` is
//! `Status` as serde writes it (feature `serde`): no key, value or password is in it, but places in the source
//! are, so keep the page inside. It starts a Redis server of its own ($REDIS_SERVER, or `redis-server` on the
//! PATH), or uses the one in $REDIS_URL.

use std::error::Error;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::{Router, routing::get};
use rediscope::aio::SessionManager;
use rediscope::{TransactionOptions, prelude::*};
use rediscope_examples::server::PrivateServer;
use rediscope_examples::{args, keys};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

const PAGE: &str = include_str!("page.html");

/// What the page may do: run its own script, and ask its own server.
const POLICY: &str =
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [seconds] = args::numbers([("--seconds", 60)])?;
    let given = std::env::var("REDIS_URL").ok();
    let own = if given.is_none() { Some(PrivateServer::start()?) } else { None };
    let url = own.as_ref().map(PrivateServer::url).or(given).unwrap_or_default();
    let sessions = SessionManager::builder(url.as_str()).max_size(4).lanes(0).build_async()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("inspect http://{}/ for {seconds} s", listener.local_addr()?);
    let server = tokio::spawn(axum::serve(listener, router(sessions.clone())).into_future());

    let prefix = keys::unique_prefix("inspector");
    let until = Instant::now() + Duration::from_secs(seconds);
    let tasks = [
        tokio::spawn(orders(sessions.clone(), prefix.clone(), until)),
        tokio::spawn(orders(sessions.clone(), prefix.clone(), until)),
        tokio::spawn(reports(sessions.clone(), prefix.clone(), until)),
    ];
    let mut worked = Ok(());
    for task in tasks {
        worked = worked.and(task.await?);
    }
    sessions.close(Duration::from_secs(5)).await;
    server.abort();
    let removed = keys::remove_all(&url, &prefix);
    // Keys are removed after a failure as well; the first error is returned.
    worked?;
    removed?;
    Ok(())
}

fn router(sessions: SessionManager) -> Router {
    Router::new().route("/", get(page)).route("/status.json", get(status)).with_state(sessions)
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    (headers, PAGE)
}

async fn status(State(sessions): State<SessionManager>) -> impl IntoResponse {
    axum::Json(sessions.status())
}

/// Small transactions on a key that another task changes too.
async fn orders(
    sessions: SessionManager,
    prefix: String,
    until: Instant,
) -> Result<(), rediscope::Error> {
    let shop = sessions.transactional().with(TransactionOptions::new().name("order"));
    let stock = format!("{prefix}stock");
    while Instant::now() < until {
        let watch = shop.watch([&stock]);
        let sold = watch.run(async |read, tx| {
            let n: Option<i64> = read.get(&stock).await?;
            Ok(tx.set(&stock, n.unwrap_or(0) + 1))
        });
        sold.await?;
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// A scope that is open for two seconds at a time, under a lock.
async fn reports(
    sessions: SessionManager,
    prefix: String,
    until: Instant,
) -> Result<(), rediscope::Error> {
    let reports = sessions.transactional().with(TransactionOptions::new().name("nightly report"));
    let lock = sessions.lock(format!("{prefix}report"));
    while Instant::now() < until {
        let held = lock.acquire(Duration::from_secs(5)).await?;
        let mut tx = reports.begin().await?;
        tx.incr(format!("{prefix}reports"), 1);
        sleep(Duration::from_secs(2).min(until - Instant::now())).await;
        tx.commit().await?;
        held.release().await?;
    }
    Ok(())
}
