//! A process of its own for a test that counts or changes what belongs to a whole process: memory,
//! threads, sockets, the global tracing subscriber, a fork.

use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Names the test that a child process runs.
const CHILD: &str = "REDISCOPE_OWN_PROCESS";

/// Returns from the test in this process and runs it in a child process instead. The first
/// statement of a test. With `alone`, no two such tests of one program run at the same time: each
/// takes the whole machine.
#[macro_export]
macro_rules! own_process {
    () => {
        fn here() {}
        if !$crate::process::is_own(std::any::type_name_of_val(&here), false) {
            return;
        }
    };
    (alone) => {
        fn here() {}
        if !$crate::process::is_own(std::any::type_name_of_val(&here), true) {
            return;
        }
    };
}

/// A command that runs the test of this process in one more process, for instance with a variable in its
/// environment by which it does another part of the work.
///
/// # Panics
/// This process was not started by [`own_process!`](crate::own_process).
#[must_use]
pub fn rerun() -> Command {
    running(&std::env::var(CHILD).expect("a process of its own"))
}

fn running(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--include-ignored", "--nocapture"]).env(CHILD, test);
    command
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether this process was started for the test that contains the function `here`. Otherwise the
/// test has been run in a child process: panics if it failed there.
#[track_caller]
pub fn is_own(here: &str, alone: bool) -> bool {
    let path = here.split_once("::").map_or(here, |(_program, path)| path);
    let test = path.strip_suffix("::here").unwrap_or(path);
    if std::env::var(CHILD).is_ok_and(|child| child == test) {
        return true;
    }
    let _alone = alone.then(|| ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner));
    let mut command = running(test);
    if std::env::args().any(|argument| ["--nocapture", "--no-capture"].contains(&&*argument)) {
        let status = command.stdin(Stdio::null()).status().expect("run this program");
        assert!(status.success(), "{test}: {status}");
        return false;
    }
    let output = command.stdin(Stdio::null()).output().expect("run this program");
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{printed}");
    assert!(output.status.success(), "{test}: {}\n{printed}\n{errors}", output.status);
    assert!(printed.contains("1 passed"), "no such test: {test}\n{printed}");
    false
}
