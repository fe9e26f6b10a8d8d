//! The routes and their handlers. All state of a request is in its handler's future.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rediscope::aio::SessionManager;
use rediscope::{CommitError, Error, TransactionOptions, prelude::*};
use serde::Deserialize;
use tower::limit::GlobalConcurrencyLimitLayer;

/// Maximum number of handlers at a time: further requests wait before theirs begins.
const HANDLERS: usize = 128;
/// Time for which a request may be sent again under its `Idempotency-Key`.
const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(3_600);

/// The state of all handlers. A clone is the same service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    sessions: SessionManager,
    prefix: Arc<str>,
}

impl Service {
    pub(crate) fn new(sessions: SessionManager, prefix: &str) -> Self {
        Self { sessions, prefix: Arc::from(prefix) }
    }

    pub(crate) fn sessions(&self) -> &SessionManager {
        &self.sessions
    }

    fn key(&self, key: &str) -> String {
        format!("{}key:{key}", self.prefix)
    }
}

pub(crate) fn router(service: Service) -> Router {
    Router::new()
        .route("/put", get(put).post(put))
        .route("/puttx", get(put_in_transaction).post(put_in_transaction))
        .route("/take", get(take).post(take))
        .route("/status", get(status))
        .layer(GlobalConcurrencyLimitLayer::new(HANDLERS))
        .with_state(service)
}

#[derive(Debug, Deserialize)]
struct Write {
    key: String,
    value: String,
}

/// One command.
async fn put(
    State(service): State<Service>,
    Query(Write { key, value }): Query<Write>,
) -> Result<String, Failure> {
    let () = service.sessions.pooled().set(service.key(&key), value).await?;
    Ok("stored\n".to_owned())
}

/// Two commands or none; with a key of the client's, once at most.
async fn put_in_transaction(
    State(service): State<Service>,
    Query(Write { key, value }): Query<Write>,
    headers: HeaderMap,
) -> Result<String, Failure> {
    let mut handle = service.sessions.transactional();
    if let Some(once) = headers.get("idempotency-key") {
        let once = once.to_str().map_err(|_| Failure::BadKey)?;
        let once = format!("{}once:{once}", service.prefix);
        handle = handle.with(TransactionOptions::new().exactly_once_as(once, IDEMPOTENCY_WINDOW));
    }
    let counter = format!("{}puts", service.prefix);
    let stored = handle.run(|tx| Ok((tx.set(service.key(&key), value), tx.incr(counter, 1)))).await;
    match stored {
        Ok(((), puts)) => Ok(format!("stored, put {puts}\n")),
        Err(Error::Commit(CommitError::AlreadyCommitted)) => Ok("stored before\n".to_owned()),
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug, Deserialize)]
struct Take {
    key: String,
}

/// Takes one, if one is left. The closure borrows from the handler, and runs again after a conflict.
async fn take(
    State(service): State<Service>,
    Query(Take { key }): Query<Take>,
) -> Result<String, Failure> {
    let stock = service.key(&key);
    let watch = service.sessions.transactional().watch([&stock]);
    let left: i64 = watch
        .run_with(async |read, tx| {
            let left: Option<i64> = read.get(&stock).await?;
            match left {
                Some(1..) => Ok(tx.decr(&stock, 1)),
                _ => Err(Failure::SoldOut),
            }
        })
        .await?;
    Ok(format!("taken, {left} left\n"))
}

async fn status(State(service): State<Service>) -> String {
    format!("{}\n", service.sessions.status())
}

/// The reason why a request was not done.
#[derive(Debug)]
enum Failure {
    SoldOut,
    BadKey,
    Redis(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Redis(error)
    }
}

impl From<rediscope::redis::RedisError> for Failure {
    fn from(error: rediscope::redis::RedisError) -> Self {
        Self::Redis(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, why) = match self {
            Self::SoldOut => (StatusCode::CONFLICT, "sold out\n".to_owned()),
            Self::BadKey => (StatusCode::BAD_REQUEST, "Idempotency-Key is not text\n".to_owned()),
            // The library's errors contain no key and no value, so a client may see them.
            Self::Redis(error) if error.is_retryable() => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n"))
            }
            Self::Redis(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
        };
        (status, why).into_response()
    }
}
