//! Which file of `src` uses which: no circle between files or folders, no I/O in the protocol core, r2d2 in one file.
//!
//! The source is read as tokens, without comments, strings and `#[cfg(test)]` items; each path that begins with
//! `crate`, `super` or `self` is an edge to the file that it leads to. Re-exports are no edges: only `lib.rs`,
//! `prelude.rs` and the `mod.rs` of a folder have them, and no file inside the crate imports through them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

type Module = Vec<String>;
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

#[test]
fn no_files_depend_on_each_other_in_a_circle() {
    let edges = edges(&sources());
    assert!(edges.len() > 100, "only {} files use others", edges.len());
    assert_eq!(circle(edges), None);
}

#[test]
fn no_folders_depend_on_each_other_in_a_circle() {
    assert_eq!(circle(folders(&edges(&sources()))), None);
}

#[test]
fn the_protocol_core_uses_no_socket_no_clock_and_no_thread() {
    let sources = sources();
    assert!(sources.keys().filter(|module| module[0] == "protocol").count() > 20);
    let found: Vec<_> =
        sources.iter().filter(|(module, _)| module[0] == "protocol").flat_map(io_in).collect();
    assert_eq!(found, [""; 0]);
}

#[test]
fn one_file_of_the_pool_names_r2d2() {
    let named = |tokens: &[String]| tokens.iter().any(|token| token == "r2d2");
    let files: Vec<_> = sources().into_iter().filter(|(_, tokens)| named(tokens)).collect();
    let files: Vec<_> = files.iter().map(|(module, _)| module.join("::")).collect();
    assert_eq!(files, ["pool::idle"]);
}

#[test]
fn re_exports_are_in_faces_only() {
    for (module, tokens) in sources() {
        let leads_inside = |at: usize| tokens.get(at + 1).is_some_and(|token| token == "crate");
        let re_exports = (1..tokens.len()).any(|at| {
            tokens[at] == "use" && matches!(&*tokens[at - 1], "pub" | ")") && leads_inside(at)
        });
        let face = matches!(&*module[0], "lib" | "prelude")
            || fs::exists(format!("src/{}/mod.rs", module.join("/"))).unwrap();
        assert!(face || !re_exports, "{} re-exports", module.join("::"));
    }
}

#[test]
fn planted_circles_are_found_and_comments_strings_and_tests_are_none() {
    let found = |b: &str| {
        let a = "use crate::b::{X, inner::Y};".to_owned();
        let sources = [("a", a), ("b", b.to_owned()), ("b::c", "use super::X;".to_owned())];
        let sources = sources
            .map(|(module, text)| (module.split("::").map(str::to_owned).collect(), tokens(&text)));
        circle(edges(&sources.into_iter().collect())).is_some()
    };
    for circular in [
        "use crate::a::Z;",
        "fn f() { crate::a::z() }",
        "use crate::{c, a::{self}};",
        "macro_rules! m { () => { $crate::a::Z } }",
        "fn f() { super::a::z() }",
        "use crate::b::c::Z;",
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
    let io = |text: &str| io_in((&vec!["protocol".to_owned()], &tokens(text))).len();
    assert_eq!(io("fn f() -> Instant { Instant::now() + second }"), 1);
    assert_eq!(io("fn f() { std::thread::sleep(d) }"), 1);
    assert_eq!(io("use std::{fmt, net::TcpStream};"), 1);
    assert_eq!(io("use redis::{Cmd, Connection, Value};"), 1);
    assert_eq!(io("use std::time::{Duration, Instant}; use std::sync::Arc; use redis::Value;"), 0);
}

/// The files of `src` by module, as tokens.
fn sources() -> BTreeMap<Module, Vec<String>> {
    fn walk(folder: &Path, into: &mut Vec<std::path::PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, into) } else { into.push(path) }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&src, &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let module = |path: &Path| {
        let path = path.strip_prefix(&src).unwrap().with_extension("");
        let mut module: Module =
            path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        module
    };
    paths.iter().map(|path| (module(path), tokens(&fs::read_to_string(path).unwrap()))).collect()
}

