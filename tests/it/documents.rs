//! The documents' claims about themselves: what they name exists, and their advice works.
//!
//! Guarantee: none

mod form;
mod promises;
mod workflow;

use crate::fixture::SOON;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rediscope::error::Applied;
use rediscope::{Error, Ready, SessionManager, Transactional, prelude::*};

use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, try_for};

/// The names of the functions with `#[test]`, and of those to which a macro gives it. What a macro's own text calls a
/// function is no name.
fn tests_in(code: &str) -> BTreeSet<&str> {
    let after_attribute = code.split("#[test]\n").skip(1);
    let of_tokio = code.split("#[tokio::test").skip(1);
    let of_tokio = of_tokio.filter_map(|rest| Some(rest.split_once('\n')?.1));
    let functions = after_attribute.chain(of_tokio).filter_map(|rest| {
        let mut lines = rest.lines().map(str::trim_start);
        let line = lines.find(|line| !line.starts_with("#[") && !line.starts_with("//"))?;
        line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")
    });
    let of = |name| code.split(name).skip(1).filter_map(|rest| rest.split('}').next());
    let rows = of("on_every_topology! {").chain(of("on_each_side! {"));
    let functions = functions.filter_map(|function| function.split('(').next());
    let all = functions.chain(rows.flat_map(str::split_whitespace));
    all.filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).collect()
}

#[test]
fn a_function_without_the_attribute_is_no_test() {
    let code =
        "#[test]\n#[cfg(unix)]\nfn a() {}\nfn b() {}\n    #[test]\n    // Why.\n    fn c() {}";
    let code = format!("{code}\n#[tokio::test(x)]\nasync fn d() {{}}\n#[test]\nfn $e() {{}}");
    assert_eq!(tests_in(&code), BTreeSet::from(["a", "c", "d"]));
}

#[test]
fn the_readme_names_the_features_that_there_are() {
    let readme = fs::read_to_string("README.md").unwrap();
    let (_, named) = readme.split_once("Features: ").unwrap();
    // Up to the end of the sentence. A feature stands before a comma, an address in parentheses.
    let named = named.split(". ").next().unwrap();
    let named: BTreeSet<_> = named
        .match_indices("`, for ")
        .filter_map(|(end, _)| named[..end].rsplit('`').next())
        .collect();
    let named: BTreeSet<_> = named.into_iter().map(str::to_owned).collect();
    assert_eq!(named, features());
}

/// The features of the manifest, but for the default ones.
fn features() -> BTreeSet<String> {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let (_, features) = manifest.split_once("[features]\n").unwrap();
    let names = features
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()));
    names.filter(|name| name != "default").collect()
}

/// A filter that matches no test runs none, and succeeds: a soak would test nothing.
#[test]
fn every_command_line_names_tests_and_features_that_exist() {
    let mut lines = Vec::new();
    for place in ["tests", "testing", "benches", "examples", "docs", "scripts", ".ci"] {
        command_lines(Path::new(place), &mut lines);
    }
    for file in ["README.md", "CONTRIBUTING.md"] {
        command_lines(Path::new(file), &mut lines);
    }
    let (mut filters, features) = (0, features());
    for (place, line) in &lines {
        for named in line.split("--features ").skip(1).filter_map(|rest| rest.split(' ').next()) {
            assert!(features.contains(named), "{place}: {line}");
        }
        let binary = line.split("--test ").nth(1).and_then(|rest| rest.split([' ', '`']).next());
        // Unit tests of the library lie in `tests/unit`.
        let binary = binary.or_else(|| line.contains(" --lib ").then_some("unit"));
        for filter in line.split([' ', '`', '"']).filter(|word| word.ends_with("::")) {
            let module = filter.trim_end_matches("::").replace("::", "/");
            // The suites of tasks are those of threads.
            let folder = match binary.unwrap_or_else(|| panic!("{place}: {line}")) {
                "tasks" => "it",
                binary => binary,
            };
            let file = format!("tests/{folder}/{module}");
            let exists = [format!("{file}.rs"), format!("{file}/mod.rs")];
            let exists = exists.iter().any(|file| Path::new(file).exists());
            assert!(exists || is_module_by_path(&file), "{place}: {line}");
            filters += 1;
        }
    }
    assert!(filters >= 12, "only {filters} of {} lines have a filter", lines.len());
}

