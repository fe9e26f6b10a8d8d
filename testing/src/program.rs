//! Runs a program on a test server and keeps its output.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::server::Server;
use crate::{eventually, try_for};

/// Maximum run time of a program, long enough for a slow machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The exit status and the output of a program.
#[derive(Debug)]
pub struct Run {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

/// Runs a program with `REDIS_URL` of this server, or without that variable.
#[track_caller]
pub fn run(program: &str, server: Option<&Server>, arguments: &[&str]) -> Run {
    run_with(&[], program, server, arguments)
}

/// Like [`run`], with further environment variables.
#[track_caller]
pub fn run_with(
    variables: &[(&str, &str)],
    program: &str,
    server: Option<&Server>,
    arguments: &[&str],
) -> Run {
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut command = Command::new(program);
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
    let status = try_for(TIMEOUT, || child.try_wait().unwrap());
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (stdout, stderr) = (text(&mut stdout), text(&mut stderr));
    match status {
        Some(status) => Run { status, stdout, stderr },
        None => panic!("{program} did not end within {TIMEOUT:?}:\n{stdout}\n{stderr}"),
    }
}

/// A child process that is killed if its test fails.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

impl Run {
    /// Panics unless the program ended with status 0.
    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        assert!(self.status.success(), "{}:\n{}\n{}", self.status, self.stdout, self.stderr);
        self
    }

    /// Panics unless the program printed this line; the number of spaces does not matter.
    #[track_caller]
    pub fn printed(&self, expected: &str) -> &Self {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let found = self.stdout.lines().any(|line| words(line) == words(expected));
        assert!(found, "no line {expected:?} in:\n{}", self.stdout);
        self
    }

    /// The first number after `label` at the beginning of a line.
    #[track_caller]
    pub fn number(&self, label: &str) -> u64 {
        let line = self.stdout.lines().find_map(|line| line.trim_start().strip_prefix(label));
        let number =
            line.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).find(|n| !n.is_empty()));
        number
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no number after {label:?} in:\n{}", self.stdout))
    }
}

/// Panics unless the server has no key and, soon, no client.
#[track_caller]
pub fn assert_nothing_left_on(server: &Server) {
    assert_eq!(server.ask::<u64>(&["DBSIZE"]), 0, "keys were left behind");
    eventually(TIMEOUT, "no connection is left", || server.clients() == 0);
}
