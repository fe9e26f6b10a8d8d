//! Promise: every example runs as its first lines say, and leaves nothing on the server.

#![allow(clippy::unwrap_used, reason = "test code: a panic with a clear message is how it reports")]

use rediscope_testing::program::{assert_nothing_left_on, run};
use rediscope_testing::server::Server;

#[test]
fn the_front_page_prints_the_expected_results() {
    let server = Server::start();
    run(env!("CARGO_BIN_EXE_quickstart"), Some(&server), &[])
        .succeeded()
        .printed("block: alice has 70, bob has 30")
        .printed("guard: committed, 1 hit")
        .printed("read, decide, write: alice has only 10 left")
        .printed("by hand: sold, 2 left")
        .printed("part: bob has 31");
    assert_nothing_left_on(&server);
}

#[test]
fn the_inventory_shows_its_conflicts_and_sells_what_there_is() {
    let server = Server::start();
    run(env!("CARGO_BIN_EXE_inventory"), Some(&server), &[])
        .succeeded()
        .printed("conflict: nothing was written")
        .printed("500 sold and 0 left, of 500");
    assert_nothing_left_on(&server);
}

#[test]
fn the_savepoints_keep_and_forget() {
    let server = Server::start();
    run(env!("CARGO_BIN_EXE_savepoint"), Some(&server), &[])
        .succeeded()
        .printed("the gift was forgotten")
        .printed("of three writes in four parts, 1 was kept");
    assert_nothing_left_on(&server);
}

#[test]
fn the_lock_is_handed_over_and_a_late_write_rejected() {
    let server = Server::start();
    run(env!("CARGO_BIN_EXE_lock"), Some(&server), &[])
        .succeeded()
        .printed("held by \"worker 1\"")
        .printed("handed over")
        .printed("the late write of the old holder was rejected")
        .printed("the state is from worker 1")
        .printed("release by the old holder fails: true")
        .printed("two of three print: true")
        .printed("0 permits are left")
        .printed("held together: account:7, account:9")
        .printed("adopted once: true");
    assert_nothing_left_on(&server);
}

#[test]
fn each_job_of_the_queue_is_done_once() {
    let server = Server::start();
    run(env!("CARGO_BIN_EXE_queue"), Some(&server), &[])
        .succeeded()
        .printed("worker 1 left 1 job")
        .printed("100 of 100 jobs are done, the sum of their results is 5050");
    assert_nothing_left_on(&server);
}

#[test]
fn the_job_goes_on_after_its_process_is_killed() {
    let server = Server::start();
    run(env!("CARGO_BIN_EXE_cron"), Some(&server), &[])
        .succeeded()
        .printed("3 processes ran it, one after the other");
    assert_nothing_left_on(&server);
}

#[test]
fn the_bank_returns_no_wrong_result_while_its_connections_are_killed() {
    audited("--blocking", "by 64 threads");
}

#[test]
fn the_bank_of_tasks_returns_no_wrong_result_while_futures_are_dropped() {
    audited("--tokio", "by 256 tasks of tokio");
}

fn audited(side: &str, callers: &str) {
    let server = Server::start();
    // Another program: the demo kills its own connections and removes its own keys only.
    let mut bystander = server.connection();
    redis::cmd("SET").arg("other").arg(1).exec(&mut bystander).unwrap();
    let run = run(env!("CARGO_BIN_EXE_bank"), Some(&server), &["--transfers", "5000", side]);
    assert!(run.stdout.contains(callers), "{}", run.stdout);
    run.succeeded()
        .printed("wrong results 0")
        .printed("other errors 0")
        .printed("money before 1000000")
        .printed("money after 1000000 (0 accounts wrong)");
    assert!(run.number("transfers") >= 5000);
    assert!(run.number("kills") >= 100);
    let value: i64 = redis::cmd("GET").arg("other").query(&mut bystander).unwrap();
    assert_eq!(value, 1);
    redis::cmd("DEL").arg("other").exec(&mut bystander).unwrap();
    drop(bystander);
    assert_nothing_left_on(&server);
}

#[test]
fn the_bank_starts_a_server_of_its_own() {
    let run = run(
        env!("CARGO_BIN_EXE_bank"),
        None,
        &["--transfers", "500", "--threads", "8", "--tasks", "8", "--accounts", "50"],
    );
    run.succeeded();
    for callers in ["by 8 threads", "by 8 tasks of tokio"] {
        assert!(run.stdout.contains(callers), "{}", run.stdout);
    }
    let line = |label: &str| run.stdout.lines().filter(|line| line.starts_with(label)).count();
    assert_eq!((line("wrong results"), line("other errors")), (2, 2), "{}", run.stdout);
    assert!(run.stdout.lines().any(|line| line.ends_with("(started for this)")), "{}", run.stdout);
}

#[test]
fn an_unknown_argument_is_rejected() {
    let run = run(env!("CARGO_BIN_EXE_bank"), None, &["--transfer", "1"]);
    assert!(!run.status.success());
    assert!(run.stderr.contains("--transfer: not understood"), "{}", run.stderr);
}
