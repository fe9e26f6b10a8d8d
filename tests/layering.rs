//! Which file of `src` uses which: no circle between files or folders, no I/O in the protocol core, no wait of one side
//! in decisions, r2d2 in one file.
//!
//! The source is read as tokens, without comments, strings and `#[cfg(test)]` items. A path that begins with `crate`,
//! `super`, `self` or a child module is an edge to the file that defines its name. A re-export is no edge itself: only
//! `lib.rs`, `prelude.rs` and the `mod.rs` of a folder have them.
//!
//! Guarantee: none

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use source::{Module, files, tokens, uses};

type Edges = BTreeMap<String, BTreeSet<String>>;

/// What the protocol core does without: sockets, files, threads, clocks, locks, pools.
const NOT_IN_PROTOCOL: &[&str] = &[
    "std::net",
    "std::os",
    "std::fs",
    "std::process",
    "std::thread",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "std::sync::mpsc",
    "std::io::Read",
    "std::io::BufRead",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "Instant::now",
    "SystemTime::now",
    "redis::Connection",
    "redis::ConnectionLike",
    "redis::Client",
    "redis::Commands",
    "r2d2",
];

/// Files and folders of decisions, which are written once for threads and tasks. A file `threads` in such a folder is
/// the threads' own, and a file `tasks` is the tasks' own.
const DECISIONS: &[&str] = &[
    "commit",
    "connection::connection",
    "connection::handshake",
    "connection::io",
    "connection::sentinel::client",
    "connection::sentinel::queries",
    "connection::wire",
    "lock::acquire",
    "lock::all",
    "lock::client",
    "lock::held",
    "lock::io",
    "lock::lease",
    "lock::renewal",
    "lock::target",
    "lock::waiters",
    "pool::ask",
    "pool::cleanup",
    "pool::group",
    "pool::group_prepare",
    "pool::group_request",
    "pool::line",
    "pool::reauthentication",
    "pool::redirect_pause",
    "pool::router",
    "pool::server_pool",
    "pooled::fan_out",
    "pooled::request",
    "pooled::send",
    "transaction::merge",
    "transaction::merged_run",
    "transaction::pending",
    "transaction::pinned",
    "transaction::reading",
    "transaction::redirects",
    "transaction::retry_loop",
];

/// What a decision does without, as paths and as names: sockets, threads, and each wait that is not of its side.
const NOT_IN_DECISIONS: &[&str] = &[
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::sync::Barrier",
    "std::sync::mpsc",
    "crate::connection::threads",
    "crate::sync::now",
    "crate::sync::this_thread",
    "crate::sync::thread_name",
    "BackgroundWorker",
    "Condvar",
    "FairSemaphore",
    "OwnSocket",
    "TcpStream",
    "ThreadId",
    "park",
    "park_timeout",
    "sleep",
    "thread_local",
    "wait_timeout",
    "yield_now",
];

#[test]
fn no_files_depend_on_each_other_in_a_circle() {
    let edges = edges(&files("src"));
    assert!(edges.len() > 100, "only {} files use others", edges.len());
    assert_eq!(circle(edges), None);
}

#[test]
fn no_folders_depend_on_each_other_in_a_circle() {
    assert_eq!(circle(folders(&edges(&files("src")))), None);
}

#[test]
fn the_protocol_core_uses_no_socket_no_clock_and_no_thread() {
    let sources = files("src");
    let protocol: Vec<_> =
        sources.iter().filter(|(module, _)| module.join("::").starts_with("protocol")).collect();
    assert!(protocol.len() > 20);
    let found: Vec<_> = protocol.into_iter().flat_map(io_in).collect();
    assert_eq!(found, [""; 0]);
}

#[test]
fn decisions_use_no_socket_no_thread_and_no_wait_of_one_side() {
    let sources = files("src");
    for place in DECISIONS {
        let decides = |(module, _): &(&Module, &Vec<String>)| {
            let is_sides = module.last().is_some_and(|last| last == "threads" || last == "tasks");
            is_below(&module.join("::"), place) && !is_sides
        };
        let decisions: Vec<_> = sources.iter().filter(decides).collect();
        assert!(!decisions.is_empty(), "no file {place}");
        let found: Vec<_> = decisions.into_iter().flat_map(waits_in).collect();
        assert_eq!(found, [""; 0]);
    }
}

#[test]
fn one_file_of_the_pool_names_r2d2() {
    let named = |tokens: &[String]| tokens.iter().any(|token| token == "r2d2");
    let files: Vec<_> = files("src").into_iter().filter(|(_, tokens)| named(tokens)).collect();
    let files: Vec<_> = files.iter().map(|(module, _)| module.join("::")).collect();
    assert_eq!(files, ["pool::idle"]);
}