/// Whether the module's parent declares it with the path of another file.
fn is_module_by_path(file: &str) -> bool {
    let (parent, module) = file.rsplit_once('/').unwrap();
    let parent = fs::read_to_string(format!("{parent}.rs")).unwrap_or_default();
    parent.split("#[path = \"").skip(1).any(|rest| {
        rest.split_once("]\n").is_some_and(|(_, rest)| rest.starts_with(&format!("mod {module};")))
    })
}

/// The lines with a command of cargo's, with the file that has them.
fn command_lines(place: &Path, lines: &mut Vec<(String, String)>) {
    if place.is_dir() {
        if !place.ends_with("target") && !place.ends_with("ui") {
            for entry in fs::read_dir(place).unwrap() {
                command_lines(&entry.unwrap().path(), lines);
            }
        }
        return;
    }
    let Ok(text) = fs::read_to_string(place) else { return };
    // A text that is continued on the next line is one command.
    let text = text.replace("\\\n", "");
    let commands = ["cargo test ", "cargo bench ", "cargo run "];
    let found = text.lines().filter(|line| commands.iter().any(|command| line.contains(command)));
    lines.extend(found.map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (place.display().to_string(), words.join(" "))
    }));
}

/// The Rust files below a folder: their paths and texts, in order.
fn files_below(folder: &Path, files: &mut Vec<(String, String)>) {
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            files_below(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// As `docs/guarantees.md` has it, with a look into the middle of each attempt.
fn place(shop: &Transactional, mut between: impl FnMut(u32)) -> Result<bool, Error> {
    shop.watch(["placed:1"]).run(|read, tx| {
        let placed = read.exists("placed:1")? > 0;
        between(read.attempt());
        if !placed {
            tx.decr("stock", 1);
            tx.set_ex("placed:1", 1, 86_400);
        }
        Ok(Ready(!placed))
    })
}

/// An order whose EXEC is under way after its call returned that it is in doubt.
struct Late {
    server: Server,
    proxy: Proxy,
    shop: Transactional,
}

fn late() -> Late {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.arm(Script::new().on(Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests).once());
    let doubtful = SessionManager::builder(proxy.url())
        .response_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let error = place(&doubtful.transactional(), |_| {}).unwrap_err();
    assert_eq!(error.applied(), Applied::Unknown, "{error}");
    drop(doubtful);
    let shop = SessionManager::connect(server.url()).unwrap().transactional();
    Late { server, proxy, shop }
}

impl Late {
    fn stock(&self) -> Option<i64> {
        self.server.ask(&["GET", "stock"])
    }

    fn arrives(&self) {
        self.proxy.release();
    }
}

#[test]
fn an_order_in_doubt_that_was_applied_is_found_by_its_mark() {
    let late = late();
    late.arrives();
    eventually(SOON, "the late EXEC is applied", || late.stock() == Some(-1));
    assert!(!place(&late.shop, |_| {}).unwrap());
    assert_eq!(late.stock(), Some(-1));
}

#[test]
fn an_order_in_doubt_that_is_applied_while_it_is_placed_again_is_placed_once() {
    let late = late();
    let mut attempts = 0;
    let placed = place(&late.shop, |attempt| {
        attempts = attempt;
        if attempt == 1 {
            late.arrives();
            eventually(SOON, "the late EXEC is applied", || late.stock() == Some(-1));
        }
    });
    assert_eq!((placed.unwrap(), attempts), (false, 2));
    assert_eq!(late.stock(), Some(-1));
}

#[test]
fn an_order_in_doubt_that_arrives_after_it_was_placed_again_is_not_applied() {
    let late = late();
    assert!(place(&late.shop, |_| {}).unwrap());
    assert_eq!(late.stock(), Some(-1));
    let before = late.server.calls("exec");
    late.arrives();
    eventually(SOON, "the late EXEC arrives", || late.server.calls("exec") > before);
    assert_eq!(late.stock(), Some(-1));
    assert_eq!(
        try_for(Duration::from_millis(50), || (late.stock() != Some(-1)).then_some(())),
        None
    );
}
