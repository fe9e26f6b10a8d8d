//! Promises: a service on axum that is terminated under load loses no request; every call of `rediscope::aio` can be made in a
//! handler, whose future axum needs to be `Send`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rediscope::aio::SessionManager;
use rediscope::{Condition, Error, Outcome, TransactionOptions, prelude::*};
use rediscope_testing::program::Killed;
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, try_for};
use tower::ServiceExt as _;

/// Time within which an awaited event must happen, far more than it needs on a busy machine.
const SOON: Duration = Duration::from_secs(30);
const CLIENTS: usize = 32;
/// Number of responses after which the service is terminated.
const ENOUGH: u64 = 2_000;

#[test]
fn a_service_that_is_terminated_under_load_finishes_each_request_that_it_began() {
    let server = Server::start();
    let child = Command::new(env!("CARGO_BIN_EXE_axum"))
        .env("REDIS_URL", server.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut service = Killed(child);
    let mut output = BufReader::new(service.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").expect("the first line").to_owned();

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let http = reqwest::Client::builder().timeout(SOON).build().unwrap();
    let stored = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|nth| {
            let (http, stored) = (http.clone(), Arc::clone(&stored));
            let target = format!("{address}puttx?key={nth}&value=some");
            runtime.spawn(async move {
                // Until the listener is closed.
                while let Ok(response) = http.post(&target).send().await {
                    assert_eq!(response.status(), StatusCode::OK);
                    assert!(response.text().await.unwrap().starts_with("stored, put "));
                    stored.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually(SOON, "the service is under load", || stored.load(Ordering::Relaxed) > ENOUGH);
    kill(Pid::from_raw(service.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let status = try_for(SOON, || service.0.try_wait().unwrap()).expect("it ends");
    clients.into_iter().for_each(|client| runtime.block_on(client).unwrap());

    line.clear();
    output.read_to_string(&mut line).unwrap();
    assert!(status.success(), "{status}: {line}");
    assert!(line.contains("closed: "), "{line}");
    let keys: Vec<String> = server.ask(&["KEYS", "web:*:puts"]);
    let counted: u64 = server.ask(&["GET", &keys[0]]);
    assert_eq!(counted, stored.load(Ordering::Relaxed), "responses and transactions");
    eventually(SOON, "no connection is left", || server.clients() == 0);
}

/// An error as an application has one.
#[derive(Debug)]
struct Failed(Error);

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{:#}", self.0)).into_response()
    }
}

type Sessions = State<SessionManager>;

async fn pooled(State(sessions): Sessions, Path(key): Path<String>) -> Result<String, Failed> {
    let mut db = sessions.pooled();
    let () = db.set(&key, 7).await?;
    Ok(db.get::<_, u64>(&key).await?.to_string())
}

async fn run(State(sessions): Sessions, Path(key): Path<String>) -> Result<String, Failed> {
    let handle = sessions.transactional();
    let ((), n) = handle.run(|tx| Ok((tx.set(&key, 6), tx.incr(&key, 1)))).await?;
    Ok(format!("{n}"))
}

async fn submit(State(sessions): Sessions, Path(key): Path<String>) -> Result<String, Failed> {
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    let sent = once.submit(|tx| Ok(tx.incr(&key, 7)))?;
    let token = sent.token();
    let n: i64 = match tokio::time::timeout(SOON, sent).await {
        Ok(n) => n?,
        Err(_) => panic!("{:?}", sessions.resolve(&token, SOON).await),
    };
    Ok(n.to_string())
}

async fn guard(State(sessions): Sessions, Path(key): Path<String>) -> Result<String, Failed> {
    let mut tx = sessions.transactional().begin().await?;
    tx.set(&key, 3);
    tx.flush().await?;
    let mut savepoint = tx.savepoint();
    savepoint.incr(&key, 100);
    drop(savepoint);
    let n = tx.incr(&key, 4);
    let replies = tx.commit().await?;
    Ok(format!("{}", replies.get(n)?))
}

async fn watch(State(sessions): Sessions, Path(key): Path<String>) -> Result<String, Failed> {
    let watch = sessions.transactional().watch([&key]);
    let n = watch.run(async |read, tx| {
        let before: Option<i64> = read.get(&key).await?;
        Ok(tx.incr(&key, 7 - before.unwrap_or(0)))
    });
    Ok(format!("{}", n.await?))
}

async fn tries(State(sessions): Sessions, Path(key): Path<String>) -> Result<String, Failed> {
    let mut tries = sessions.transactional().watch([&key]).tries();
    loop {
        let mut attempt = tries.next().await?;
        let before: Option<i64> = attempt.get(&key).await?;
        let n = attempt.incr(&key, 7 - before.unwrap_or(0));
        if let Outcome::Committed(replies) = attempt.commit().await? {
            return Ok(format!("{}", replies.get(n)?));
        }
    }
}

async fn by_hand(State(sessions): Sessions, Path(key): Path<String>) -> Result<String, Failed> {
    let mut watching = sessions.transactional().watch([&key]).begin().await?;
    let before: Option<i64> = watching.get(&key).await?;
    let mut tx = watching.multi();
    let n = tx.incr(&key, 7 - before.unwrap_or(0));
    match tx.commit().await? {
        Outcome::Committed(replies) => Ok(format!("{}", replies.get(n)?)),
        Outcome::Conflict => panic!("no other client writes {key}"),
    }
}

async fn condition(State(sessions): Sessions, Path(key): Path<String>) -> Result<String, Failed> {
    let absent = sessions.transactional().require(Condition::not_exists(&key));
    let n = absent.run(|tx| Ok(tx.incr(&key, 7))).await?;
    Ok(format!("{n}"))
}

async fn reading(State(sessions): Sessions, Path(key): Path<String>) -> Result<String, Failed> {
    let () = sessions.pooled().set(&key, 7).await?;
    let mut reading = sessions.transactional().reading().begin().await?;
    let n: i64 = reading.get(&key).await?;
    Ok(n.to_string())
}

/// Each route on a runtime of one thread and on one of several.
#[test]
fn every_call_can_be_made_in_a_handler_of_axum() {
    let server = Server::start();
    let one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let many = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let routes = Router::new()
        .route("/pooled/{key}", get(pooled))
        .route("/run/{key}", get(run))
        .route("/submit/{key}", get(submit))
        .route("/guard/{key}", get(guard))
        .route("/watch/{key}", get(watch))
        .route("/tries/{key}", get(tries))
        .route("/by_hand/{key}", get(by_hand))
        .route("/condition/{key}", get(condition))
        .route("/reading/{key}", get(reading))
        .with_state(sessions.clone());
    let names =
        ["pooled", "run", "submit", "guard", "watch", "tries", "by_hand", "condition", "reading"];
    for (nth, runtime) in [&one, &many].into_iter().enumerate() {
        for name in names {
            let key = format!("{name}:{nth}");
            let request = Request::get(format!("/{name}/{key}")).body(Body::empty()).unwrap();
            let response = runtime.block_on(routes.clone().oneshot(request)).unwrap();
            let status = response.status();
            let body = runtime.block_on(axum::body::to_bytes(response.into_body(), 1 << 16));
            let body = String::from_utf8(body.unwrap().to_vec()).unwrap();
            assert_eq!((status, body.as_str()), (StatusCode::OK, "7"), "{name}");
            assert_eq!(server.ask::<i64>(&["GET", &key]), 7, "{name}");
        }
    }
    one.block_on(sessions.close(SOON));
    eventually(SOON, "no connection is left", || server.clients() == 0);
}

/// A handler whose client has gone is dropped by its server at any await.
#[test]
fn a_handler_that_is_dropped_at_any_poll_costs_no_connection() {
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = SessionManager::builder(server.url()).max_size(1).lanes(1);
    let sessions = sessions.build_async().unwrap();
    let routes = Router::new()
        .route("/run/{key}", get(run))
        .route("/watch/{key}", get(watch))
        .route("/guard/{key}", get(guard))
        .with_state(sessions.clone());
    let until = Instant::now() + SOON;
    runtime.block_on(async {
        for name in ["run", "watch", "guard"] {
            for polls in 0.. {
                assert!(Instant::now() < until, "{name} needs more than {polls} polls");
                let request = Request::get(format!("/{name}/{name}")).body(Body::empty()).unwrap();
                let mut call = Box::pin(routes.clone().oneshot(request));
                let mut left = polls;
                let ended = std::future::poll_fn(|context| match call.as_mut().poll(context) {
                    std::task::Poll::Ready(response) => std::task::Poll::Ready(Some(response)),
                    std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
                    std::task::Poll::Pending => {
                        left -= 1;
                        std::task::Poll::Pending
                    }
                });
                let ended = ended.await;
                drop(call);
                if let Some(response) = ended {
                    assert_eq!(response.unwrap().status(), StatusCode::OK, "{name}");
                    break;
                }
            }
        }
    });
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.connects, counts.all_replaced()), (2, 0), "a pin and a lane");
    assert_eq!(server.ask::<i64>(&["GET", "run"]), 7);
    runtime.block_on(sessions.close(SOON));
}