#[test]
fn re_exports_are_in_faces_only() {
    for (module, tokens) in files("src") {
        let re_exports =
            uses(&tokens, &["crate", "super", "self"]).iter().any(|used| used.re_export);
        let face = matches!(&*module.join("/"), "" | "prelude")
            || fs::exists(format!("src/{}/mod.rs", module.join("/"))).unwrap();
        assert!(face || !re_exports, "{} re-exports", module.join("::"));
    }
}

#[test]
fn planted_circles_are_found_and_comments_strings_and_tests_are_none() {
    let circular = |files: &[(&str, &str)]| {
        let module = |name: &str| name.split_terminator("::").map(str::to_owned).collect();
        circle(edges(&files.iter().map(|(name, text)| (module(name), tokens(text))).collect()))
            .is_some()
    };
    let a = "use crate::b::{X, inner::Y};";
    let found = |b: &str| circular(&[("a", a), ("b", b), ("b::c", "use super::X;")]);
    for circular in [
        "use crate::a::Z;",
        "fn f() { crate::a::z() }",
        "use crate::{c, a::{self}};",
        "macro_rules! m { () => { $crate::a::Z } }",
        "fn f() { super::a::z() }",
        "use crate::b::c::Z;",
        "fn f() { c::z() }",
        "#[cfg(not(test))]\nuse crate::a;",
        "const Q: char = '\"'; use crate::a::Z; const R: char = '\"';",
    ] {
        assert!(found(circular), "{circular}");
    }
    for fine in [
        "// use crate::a;\n/* crate::a /* */ crate::a */",
        "const S: &str = \"\\\" crate::a\"; const R: &str = r#\"\" crate::a\"#;",
        "#[cfg(test)]\nmod tests { use crate::a; fn f() { { } } }",
        "#[cfg(all(test, feature = \"x\"))]\nuse crate::a;",
        "pub use crate::a::Z;",
        "pub(crate) fn f<'a>(_: &'a str) {}",
    ] {
        assert!(!found(fine), "{fine}");
    }
    for face in [
        "pub(crate) use crate::b::c::X;",
        "pub use self::c::{Y, X};",
        "pub(crate) use c::Z as X;",
        "pub use c::*;",
    ] {
        let through = |c: &str| circular(&[("a", "use crate::b::X;"), ("b", face), ("b::c", c)]);
        assert!(through("use crate::a::Z;"), "{face}");
        assert!(!through("use super::W;"), "{face}");
    }
    assert!(circular(&[("", "pub use b::X;"), ("a", "use crate::X;"), ("b", "use crate::a;")]));
    let io = |text: &str| io_in((&vec!["protocol".to_owned()], &tokens(text))).len();
    assert_eq!(io("fn f() -> Instant { Instant::now() + second }"), 1);
    assert_eq!(io("fn f() { std::thread::sleep(d) }"), 1);
    assert_eq!(io("use std::{fmt, net::TcpStream};"), 1);
    assert_eq!(io("use redis::{Cmd, Connection, Value};"), 1);
    assert_eq!(io("use std::time::{Duration, Instant}; use std::sync::Arc; use redis::Value;"), 0);
}

#[test]
fn planted_waits_are_found_and_comments_strings_and_tests_are_none() {
    let waits = |text: &str| waits_in((&vec!["commit".to_owned()], &tokens(text)));
    for (wait, named) in [
        ("fn f() { std::thread::sleep(pause) }", "std::thread::sleep"),
        ("use std::{fmt, thread}; fn f() { thread::park() }", "std::thread"),
        ("use std::net::Shutdown;", "std::net::Shutdown"),
        ("use std::sync::{Arc, mpsc::channel as pair};", "std::sync::mpsc::channel"),
        ("use crate::sync::shim::{Arc, Condvar};", "Condvar"),
        ("use crate::sync::now::now;", "crate::sync::now::now"),
        ("fn f() { crate::sync::now::now_in(span, decision) }", "crate::sync::now::now_in"),
        (
            "use crate::connection::{io::Io, threads::Threads};",
            "crate::connection::threads::Threads",
        ),
        ("fn f(gate: &FairSemaphore<(), ()>) {}", "FairSemaphore"),
        ("fn f() -> Option<Arc<OwnSocket>> { None }", "OwnSocket"),
        ("thread_local! { static LAST: Cell<u8> = const { Cell::new(0) }; }", "thread_local"),
        ("fn f(ready: &Ready, state: State) { ready.wait_timeout(state, left); }", "wait_timeout"),
        ("#[cfg(not(test))]\nuse std::net::TcpStream;", "TcpStream"),
    ] {
        let expected = format!("commit uses {named}");
        assert!(waits(wait).contains(&expected), "{wait}: {:?}", waits(wait));
    }
    for fine in [
        "// std::thread::sleep, Condvar\nconst TEXT: &str = \"TcpStream\";",
        "#[cfg(test)]\nmod tests { use std::thread; fn f() { thread::sleep(d) } }",
        "use std::time::Instant; fn f() { let now = Instant::now(); now.elapsed(); }",
        "use std::sync::{Arc, Mutex}; use crate::sync::lock; fn f() { drop(lock(&state)) }",
        "async fn f<I: Io>() { I::pause(time).await; I::open(endpoint, settings, options).await; }",
    ] {
        assert_eq!(waits(fine), [""; 0], "{fine}");
    }
    assert!(is_below("commit::last_write", "commit") && is_below("commit", "commit"));
    assert!(!is_below("commits", "commit"));
}

