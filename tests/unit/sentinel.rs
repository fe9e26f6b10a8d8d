//! Which sentinel's report is taken, and when a report is needed.
//!
//! Guarantee: sentinels

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

use redis::IntoConnectionInfo as _;

use super::*;
use crate::connection::sentinel::queries::{MasterConnection, SentinelQueries};
use crate::protocol::server_error::ServerError;
use crate::sync::now::now;

/// The sentinels' hosts decide their replies: a master and an epoch, at once or at the second poll, a failure,
/// or silence.
struct Script;

impl SentinelQueries for Script {
    async fn query(
        sentinel: &Server,
        _: &Settings,
        _: &str,
        _: Duration,
    ) -> Result<MasterReport, ConnectionError> {
        match sentinel.host_and_port().0 {
            "fails" => Err(ConnectionError::timed_out("no reply in time")),
            "refuses" => Err(ConnectionError::refused(ServerError::from_code("NOAUTH"))),
            "silent" => pending().await,
            report => {
                let report = match report.strip_prefix("late-") {
                    Some(report) => {
                        let mut polled = false;
                        poll_fn(|_| match std::mem::replace(&mut polled, true) {
                            true => Poll::Ready(()),
                            false => Poll::Pending,
                        })
                        .await;
                        report
                    }
                    None => report,
                };
                let (master, epoch) = report.split_once("-at-").unwrap();
                let epoch = epoch.parse().unwrap();
                let replicas = vec![("replica".to_owned(), 1)];
                Ok(MasterReport { epoch, master: (master.to_owned(), 1), replicas })
            }
        }
    }

    async fn wait_for_query(_: &SingleFlight, _: Instant) {
        pending().await
    }
}

fn client(sentinels: &[&str]) -> SentinelClient {
    let info = |host: &str| format!("redis://{host}:1").into_connection_info().unwrap();
    let config = SentinelConfig {
        name: "mymaster".to_owned(),
        sentinels: sentinels.iter().map(|host| info(host)).collect(),
        server_template: info("template"),
        server_template_given: false,
    };
    SentinelClient::new(config, &Settings::default()).unwrap()
}

fn latest() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// The master's host after a query, once the last report is doubted.
fn asked(client: &SentinelClient) -> Result<String, ConnectionError> {
    client.invalidate();
    let master = now(client.master::<Script>(latest()))?;
    Ok(master.host_and_port().0.to_owned())
}

fn poll<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_search_may_move_between_threads_on_each_side() {
    fn is_send<T: Send>(_: &T) {}
    fn search_is_send<Q: SentinelQueries>(client: &SentinelClient) {
        is_send(&client.master::<Q>(latest()));
        is_send(&client.replica_within::<Q>(Duration::ZERO));
    }
    search_is_send::<Script>(&client(&["a-at-1"]));
}

#[test]
fn the_first_report_that_is_not_outdated_is_taken() {
    let found = client(&["fails", "old-at-4", "new-at-5", "newer-at-6"]);
    found.state().epoch = 5;
    assert_eq!(asked(&found).unwrap(), "new");
    assert_eq!(found.state().last_responder, 2);
    found.state().epoch = 6;
    assert_eq!(asked(&found).unwrap(), "newer", "the search begins at the last responder");
}

#[test]
fn an_older_epoch_is_accepted_from_a_majority_only() {
    let reset = client(&["a-at-1", "b-at-2", "fails"]);
    reset.state().epoch = 9;
    assert_eq!(asked(&reset).unwrap(), "b");
    assert_eq!(reset.state().epoch, 2);
    let minority = client(&["a-at-1", "b-at-2", "fails", "fails"]);
    minority.state().epoch = 9;
    assert_eq!(asked(&minority).unwrap_err().kind(), ConnectionErrorKind::TimedOut);
    assert_eq!(minority.state().epoch, 9);
}

#[test]
fn a_sentinel_whose_report_a_server_disproved_is_asked_last() {
    let client = client(&["replica-at-1", "master-at-1", "fails"]);
    assert_eq!(asked(&client).unwrap(), "replica");
    client.disprove(1);
    assert_eq!(asked(&client).unwrap(), "replica", "that was of another generation");
    client.disprove(0);
    assert_eq!(asked(&client).unwrap(), "master");
    client.state().last_responder = 2;
    assert_eq!(asked(&client).unwrap(), "master", "one that fails is no reason to ask it");
    let alone = self::client(&["fails", "replica-at-1"]);
    assert_eq!(asked(&alone).unwrap(), "replica");
    alone.disprove(0);
    assert_eq!(asked(&alone).unwrap(), "replica", "no other one replies");
}

