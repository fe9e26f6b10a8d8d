//! Promise: every example runs as its first lines say, and leaves nothing on the server.

use std::time::Duration;

use rediscope_testing::eventually;
use rediscope_testing::program::{assert_nothing_left_on, run, run_with};
use rediscope_testing::server::Server;

#[test]
fn sql_and_redis_agree_after_every_failure_between_their_commits() {
    let server = Server::start();
    run(env!("CARGO_BIN_EXE_with_sql"), Some(&server), &[])
        .succeeded()
        .printed("its marker exists, so it was applied before; Redis has it, the row is deleted")
        .printed("SQL: orders [1, 3, 4, 5, 6] stand, 0 rows in the outbox")
        .printed("Redis: 95 of 100 left, to be picked: [1, 3, 4, 5, 6]");
    assert_nothing_left_on(&server);
}

#[test]
fn the_configuration_is_read_and_the_environment_overrides_it() {
    let server = Server::start();
    run(env!("CARGO_BIN_EXE_configured"), Some(&server), &[])
        .succeeded()
        .printed("1 hit, over pools of 16");
    run_with(&[("APP_REDIS_MAX_SIZE", "2")], env!("CARGO_BIN_EXE_configured"), Some(&server), &[])
        .succeeded()
        .printed("1 hit, over pools of 2");
    let misspelled = run_with(
        &[("APP_REDIS_MAX_SISE", "2")],
        env!("CARGO_BIN_EXE_configured"),
        Some(&server),
        &[],
    );
    assert!(!misspelled.status.success());
    assert!(misspelled.stderr.contains("max_sise"), "{}", misspelled.stderr);
    assert_nothing_left_on(&server);
    run(env!("CARGO_BIN_EXE_configured"), None, &[]).succeeded().printed("1 hit, over pools of 16");
}

#[test]
fn prometheus_finds_the_metrics_of_a_service() {
    let server = Server::start();
    let run = run(env!("CARGO_BIN_EXE_metrics"), Some(&server), &["--seconds", "2"]);
    let run = run.succeeded();
    for line in [
        r#"db_client_connection_max{db_client_connection_pool_name="shop/transactional"} 4"#,
        r#"rediscope_transaction_attempts_bucket{db_client_connection_pool_name="shop/transactional",le="1"}"#,
        r#"db_client_connection_create_time_count{db_client_connection_pool_name="shop/pooled"}"#,
        r#"rediscope_outcome="discarded"}"#,
        r#"rediscope_lock_acquire_time_sum{db_client_connection_pool_name="shop/locks"}"#,
    ] {
        assert!(run.stdout.contains(line), "no {line} in:\n{}", run.stdout);
    }
    // The library's own keys of exactly once stay for their time.
    let keys: Vec<String> = server.ask(&["KEYS", "*"]);
    assert!(keys.iter().all(|key| key.starts_with("rediscope:")), "{keys:?}");
}

#[test]
fn each_transaction_is_a_span_of_opentelemetry() {
    let server = Server::start();
    let run = run(env!("CARGO_BIN_EXE_traces"), Some(&server), &[]);
    run.succeeded()
        .printed("db.system.name = redis")
        .printed("rediscope.scope = order")
        .printed("rediscope.outcome = committed")
        .printed("rediscope.outcome = discarded")
        .printed("error.type = condition failed");
    let spans = run.stdout.matches("redis.transaction (Client) took ").count();
    assert_eq!(spans, 3, "{}", run.stdout);
    assert_nothing_left_on(&server);
}

#[test]
fn the_service_on_axum_loses_no_connection_to_clients_that_hang_up() {
    let server = Server::start();
    let run = run(env!("CARGO_BIN_EXE_axum"), Some(&server), &["--requests", "20000"]);
    run.succeeded()
        .printed("19000 stored, 500 taken, 500 sold out, 0 other responses")
        .printed("connections after close: 0")
        .printed("transactions counted by the server: 10000 of 10000")
        .printed("left of the stock: 0");
    assert!((1..=20).contains(&run.number("connections on the server:")), "{}", run.stdout);
    // The library's own keys of exactly once stay for their time, so that a request may be repeated.
    for key in server.ask::<Vec<String>>(&["KEYS", "*"]) {
        assert!(server.ask::<i64>(&["PTTL", &key]) > 0, "{key} stays for ever");
    }
    eventually(Duration::from_secs(5), "no connection is left", || server.clients() == 0);
}

#[test]
fn the_web_service_holds_no_more_connections_than_its_pools() {
    let server = Server::start();
    let run = run(env!("CARGO_BIN_EXE_web"), Some(&server), &["--requests", "2000"]);
    run.succeeded()
        .printed("2000 stored, 0 other responses")
        .printed("transactions counted by the server: 1000 of 1000");
    assert!((1..=16).contains(&run.number("connections on the server:")), "{}", run.stdout);
    assert_nothing_left_on(&server);
}
