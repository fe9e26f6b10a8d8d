//! Misuse does not compile, for the intended reason and with a helpful error.
//!
//! `tests/ui/*.rs` are the mistakes. Each has a `.stderr` file with the required parts of the compiler's output, one a
//! line. They must be there in this order, with as many `error` lines as the output has.
//!
//! trybuild builds the mistakes. The comparison is done here, because trybuild compares every character, and much of
//! the output differs between compilers: how code is quoted, which other types a trait has, what rustc suggests. So a
//! file has what every compiler must report: the error's code, its line, and this crate's own texts.
//!
//! `cargo test --test compile_fail -- --nocapture` prints the errors of the compiler.
//!
//! Guarantee: compiler

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

use std::ffi::OsStr;
use std::fs;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;

use rediscope::commands::QueueCommands;
use rediscope::error::{CheckoutError, ConfigError, ReplyError};
use rediscope::redis::{Commands, ConnectionLike};
use rediscope::status::Status;
use rediscope::{
    Block, CommitError, Condition, Conditional, Error, Outcome, Plain, Pooled, Queued, Ready,
    Replies, Savepoint, SessionManager, Transaction, TransactionOptions, Transactional, Watch,
    Watched, Watching,
};

/// Makes a copy of this program build what lies in this directory.
const BUILD: &str = "REDISCOPE_UI_BUILD";