#[test]
fn a_disproved_report_with_a_newer_epoch_is_overruled_by_a_majority() {
    let client = client(&["replica-at-9", "master-at-1", "master-at-1"]);
    assert_eq!(asked(&client).unwrap(), "replica");
    client.disprove(0);
    assert_eq!(asked(&client).unwrap(), "master");
    assert_eq!(client.state().epoch, 1);
}

#[test]
fn a_refusal_is_reported_before_silence() {
    for sentinels in [["fails", "refuses", "fails"], ["refuses", "fails", "fails"]] {
        assert!(asked(&client(&sentinels)).unwrap_err().server_error().is_some());
    }
}

#[test]
fn a_fresh_report_is_used_without_a_query_until_it_is_doubted() {
    let client = client(&["a-at-1"]);
    assert_eq!(asked(&client).unwrap(), "a");
    client.state().epoch = 2;
    assert!(now(client.master::<Script>(latest())).is_ok());
    let (replica, _) = now(client.replica_within::<Script>(Duration::from_secs(1))).unwrap();
    assert_eq!(replica.host_and_port().0, "replica");
    assert_eq!(client.state().epoch, 2, "no query was sent");
    client.invalidate();
    assert!(now(client.master::<Script>(latest())).is_ok());
    assert_eq!(client.state().epoch, 1);
}

#[test]
fn one_caller_queries_and_a_dropped_query_lets_another_one_begin() {
    let client = client(&["silent", "a-at-1"]);
    let mut first = Box::pin(client.master::<Script>(latest()));
    assert!(poll(first.as_mut()).is_pending());
    // The second caller waits; without time left it fails.
    assert!(poll(client.master::<Script>(latest())).is_pending());
    assert!(now(client.master::<Script>(Instant::now())).is_err());
    drop(first);
    client.state().last_responder = 1;
    assert_eq!(asked(&client).unwrap(), "a");
}

#[test]
fn a_query_that_was_overtaken_changes_no_master() {
    let mut client = client(&["late-old-at-5", "new-at-6"]);
    client.query_timeout = Duration::from_millis(1);
    let mut first = Box::pin(client.master::<Script>(latest()));
    assert!(poll(first.as_mut()).is_pending());
    // Its runtime stands still past the query's time, so another one begins.
    while !client.queries.is_free() {
        std::thread::yield_now();
    }
    client.state().last_responder = 1;
    assert_eq!(asked(&client).unwrap(), "new");
    let generation = client.generation();
    let Poll::Ready(found) = poll(first.as_mut()) else { panic!("the report has not arrived") };
    assert_eq!(found.unwrap().host_and_port().0, "new");
    assert_eq!((client.state().epoch, client.generation()), (6, generation));
    assert_eq!(client.state().master.as_ref().unwrap().host_and_port().0, "new");
}

#[derive(Default)]
struct Ended(AtomicBool);

impl MasterConnection for Ended {
    fn end(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

#[test]
fn a_new_master_ends_the_connections_to_the_former_one() {
    let client = client(&["a-at-1", "b-at-2"]);
    assert_eq!(asked(&client).unwrap(), "a");
    let (master, kept) = (client.state().master.clone().unwrap(), Arc::new(Ended::default()));
    let connection: Arc<dyn MasterConnection> = Arc::<Ended>::clone(&kept);
    client.register(&master, Arc::downgrade(&connection)).unwrap();
    assert_eq!(asked(&client).unwrap(), "a");
    assert!(client.generation() == 0 && !kept.0.load(Ordering::Acquire));
    client.state().last_responder = 1;
    assert_eq!(asked(&client).unwrap(), "b");
    assert!(client.generation() == 1 && kept.0.load(Ordering::Acquire));
    let late = client.register(&master, Arc::downgrade(&connection)).unwrap_err();
    assert_eq!(late.kind(), ConnectionErrorKind::Closed);
}

#[test]
fn the_time_is_divided_among_the_sentinels_that_are_left() {
    let ms = Duration::from_millis;
    assert_eq!(share((ms(900), ms(2000)), 3), ms(300));
    assert_eq!(share((ms(0), ms(2000)), 3), LEAST);
    assert_eq!(share((ms(0), ms(60)), 3), ms(20), "the caller has no more");
    assert_eq!(share((ms(0), ms(0)), 3), SHORTEST);
}
