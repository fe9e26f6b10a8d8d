//! The log as a program with a plain subscriber sees it, compared with the sample on a page.
//!
//! One test listens at a time, because there is one log.

use std::io;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use rediscope_testing::eventually;

use crate::fixture::SOON;

static BYTES: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static TURN: Mutex<()> = Mutex::new(());

fn bytes() -> MutexGuard<'static, Vec<u8>> {
    BYTES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is logged while it is there.
pub(crate) struct Log(#[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        bytes().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Make;

impl MakeWriter<'_> for Make {
    type Writer = Writer;

    fn make_writer(&self) -> Writer {
        Writer
    }
}

impl Log {
    pub(crate) fn listen() -> Self {
        static LISTEN: Once = Once::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        LISTEN.call_once(|| {
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(LevelFilter::DEBUG)
                .without_time()
                .with_target(false)
                .with_ansi(false)
                .with_writer(Make)
                .finish();
            tracing::subscriber::set_global_default(subscriber).unwrap();
        });
        bytes().clear();
        Self(turn)
    }

    /// Like [`take`](Self::take), once an event contains `text`. Events of a new connection come
    /// from a thread of their own.
    pub(crate) fn take_with(&self, text: &str) -> Vec<String> {
        eventually(SOON, text, || String::from_utf8_lossy(&bytes()).contains(text));
        self.take()
    }

    /// The events since the last call, without their spans.
    pub(crate) fn take(&self) -> Vec<String> {
        let text = String::from_utf8(std::mem::take(&mut *bytes())).unwrap();
        let line = |line: &str| match line.split_once("redis.transaction{") {
            Some((level, rest)) => {
                let (_, event) = rest.split_once("}: ").unwrap();
                format!("{level}{event}")
            }
            None => line.to_owned(),
        };
        text.lines().map(line).collect()
    }
}

/// The lines of a real report, each left out from "…" on to what follows it, if the page leaves that out.
pub(crate) fn abridged(happened: &[String], shown: &[String]) -> Vec<String> {
    let line =
        |(at, line): (usize, &String)| match shown.get(at).and_then(|shown| shown.split_once('…'))
        {
            Some((head, tail)) if line.starts_with(head) && line.ends_with(tail) => {
                format!("{head}…{tail}")
            }
            _ => line.clone(),
        };
    happened.iter().enumerate().map(line).collect()
}

/// Each line once, with `<port>` for the port, and without how the system or the other side put it:
/// that differs from run to run.
pub(crate) fn plain<'l>(lines: impl IntoIterator<Item = &'l str>, port: u16) -> Vec<String> {
    let mut plain: Vec<String> = Vec::new();
    for line in lines {
        let mut line = line.replace(&format!(":{port}"), ":<port>");
        if let Some((head, tail)) = line.split_once("connection closed: ") {
            let behind = tail.find(" reason=").map_or("", |at| &tail[at..]);
            line = format!("{head}connection closed: …{behind}");
        }
        if !plain.contains(&line) {
            plain.push(line);
        }
    }
    plain
}

/// The fenced blocks of a page, and the line before each that is not empty.
pub(crate) fn blocks(page: &str) -> Vec<(String, Vec<String>)> {
    let page = std::fs::read_to_string(format!("docs/{page}.md")).unwrap();
    let (mut blocks, mut before, mut block) = (Vec::new(), String::new(), None);
    for line in page.lines() {
        match (line.starts_with("```"), &mut block) {
            (true, None) => block = Some(Vec::new()),
            (true, Some(_)) => blocks.push((before.clone(), block.take().unwrap())),
            (false, Some(lines)) => lines.push(line.to_owned()),
            (false, None) if !line.is_empty() => before = line.to_owned(),
            (false, None) => {}
        }
    }
    blocks
}

/// The block behind the line that ends so.
pub(crate) fn block(page: &str, behind: &str) -> Vec<String> {
    let found = blocks(page).into_iter().find(|(before, _)| before.ends_with(behind));
    found.unwrap_or_else(|| panic!("no block behind {behind:?} in docs/{page}.md")).1
}