#[test]
fn misuse_does_not_compile_and_the_compiler_reports_the_reason() {
    if let Some(directory) = std::env::var_os(BUILD) {
        return trybuild::TestCases::new().compile_fail(Path::new(&directory).join("*.rs"));
    }
    let mistakes = mistakes();
    assert!(mistakes.len() > 20, "the mistakes are gone: {mistakes:?}");
    let output = compile(&mistakes);
    let mut wrong = String::new();
    for mistake in &mistakes {
        let output = &output.join(file_name(mistake)).with_extension("stderr");
        let output = fs::read_to_string(output).expect("trybuild wrote the errors");
        let expected = fs::read_to_string(mistake.with_extension("stderr")).unwrap_or_default();
        println!("--- {}\n{output}", mistake.display());
        if let Err(why) = compare(&expected, &output) {
            wrong.push_str(&format!("{}: {why}\nThe output:\n{output}\n", mistake.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_comparison_finds_what_is_missing_and_what_is_too_much() {
    let output = "error[E0277]: `i32` is no handle\n --> $DIR/a.rs:7:9\n  |\n7 |  Ok(1)\n  = note: say `Ready`\n";
    assert_eq!(compare("error[E0277]: `i32` is no handle\na.rs:7\nsay `Ready`\n", output), Ok(()));
    assert!(compare("error[E0277]\nsay `Ready`\na.rs:7\n", output).is_err(), "order matters");
    assert!(compare("error[E0308]\n", output).is_err(), "another code");
    assert!(compare("error[E0277]\na.rs:8\n", output).is_err(), "another line");
    let twice = format!("{output}\n{output}");
    assert!(compare("error[E0277]\n", &twice).is_err(), "an error more than meant");
    assert!(compare("", output).is_err(), "nothing was written down");
}

#[test]
fn code_that_must_compile_compiles() {
    fn handle<T: Clone + Send + Sync + UnwindSafe + RefUnwindSafe + 'static>() {}
    fn guard<T: Send + 'static>() {}
    fn value<T: Clone + Send + Sync + 'static>() {}
    fn error<T: std::error::Error + Clone + Send + Sync + 'static>() {}
    fn copy<T: Copy>() {}
    fn queues<T: QueueCommands>() {}
    fn commands<T: Commands + ConnectionLike>() {}

    handle::<SessionManager>();
    handle::<Pooled>();
    handle::<Transactional>();
    value::<Watch>();
    value::<Condition>();
    value::<Conditional>();
    value::<TransactionOptions>();

    guard::<Transaction>();
    guard::<Transaction<Plain>>();
    guard::<Transaction<Watched>>();
    guard::<Watching>();

    queues::<Block>();
    queues::<Transaction<Plain>>();
    queues::<Savepoint<'static>>();
    queues::<&mut Transaction<Watched>>();
    commands::<Pooled>();

    value::<Replies>();
    value::<Outcome>();
    value::<Status>();
    value::<Queued<std::rc::Rc<()>>>();
    copy::<Queued<String>>();
    copy::<Ready<i64>>();
    error::<Error>();
    error::<CommitError>();
    error::<CheckoutError>();
    error::<ReplyError>();
    error::<ConfigError>();
}

#[cfg(feature = "tokio")]
#[test]
fn code_of_tasks_that_must_compile_compiles() {
    use rediscope::aio;
    use rediscope::error::TokenCell;
    use rediscope::redis::AsyncCommands;

    fn handle<T: Clone + Send + Sync + UnwindSafe + RefUnwindSafe + 'static>() {}
    fn guard<T: Send + 'static>() {}
    fn value<T: Clone + Send + Sync + 'static>() {}
    fn future<T: Future + Send + Unpin + 'static>() {}
    fn queues<T: QueueCommands>() {}
    fn commands<T: AsyncCommands>() {}

    handle::<aio::SessionManager>();
    handle::<aio::Pooled>();
    handle::<aio::Transactional>();
    value::<aio::Watch>();
    value::<aio::Conditional>();
    value::<TokenCell>();

    guard::<aio::Transaction>();
    guard::<aio::Transaction<Watched>>();
    guard::<aio::Watching>();
    guard::<aio::Tries>();
    guard::<aio::Attempt<'static>>();
    future::<aio::Submitted<Queued<i64>>>();

    queues::<aio::Transaction<Plain>>();
    queues::<aio::Transaction<Watched>>();
    queues::<aio::Attempt<'static>>();
    commands::<aio::Pooled>();
}

fn mistakes() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui");
    // Those of tasks are built only with the feature.
    let tasks = cfg!(feature = "tokio").then(|| directory.join("aio"));
    let mut mistakes = Vec::new();
    for directory in [directory].into_iter().chain(tasks) {
        let entries = fs::read_dir(directory).expect("tests/ui").map(|entry| entry.unwrap().path());
        mistakes.extend(entries.filter(|path| path.extension() == Some(OsStr::new("rs"))));
    }
    mistakes.sort();
    mistakes
}

/// The name of a copy: the mistakes of both sides lie in one directory.
fn file_name(mistake: &Path) -> String {
    let name = mistake.file_name().unwrap().to_str().unwrap();
    let of_tasks = mistake.parent().unwrap().ends_with("aio");
    if of_tasks { format!("task_{name}") } else { name.to_owned() }
}

/// Builds copies of the mistakes and returns the directory in which each has its `.stderr`.
///
/// In a process of its own: an environment variable makes trybuild write down the compiler's output
/// instead of comparing it. A mistake that compiles fails there.
fn compile(mistakes: &[PathBuf]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ui");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("a directory for the copies");
    for mistake in mistakes {
        fs::copy(mistake, directory.join(file_name(mistake))).expect("copy a mistake");
    }
    let this = std::env::current_exe().expect("this program");
    let built = Command::new(this)
        .args(["--exact", "misuse_does_not_compile_and_the_compiler_reports_the_reason"])
        .arg("--nocapture")
        .env(BUILD, &directory)
        .env("TRYBUILD", "overwrite")
        .output()
        .expect("run this program");
    assert!(
        built.status.success(),
        "a mistake compiled, or trybuild could not work:\n{}\n{}",
        String::from_utf8_lossy(&built.stdout),
        String::from_utf8_lossy(&built.stderr)
    );
    directory
}

/// Whether all expected errors are there, in that order, and no other.
fn compare(expected: &str, output: &str) -> Result<(), String> {
    let errors = |text: &str| text.lines().filter(|line| line.starts_with("error")).count();
    let mut rest = output;
    for fragment in expected.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match rest.split_once(fragment) {
            Some((_, after)) => rest = after,
            None => return Err(format!("the compiler did not say, or not there: {fragment}")),
        }
    }
    match (errors(expected), errors(output)) {
        (0, _) => Err("no error is written down in the .stderr".to_owned()),
        (meant, found) if meant != found => Err(format!("{found} errors instead of {meant}")),
        _ => Ok(()),
    }
}
