//! A session manager in another process, which resolves tokens that it reads as text.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rediscope::error::{CommitToken, Resolution};
use tokio::sync::oneshot;

use super::runtime;
use crate::SOON;
use rediscope_testing::process;
use rediscope_testing::server::Server;

/// The server's address, in the process that resolves.
const ADDRESS: &str = "REDISCOPE_RESOLVES_ON";
/// Begins a line with an answer: a test program prints others too.
const ANSWER: &str = "resolved ";

/// Whether the block is committed, or why that is unknown.
pub(super) type Answer = Result<bool, String>;

pub(super) fn answer(resolution: &Resolution) -> Answer {
    match resolution {
        Resolution::Committed => Ok(true),
        Resolution::NotCommitted => Ok(false),
        unknown => Err(format!("{unknown:?}")),
    }
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// The other process. It ends with this value.
pub(super) struct OtherProcess {
    child: Child,
    /// `None` at the end.
    questions: Mutex<Option<ChildStdin>>,
    waiting: Waiting,
    next: AtomicU64,
    reader: Option<JoinHandle<()>>,
}

impl OtherProcess {
    /// Runs the test of this process in one more process. Its first statement must be [`serve`].
    pub(super) fn of(server: &Server) -> Self {
        let mut child = process::rerun()
            .env(ADDRESS, server.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (questions, answers) = (child.stdin.take(), child.stdout.take().unwrap());
        let waiting = Waiting::default();
        let asked = Arc::clone(&waiting);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(answers).lines().map_while(Result::ok) {
                // The test program's own output may precede it in the line.
                let Some((_, line)) = line.split_once(ANSWER) else { continue };
                let (nth, text) = line.split_once(' ').expect("number and answer");
                let answer = match text {
                    "committed" => Ok(true),
                    "not committed" => Ok(false),
                    unknown => Err(unknown.to_owned()),
                };
                let asked = asked.lock().unwrap().remove(&nth.parse().unwrap());
                // The question's future may have been dropped.
                let _ = asked.expect("a question").send(answer);
            }
            // No further answer comes.
            asked.lock().unwrap().clear();
        });
        let (questions, next) = (Mutex::new(questions), AtomicU64::new(0));
        Self { child, questions, waiting, next, reader: Some(reader) }
    }

    pub(super) async fn resolve(&self, token: &CommitToken) -> Answer {
        let nth = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap().insert(nth, answer);
        writeln!(self.questions.lock().unwrap().as_mut().unwrap(), "{nth} {token}").unwrap();
        answered.await.expect("the other process answers")
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        // The end of its input.
        *self.questions.get_mut().unwrap() = None;
        let status = self.child.wait().unwrap();
        let read = self.reader.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(status.success() && read.is_some_and(|read| read.is_ok()), "{status}");
        }
    }
}

/// Whether this is the other process, and all that it read is resolved.
pub(super) fn serve() -> bool {
    let Ok(address) = std::env::var(ADDRESS) else { return false };
    let runtime = runtime();
    let sessions = {
        let _runtime = runtime.enter();
        let builder = rediscope::SessionManager::builder(address);
        builder.checkout_timeout(SOON).build_async().unwrap()
    };
    let mut asked = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (nth, token) = line.split_once(' ').expect("number and token");
        let (nth, token) = (nth.to_owned(), token.parse::<CommitToken>().unwrap());
        let sessions = sessions.clone();
        asked.push(runtime.spawn(async move {
            let text = match answer(&sessions.resolve(&token, SOON).await) {
                Ok(true) => "committed".to_owned(),
                Ok(false) => "not committed".to_owned(),
                Err(unknown) => unknown,
            };
            // In one write, so that two answers are not mixed.
            println!("\n{ANSWER}{nth} {text}");
        }));
        asked.retain(|asked| !asked.is_finished());
    }
    asked.into_iter().for_each(|asked| runtime.block_on(asked).unwrap());
    runtime.block_on(sessions.close(SOON));
    true
}