/// The words and marks of `text`, without comments, the contents of strings and `#[cfg(test)]` items.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    flatten(text.parse().unwrap(), &mut tokens);
    tokens
}

fn flatten(stream: TokenStream, into: &mut Vec<String>) {
    let mut rest = stream.into_iter().peekable();
    while let Some(token) = rest.next() {
        match token {
            TokenTree::Punct(mark)
                if mark.as_char() == '#' && rest.peek().is_some_and(is_cfg_test) =>
            {
                let ends = |token: &TokenTree| match token {
                    TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                    TokenTree::Punct(mark) => mark.as_char() == ';',
                    _ => false,
                };
                rest.by_ref().find(ends);
            }
            TokenTree::Punct(mark) => match into.last_mut() {
                Some(last) if mark.as_char() == ':' && last == ":" => last.push(':'),
                _ => into.push(mark.to_string()),
            },
            TokenTree::Ident(word) => into.push(word.to_string()),
            TokenTree::Literal(_) => {}
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    _ => ("(", ")"),
                };
                into.push(open.to_owned());
                flatten(group.stream(), into);
                into.push(close.to_owned());
            }
        }
    }
}

/// Whether this is the `[cfg(test)]` or the `[cfg(all(test, …))]` of an attribute.
fn is_cfg_test(attribute: &TokenTree) -> bool {
    let text = attribute.to_string().replace(' ', "");
    text.starts_with("[cfg(test") || text.starts_with("[cfg(all(test")
}

/// Every path that begins with one of `roots`, with the groups of `use` taken apart; no re-exports.
fn paths(tokens: &[String], roots: &[&str]) -> Vec<Module> {
    fn tree(tokens: &[String], mut at: usize, mut path: Module, into: &mut Vec<Module>) -> usize {
        while tokens.get(at).is_some_and(|token| token == "::") {
            if tokens[at + 1] == "{" {
                at += 2;
                while tokens[at] != "}" {
                    let mut inner = path.clone();
                    inner.push(tokens[at].clone());
                    at = tree(tokens, at + 1, inner, into);
                    while !matches!(&*tokens[at], "," | "}") {
                        at += 1; // `as` and the name
                    }
                    at += usize::from(tokens[at] == ",");
                }
                return at + 1;
            }
            path.push(tokens[at + 1].clone());
            at += 2;
        }
        into.push(path);
        at
    }
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = roots.contains(&&*tokens[at]) && (at == 0 || tokens[at - 1] != "::");
        let re_export =
            at > 1 && tokens[at - 1] == "use" && matches!(&*tokens[at - 2], "pub" | ")");
        at = match begins && tokens.get(at + 1).is_some_and(|token| token == "::") {
            true if re_export => at + 1,
            true => tree(tokens, at + 1, vec![tokens[at].clone()], &mut found),
            false => at + 1,
        };
    }
    found
}

/// Which file uses which.
fn edges(sources: &BTreeMap<Module, Vec<String>>) -> Edges {
    let mut edges = Edges::new();
    for (module, tokens) in sources {
        for path in paths(tokens, &["crate", "super", "self"]) {
            let mut absolute = if path[0] == "crate" { Module::new() } else { module.clone() };
            for part in &path {
                match &**part {
                    "crate" | "self" => {}
                    "super" => drop(absolute.pop()),
                    _ => absolute.push(part.clone()),
                }
            }
            while !absolute.is_empty() && !sources.contains_key(&absolute) {
                absolute.pop();
            }
            if !absolute.is_empty() && absolute != *module {
                edges.entry(module.join("::")).or_default().insert(absolute.join("::"));
            }
        }
    }
    edges
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
    let paths = paths(tokens, &["std", "core", "redis", "r2d2", "Instant", "SystemTime"])
        .into_iter()
        .map(|path| path.join("::"));
    let is_io = |path: &String| {
        NOT_IN_PROTOCOL.iter().any(|io| path == io || path.starts_with(&format!("{io}::")))
    };
    paths.filter(is_io).map(|path| format!("{} uses {path}", module.join("::"))).collect()
}
