//! Promise: every example runs as its first lines say, and leaves nothing on the server.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rediscope_testing::server::Server;

/// Far more than any of them needs, on a slow machine as well.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an example did.
struct Run {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// Runs an example on `server`, or on one that it starts itself.
fn run(example: &str, server: Option<&Server>, arguments: &[&str]) -> Run {
    run_in(&[], example, server, arguments)
}

/// The same, with these variables in its environment.
fn run_in(
    variables: &[(&str, &str)],
    example: &str,
    server: Option<&Server>,
    arguments: &[&str],
) -> Run {
    let binary = binary(example);
    assert!(
        binary.exists(),
        "{} is not there; `cargo test` builds it, with `--test it` build it first: \
         cargo build --examples",
        binary.display()
    );
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut command = Command::new(binary);
    match server {
        Some(server) => command.env("REDIS_URL", server.url()),
        None => command.env_remove("REDIS_URL"),
    };
    let mut child = command
        .envs(variables.iter().copied())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap())
        .spawn()
        .unwrap();
    let status = rediscope_testing::try_for(PATIENCE, || child.try_wait().unwrap());
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (stdout, stderr) = (text(&mut stdout), text(&mut stderr));
    match status {
        Some(status) => Run { status, stdout, stderr },
        None => panic!("{example} was not over within {PATIENCE:?}:\n{stdout}\n{stderr}"),
    }
}

/// Cargo puts examples next to the folder that this test program is in.
fn binary(example: &str) -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let profile = me.ancestors().nth(2).expect("target/<profile>/deps/<this test>");
    profile.join("examples").join(example).with_extension(std::env::consts::EXE_EXTENSION)
}

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

impl Run {
    #[track_caller]
    fn succeeded(&self) -> &Self {
        assert!(self.status.success(), "{}:\n{}\n{}", self.status, self.stdout, self.stderr);
        self
    }

    /// The example printed this line, spaces aside.
    #[track_caller]
    fn said(&self, expected: &str) -> &Self {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let found = self.stdout.lines().any(|line| words(line) == words(expected));
        assert!(found, "no line {expected:?} in:\n{}", self.stdout);
        self
    }

    /// The first number behind `label` at the beginning of a line.
    #[track_caller]
    fn number(&self, label: &str) -> u64 {
        let line = self.stdout.lines().find_map(|line| line.trim_start().strip_prefix(label));
        let number =
            line.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).find(|n| !n.is_empty()));
        number
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no number behind {label:?} in:\n{}", self.stdout))
    }
}

#[track_caller]
fn nothing_is_left_on(server: &Server) {
    assert_eq!(server.ask::<u64>(&["DBSIZE"]), 0, "keys were left behind");
    rediscope_testing::eventually(PATIENCE, "no connection is left", || server.clients() == 0);
}

#[test]
fn the_front_page_does_what_it_says() {
    let server = Server::start();
    run("quickstart", Some(&server), &[])
        .succeeded()
        .said("block: alice has 70, bob has 30")
        .said("guard: committed, 1 hit")
        .said("read, decide, write: alice has only 10 left")
        .said("by hand: sold, 2 left")
        .said("part: bob has 31");
    nothing_is_left_on(&server);
}

#[test]
fn the_inventory_shows_its_conflicts_and_sells_what_there_is() {
    let server = Server::start();
    run("inventory", Some(&server), &[])
        .succeeded()
        .said("conflict: nothing was written")
        .said("500 sold and 0 left, of 500");
    nothing_is_left_on(&server);
}

#[test]
fn the_savepoints_keep_and_forget() {
    let server = Server::start();
    run("savepoint", Some(&server), &[])
        .succeeded()
        .said("the gift was forgotten")
        .said("of three writes in four parts, 1 was kept");
    nothing_is_left_on(&server);
}