/// Which file uses which.
fn edges(sources: &BTreeMap<Module, Vec<String>>) -> Edges {
    let (mut edges, mut re_exports) = (Edges::new(), BTreeMap::new());
    let mut all = Vec::new();
    for (module, tokens) in sources {
        let children = sources.keys().filter(|child| child.len() == module.len() + 1);
        let children = children
            .filter(|child| child.starts_with(module))
            .map(|child| &**child.last().unwrap());
        let roots: Vec<_> = ["crate", "super", "self"].into_iter().chain(children).collect();
        for used in uses(tokens, &roots) {
            let to = used.absolute(module);
            if used.re_export {
                re_exports.entry(&**module).or_insert_with(Vec::new).push((used.name, to));
            } else {
                all.push((module, to));
            }
        }
    }
    for (module, path) in all {
        let mut targets = BTreeSet::new();
        resolve(&path, sources, &re_exports, &mut targets);
        targets.remove(module);
        if !targets.is_empty() {
            let names = targets.iter().map(|to| to.join("::"));
            edges.entry(module.join("::")).or_default().extend(names);
        }
    }
    edges
}

/// The file that `path` leads to, past the re-exports of its name. With `*`, the name may be in several.
fn resolve(
    path: &[String],
    sources: &BTreeMap<Module, Vec<String>>,
    re_exports: &BTreeMap<&[String], Vec<(String, Module)>>,
    into: &mut BTreeSet<Module>,
) {
    let mut prefixes = (0..=path.len()).rev().map(|end| path.split_at(end));
    let found = prefixes.find(|(file, _)| sources.contains_key(*file));
    let Some((file, names)) = found else { return };
    for (exported, to) in re_exports.get(file).into_iter().flatten() {
        let all = exported == "*";
        if names.first().is_some_and(|name| all || exported == name) {
            let rest = &names[usize::from(!all)..];
            resolve(&[to, rest].concat(), sources, re_exports, into);
            if !all {
                return;
            }
        }
    }
    into.insert(file.to_vec());
}

/// The same by the first folder.
fn folders(edges: &Edges) -> Edges {
    let folder = |module: &str| module.split("::").next().unwrap().to_owned();
    let mut between = Edges::new();
    for (from, to) in
        edges.iter().flat_map(|(from, to)| to.iter().map(move |to| (folder(from), folder(to))))
    {
        if from != to {
            between.entry(from).or_default().insert(to);
        }
    }
    between
}

/// One circle, if there is any: what is left when everything that leads nowhere is taken away, walked until it repeats.
fn circle(mut edges: Edges) -> Option<String> {
    loop {
        let before = edges.values().map(BTreeSet::len).sum::<usize>();
        let known: BTreeSet<String> = edges.keys().cloned().collect();
        edges.values_mut().for_each(|to| to.retain(|module| known.contains(module)));
        edges.retain(|_, to| !to.is_empty());
        if edges.values().map(BTreeSet::len).sum::<usize>() == before {
            break;
        }
    }
    let mut walk = vec![edges.keys().next()?.clone()];
    loop {
        let next = edges[walk.last().unwrap()].first().unwrap().clone();
        if let Some(begin) = walk.iter().position(|module| *module == next) {
            return Some(walk[begin..].join(" -> "));
        }
        walk.push(next);
    }
}

fn io_in((module, tokens): (&Module, &Vec<String>)) -> Vec<String> {
    let paths = uses(tokens, &["std", "core", "redis", "r2d2", "Instant", "SystemTime"])
        .into_iter()
        .map(|used| used.path.join("::"));
    let is_io = |path: &String| NOT_IN_PROTOCOL.iter().any(|io| is_below(path, io));
    paths.filter(is_io).map(|path| format!("{} uses {path}", module.join("::"))).collect()
}

fn waits_in((module, tokens): (&Module, &Vec<String>)) -> Vec<String> {
    let paths = uses(tokens, &["std", "crate"]).into_iter().map(|used| used.path.join("::"));
    let (forbidden, names): (Vec<&str>, Vec<&str>) =
        NOT_IN_DECISIONS.iter().partition(|wait| wait.contains("::"));
    let paths = paths.filter(|path| forbidden.iter().any(|wait| is_below(path, wait)));
    let names = tokens.iter().filter(|token| names.contains(&&***token)).cloned();
    paths.chain(names).map(|wait| format!("{} uses {wait}", module.join("::"))).collect()
}

/// Whether `path` is `above` or inside of it.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}
