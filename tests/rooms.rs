//! The rooms of the crate: dependencies point down only, and each file keeps to its own.
//!
//! The source is read as text: comments and strings are taken out, and every path that begins
//! with `crate`, `super`, `self`, `std`, `core`, `redis` or `r2d2` is judged. What a `#[cfg(test)]`
//! item uses is its own affair, and everything below the first test module is left out.
//!
//! Never: a rule that is not tried on a file which breaks it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

mod rooms {
    pub(crate) mod source;
}

use rooms::source::{Source, paths, room, sources, test_modules, tokens, words};

/// The rooms by layer. A room may use those of its own layer and of the layers below.
const LAYERS: [&[&str]; 6] = [
    &["error", "config", "credentials", "process", "retry", "reply", "observe", "wire"],
    &["topology"],
    &["connection"],
    &["commit"],
    &["transaction", "lock"],
    &["pooled", "transactional", "session", "prelude", "docs", "lib"],
];

/// What the protocol core may not know: sockets, files, threads, clocks, pools.
const NOT_IN_WIRE: &[&str] = &[
    "std::net",
    "std::os",
    "std::fs",
    "std::process",
    "std::thread",
    "std::sync",
    "std::io::Read",
    "std::io::BufRead",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::time::Instant",
    "std::time::SystemTime",
    "redis::Connection",
    "redis::ConnectionLike",
    "redis::Client",
    "redis::Pipeline",
    "redis::Commands",
    "redis::io",
    "r2d2",
];

#[test]
fn dependencies_between_the_rooms_point_down_only() {
    assert_none(&sources(), upward);
}

#[test]
fn the_protocol_core_knows_no_socket_no_clock_and_no_thread() {
    let sources = sources();
    assert!(sources.iter().any(|source| room(source) == "wire"), "there is no src/wire");
    assert_none(&sources, outside_in_wire);
}

#[test]
fn r2d2_is_named_by_the_connections_and_by_nobody_else() {
    let sources = sources();
    let named = |source: &Source| words(&tokens(&source.text)).any(|word| word == "r2d2");
    assert!(sources.iter().any(named), "nobody names r2d2: the rule has nothing to hold");
    assert_none(&sources, r2d2_elsewhere);
}

#[test]
fn every_room_has_a_layer_and_every_file_a_room() {
    for source in sources() {
        assert!(layer(room(&source)).is_some(), "{}: no layer for its room", source.path);
    }
}

