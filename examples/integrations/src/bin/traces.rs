//! The spans of transactions as OpenTelemetry has them.
//!
//! ```text
//! cargo run -p rediscope-integrations --bin traces
//! ```
//!
//! Runs a few transactions, prints each finished span with its attributes, and ends. It starts a Redis server
//! of its own ($REDIS_SERVER, or `redis-server` on the PATH), or uses the one in $REDIS_URL. A service
//! exports the same spans with an OTLP exporter in place of the one that keeps them in memory.

use std::error::Error;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use rediscope::{Condition, Error as RedisError, SessionManager, TransactionOptions, prelude::*};
use rediscope_examples::keys;
use rediscope_examples::server::PrivateServer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

fn main() -> Result<(), Box<dyn Error>> {
    let given = std::env::var("REDIS_URL").ok();
    let own = if given.is_none() { Some(PrivateServer::start()?) } else { None };
    let url = own.as_ref().map(PrivateServer::url).or(given).unwrap_or_default();

    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
    tracing_subscriber::registry()
        .with(tracing::level_filters::LevelFilter::INFO)
        .with(layer)
        .try_init()?;

    let prefix = keys::unique_prefix("traces");
    let worked = work(&SessionManager::connect(url.as_str())?, &prefix);
    let removed = keys::remove_all(&url, &prefix);
    worked?;
    removed?;

    provider.force_flush()?;
    for span in exporter.get_finished_spans()? {
        let took = span.end_time.duration_since(span.start_time)?;
        println!("{} ({:?}) took {took:?}", span.name, span.span_kind);
        for attribute in &span.attributes {
            // The places in the source are the last ones, and long.
            if !attribute.key.as_str().starts_with("code.") {
                println!("  {} = {}", attribute.key, attribute.value);
            }
        }
    }
    provider.shutdown()?;
    Ok(())
}

/// A transaction that is applied, one whose condition is not met, and one that is discarded.
fn work(sessions: &SessionManager, prefix: &str) -> Result<(), RedisError> {
    let stock = format!("{prefix}stock");
    let shop = sessions.transactional().with(TransactionOptions::new().name("order"));
    let left = shop.run(|tx| Ok((tx.set(&stock, 3), tx.decr(&stock, 1))))?.1;
    let many = shop.require(Condition::at_least(&stock, 100)).run(|tx| Ok(tx.decr(&stock, 100)));
    let mut forgotten = shop.begin()?;
    forgotten.decr(&stock, left);
    forgotten.discard()?;
    match many {
        Err(RedisError::ConditionFailed { .. }) => Ok(()),
        other => other.map(drop),
    }
}
