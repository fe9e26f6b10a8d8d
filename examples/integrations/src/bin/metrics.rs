//! Metrics for Prometheus: pools, transactions and locks of a service under a small load.
//!
//! ```text
//! cargo run -p rediscope-integrations --bin metrics                   # for 10 seconds
//! cargo run -p rediscope-integrations --bin metrics -- --seconds 600  # to look at it with Prometheus and Grafana
//! ```
//!
//! Prints its address on the loopback interface, where `/metrics` has the numbers, and at the end what a last look
//! there returns. `docs/dashboard.json` is the Grafana dashboard of these names. It starts a Redis
//! server of its own ($REDIS_SERVER, or `redis-server` on the PATH), or uses the one in $REDIS_URL.

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use rediscope::aio::SessionManager;
use rediscope::{TransactionOptions, prelude::*};
use rediscope_examples::server::PrivateServer;
use rediscope_examples::{args, keys};
use tokio::net::TcpListener;
use tokio::time::{Instant, interval, sleep};

/// Upper bounds of the histograms' buckets, in seconds.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
/// Upper bounds of the buckets of attempts.
const ATTEMPTS: &[f64] = &[1.0, 2.0, 3.0, 5.0, 10.0, 20.0];
/// Number of tasks that work.
const TASKS: u64 = 8;
/// Pause of each task after a unit of work.
const PAUSE: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [seconds] = args::numbers([("--seconds", 10)])?;
    let given = std::env::var("REDIS_URL").ok();
    let own = if given.is_none() { Some(PrivateServer::start()?) } else { None };
    let url = own.as_ref().map(PrivateServer::url).or(given).unwrap_or_default();
    let prometheus = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_time".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_duration".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_attempts".to_owned()), ATTEMPTS)?
        .install_recorder()?;

    let sessions = SessionManager::builder(url.as_str()).max_size(4).pool_name("shop");
    let sessions = sessions.build_async()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let page = format!("http://{}/metrics", listener.local_addr()?);
    println!("serving {page} for {seconds} s");
    let server = tokio::spawn(axum::serve(listener, router(prometheus.clone())).into_future());
    let upkeep = tokio::spawn(async move {
        // Without it the values of histograms would stay in memory until the next look.
        let mut times = interval(Duration::from_secs(5));
        loop {
            times.tick().await;
            prometheus.run_upkeep();
        }
    });

    let prefix = keys::unique_prefix("metrics");
    let until = Instant::now() + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| tokio::spawn(work(sessions.clone(), prefix.clone(), task, until)))
        .collect();
    let mut worked = Ok(());
    for task in tasks {
        worked = worked.and(task.await?);
    }
    println!("{}", reqwest::get(&page).await?.text().await?);
    sessions.close(Duration::from_secs(5)).await;
    upkeep.abort();
    server.abort();
    let removed = keys::remove_all(&url, &prefix);
    // Keys are removed after a failure as well; the first error is returned.
    worked?;
    removed?;
    Ok(())
}

fn router(prometheus: PrometheusHandle) -> Router {
    Router::new().route("/metrics", get(async move || prometheus.render()))
}

/// Blocks, a key that all tasks watch, guards, and a lock that all tasks want, until the time is over.
async fn work(
    sessions: SessionManager,
    prefix: String,
    task: u64,
    until: Instant,
) -> Result<(), rediscope::Error> {
    let orders = sessions.transactional().with(TransactionOptions::new().exactly_once());
    let [own, shared] = [format!("{prefix}task:{task}"), format!("{prefix}shared")];
    let lock = sessions.lock(format!("{prefix}lock"));
    while Instant::now() < until {
        orders.run(|tx| Ok((tx.incr(&own, 1), tx.incr(&own, 1)))).await?;
        let watch = orders.watch([&shared]);
        let raised = watch.run(async |read, tx| {
            let n: Option<i64> = read.get(&shared).await?;
            Ok(tx.set(&shared, n.unwrap_or(0) + 1))
        });
        raised.await?;
        let mut tx = orders.begin().await?;
        tx.incr(&own, 1);
        match task % 2 {
            0 => tx.discard().await?,
            _ => drop(tx.commit().await?),
        }
        lock.acquire(Duration::from_secs(5)).await?.release().await?;
        sleep(PAUSE).await;
    }
    Ok(())
}