#[test]
fn sql_and_redis_agree_after_every_failure_between_their_commits() {
    let server = Server::start();
    run("with_sql", Some(&server), &[])
        .succeeded()
        .said("its marker is there, so it was applied before; Redis has it, the row is deleted")
        .said("SQL: orders [1, 3, 4, 5, 6] stand, 0 rows in the outbox")
        .said("Redis: 95 of 100 left, to be picked: [1, 3, 4, 5, 6]");
    nothing_is_left_on(&server);
}

#[test]
fn the_lock_is_handed_over_and_a_late_write_refused() {
    let server = Server::start();
    run("lock", Some(&server), &[])
        .succeeded()
        .said("held by \"worker 1\"")
        .said("handed over")
        .said("the late write of the old holder was refused")
        .said("the state is worker 1's")
        .said("the old holder is told: true")
        .said("two of three print: true");
    nothing_is_left_on(&server);
}

#[test]
fn the_job_goes_on_when_the_process_that_runs_it_is_killed() {
    let server = Server::start();
    run("cron", Some(&server), &[]).succeeded().said("3 processes ran it, one after the other");
    nothing_is_left_on(&server);
}

#[cfg(feature = "serde")]
#[test]
fn the_configuration_is_read_and_the_environment_counts_more() {
    let server = Server::start();
    run("configured", Some(&server), &[]).succeeded().said("1 hit, over pools of 16");
    run_in(&[("APP_REDIS_MAX_SIZE", "2")], "configured", Some(&server), &[])
        .succeeded()
        .said("1 hit, over pools of 2");
    let misspelled = run_in(&[("APP_REDIS_MAX_SISE", "2")], "configured", Some(&server), &[]);
    assert!(!misspelled.status.success());
    assert!(misspelled.stderr.contains("max_sise"), "{}", misspelled.stderr);
    nothing_is_left_on(&server);
    run("configured", None, &[]).succeeded().said("1 hit, over pools of 16");
}

#[test]
fn the_web_service_holds_no_more_connections_than_its_pools() {
    let server = Server::start();
    let run = run("web", Some(&server), &["--requests", "2000"]);
    run.succeeded()
        .said("2000 stored, 0 other answers")
        .said("transactions counted by the server: 1000 of 1000");
    assert!((1..=16).contains(&run.number("connections on the server:")), "{}", run.stdout);
    nothing_is_left_on(&server);
}

#[test]
fn the_bank_gives_no_wrong_answer_while_its_connections_are_killed() {
    let server = Server::start();
    // Somebody else's: the demo kills its own connections and removes its own keys.
    let mut bystander = server.connection();
    redis::cmd("SET").arg("theirs").arg(1).exec(&mut bystander).unwrap();
    let run = run("bank", Some(&server), &["--transfers", "5000"]);
    run.succeeded()
        .said("wrong answers 0")
        .said("other errors 0")
        .said("money before 1000000")
        .said("money after 1000000 (0 accounts wrong)");
    assert!(run.number("transfers") >= 5000);
    assert!(run.number("kills") >= 100);
    let theirs: i64 = redis::cmd("GET").arg("theirs").query(&mut bystander).unwrap();
    assert_eq!(theirs, 1);
    redis::cmd("DEL").arg("theirs").exec(&mut bystander).unwrap();
    drop(bystander);
    nothing_is_left_on(&server);
}

#[test]
fn the_bank_starts_a_server_of_its_own() {
    let run = run("bank", None, &["--transfers", "500", "--threads", "8", "--accounts", "50"]);
    run.succeeded().said("wrong answers 0").said("other errors 0");
    assert!(run.stdout.lines().any(|line| line.ends_with("(started for this)")), "{}", run.stdout);
}

#[test]
fn an_argument_that_is_not_understood_is_refused() {
    let run = run("bank", None, &["--transfer", "1"]);
    assert!(!run.status.success());
    assert!(run.stderr.contains("--transfer: not understood"), "{}", run.stderr);
}
