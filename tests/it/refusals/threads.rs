//! A system that refuses a new thread: every call has its error or works without, and nothing panics.
//!
//! The limit of threads belongs to a process, so each test has a child process. It runs this same test as a
//! user without privileges, because the kernel does not limit root.
//!
//! Guarantee: settings

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use crate::side::SessionManager;
use rediscope::error::{ConfigError, LockError};
use rediscope::{Error, prelude::*};

use rediscope_testing::server::Server;

const SERVER: &str = "REDISCOPE_TEST_SERVER_OF_THE_CHILD";
const UNPRIVILEGED: u32 = 65_534;
const WAIT: Duration = Duration::from_secs(5);

#[test]
fn a_system_that_gives_no_thread_costs_no_panic_and_no_lock() {
    if let Ok(url) = std::env::var(SERVER) {
        return child(&url);
    }
    let server = Server::start();
    let here = std::env::current_exe().unwrap();
    // A folder that the other user may read.
    let folder = tempfile::Builder::new().prefix("rediscope-child-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("child");
    fs::copy(&here, &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    // One thread of tests: it is the main one, so the child has none of its own.
    command
        .args([
            "--exact",
            "refusals::threads::a_system_that_gives_no_thread_costs_no_panic_and_no_lock",
        ])
        .args(["--test-threads=1", "--nocapture"])
        .env(SERVER, server.url())
        .current_dir("/");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.gid(UNPRIVILEGED).uid(UNPRIVILEGED);
    }
    let output = command.output().unwrap();
    let reported = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{reported}\n{errors}");
    assert!(
        reported.contains("1 passed") && reported.contains("the limit was felt"),
        "{reported}\n{errors}"
    );
    assert!(!errors.contains("panicked"), "{errors}");
}

fn child(url: &str) {
    let sessions = SessionManager::connect(url).unwrap();
    let (mut db, accounts) = (sessions.pooled(), sessions.transactional());
    accounts.run(|tx| Ok(tx.incr("a", 1))).unwrap();
    let _: i64 = db.get("a").unwrap();

    let me = std::process::id().to_string();
    let limited = Command::new("prlimit").args(["--pid", &me, "--nproc=1:1"]).status();
    assert!(limited.unwrap().success());
    assert!(std::thread::Builder::new().spawn(|| ()).is_err(), "there is a thread to be had");
    println!("the limit was felt");

    let refused = SessionManager::connect(url).map(drop).unwrap_err();
    assert!(matches!(refused, ConfigError::Threads { .. }), "{refused}");
    assert_eq!(refused.setting_name(), None);

    // What needs no thread goes on.
    assert_eq!(accounts.run(|tx| Ok(tx.incr("a", 1))).unwrap(), 2);
    assert_eq!(db.get::<_, i64>("a").unwrap(), 2);
    let watched = accounts.watch(["a"]).run(|read, tx| {
        let a: i64 = read.get("a")?;
        Ok(tx.set("a", a + 1))
    });
    watched.unwrap();

    // A lock without a thread would never be extended: none is acquired, and none is left taken.
    let lock = sessions.lock("l").acquire(Duration::ZERO).map(drop).unwrap_err();
    assert!(matches!(lock, Error::Lock(LockError::Refused { setting: "thread", .. })), "{lock}");
    assert!(!sessions.lock("l").is_locked().unwrap());

    // A lease that would not be extended is not begun.
    for lock in [sessions.lock("l"), sessions.semaphore("s", 2), sessions.lock("f").fair()] {
        let refused = lock.acquire(WAIT).map(drop).unwrap_err();
        assert!(refused.to_string().contains("thread"), "{refused}");
        assert!(refused.applied() == rediscope::error::Applied::No);
    }
    let keys: Vec<String> = db.keys("*").unwrap();
    assert!(keys.iter().all(|key| !key.contains("lock:") && !key.contains("sem:")), "{keys:?}");
    assert_eq!(sessions.status().locks.held, 0);
    assert_eq!(sessions.close(Duration::MAX).scopes, 0);
}