#[test]
fn a_planted_violation_is_found() {
    let found = |rule: Rule, path: &str, text: &str| {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        rule(&source).len()
    };
    let up = |path, text| found(upward, path, text);
    assert_eq!(up("error/mod.rs", "use crate::connection::pool::Pool;"), 1);
    assert_eq!(up("error/link.rs", "use super::super::commit::Form;"), 1);
    assert_eq!(up("retry.rs", "fn f() { super::session::SessionManager::connect(\"\"); }"), 1);
    assert_eq!(up("wire/exec.rs", "use crate::{error::Error, connection::{link, pool::Pool}};"), 2);
    assert_eq!(up("connection/pool.rs", "type A = crate::transaction::guard::Plain;"), 1);
    assert_eq!(up("commit/mod.rs", "pub(crate) use crate::transaction as t;"), 1);
    assert_eq!(up("commit/mod.rs", "macro_rules! m { () => { $crate::pooled::Pooled } }"), 1);
    assert_eq!(up("commit/mod.rs", "use crate::Transactional;"), 1, "by way of lib.rs");
    assert_eq!(up("commit/mod.rs", "mod inner { use super::super::pooled; }"), 1);
    assert_eq!(up("commit/mod.rs", "#[cfg(not(test))]\nuse crate::pooled;"), 1, "not a test");

    assert_eq!(up("pooled.rs", "use crate::connection::pool::Pool;"), 0, "downwards");
    assert_eq!(up("commit/mod.rs", "mod inner { use super::pooled; }"), 0, "commit::pooled");
    assert_eq!(up("commit/mod.rs", "pub(crate) fn f(self) -> Self { super::wire::f() }"), 0);
    assert_eq!(up("commit/mod.rs", "// use crate::pooled;\n/* crate::pooled /* */ */"), 0);
    assert_eq!(up("commit/mod.rs", "const A: &str = \"\\\" crate::pooled\"; // \""), 0);
    assert_eq!(up("commit/mod.rs", "const A: &str = r#\"\" crate::pooled\"#;"), 0);
    assert_eq!(up("commit/mod.rs", "fn f<'a>(_: &'a str) -> char { '\"' } // crate::pooled"), 0);
    assert_eq!(up("commit/mod.rs", "#[cfg(test)]\nmod tests { use crate::pooled; }"), 0, "a test");

    let wire = |text| found(outside_in_wire, "wire/exec.rs", text);
    assert_eq!(wire("use std::time::{Duration, Instant};"), 1);
    assert_eq!(wire("fn f() { std::thread::sleep(d) }"), 1);
    assert_eq!(wire("use std::{fmt, net::TcpStream};"), 1);
    assert_eq!(wire("use redis::{Cmd, Connection, Value};"), 1);
    assert_eq!(wire("use std::io::{self, Read};"), 1);
    assert_eq!(wire("use std::*;"), 1);
    assert_eq!(wire("use std::time;"), 1, "the whole of it");
    assert_eq!(wire("use std::time::Duration; use std::io; use redis::Value;"), 0);
    assert_eq!(found(outside_in_wire, "observe.rs", "use std::time::Instant;"), 0);

    assert_eq!(found(r2d2_elsewhere, "session.rs", "type P = r2d2::Pool<M>;"), 1);
    assert_eq!(found(r2d2_elsewhere, "session.rs", "use ::r2d2;"), 1);
    assert_eq!(found(r2d2_elsewhere, "session.rs", "//! As in r2d2.\nfn f() {}"), 0);
    assert_eq!(found(r2d2_elsewhere, "connection/pool.rs", "type P = r2d2::Pool<M>;"), 0);

    let parent = Source {
        path: "connection/checkout.rs".to_owned(),
        text: "#[cfg(all(test, x))]\nmod model;\nmod other;\n#[cfg(test)]\nmod t {}".to_owned(),
    };
    assert_eq!(test_modules(&parent), [["connection", "checkout", "model"]]);
}

type Rule = fn(&Source) -> Vec<String>;

#[track_caller]
fn assert_none(sources: &[Source], rule: Rule) {
    let found: Vec<_> = sources.iter().flat_map(rule).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn upward(source: &Source) -> Vec<String> {
    let from = room(source);
    let mine = layer(from).unwrap_or(0);
    paths(source)
        .into_iter()
        .filter_map(|path| {
            let to = path.strip_prefix("crate::")?.split("::").next()?.to_owned();
            // What is no room is re-exported by lib.rs, or is all there is.
            let to = if layer(&to).is_some() { to } else { "lib".to_owned() };
            let above = to != from && layer(&to)? > mine;
            above.then(|| format!("{}: {from} uses {to} above it: {path}", source.path))
        })
        .collect()
}

fn outside_in_wire(source: &Source) -> Vec<String> {
    if room(source) != "wire" {
        return Vec::new();
    }
    let outside = |path: &String| {
        NOT_IN_WIRE.iter().any(|banned| {
            let below = path
                .strip_prefix(banned)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
            // A module that is imported whole brings everything in it, but `std::io` is needed
            // for writing into memory.
            let whole = ["std", "std::time", "std::*", "std::time::*", "std::io::*", "redis::*"];
            below || whole.contains(&path.as_str())
        })
    };
    paths(source)
        .into_iter()
        .filter(outside)
        .map(|path| format!("{}: the protocol core uses {path}", source.path))
        .collect()
}

fn r2d2_elsewhere(source: &Source) -> Vec<String> {
    let named = words(&tokens(&source.text)).any(|word| word == "r2d2");
    let wrong = named && room(source) != "connection";
    wrong.then(|| format!("{}: r2d2 lives in connection/", source.path)).into_iter().collect()
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}
