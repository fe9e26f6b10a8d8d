//! The index from promises to tests: every promise of the page has a test, and every file of tests names its promises.
//!
//! Guarantee: none

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::{files_below, tests_in};

/// What a file names that tests no promise, but the repository.
const NO_GUARANTEE: &str = "none";

/// A file of tests: the promises that its header names, and its tests.
struct Tests {
    file: String,
    header: Option<String>,
    names: Vec<String>,
}

impl Tests {
    fn of(file: &str, code: &str) -> Option<Self> {
        let names: Vec<_> = tests_in(code).into_iter().map(str::to_owned).collect();
        if names.is_empty() {
            return None;
        }
        let header = code.lines().take_while(|line| line.starts_with("//!"));
        let mut named = header.filter_map(|line| line.strip_prefix("//! Guarantee: "));
        let header = named.next().map(str::to_owned).filter(|_| named.next().is_none());
        Some(Self { file: file.to_owned(), header, names })
    }

    fn promises(&self) -> impl Iterator<Item = &str> {
        self.header.iter().flat_map(|header| header.split(", "))
    }
}

/// The promises of the page: its explicit anchors, and its headings of the third level.
fn promised(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in page.lines() {
        let anchors = line.split("<a id=\"").skip(1);
        found.extend(anchors.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        found.extend(line.strip_prefix("### ").map(super::form::anchor_of));
    }
    found
}

/// What is wrong with the headers, given the promises.
fn faults(promises: &[String], files: &[Tests]) -> Vec<String> {
    let mut faults = Vec::new();
    let known: BTreeSet<_> = promises.iter().map(String::as_str).collect();
    if known.len() != promises.len() {
        faults.push("an anchor stands on the page twice".to_owned());
    }
    let mut tested = BTreeSet::new();
    for tests in files {
        if tests.header.is_none() {
            faults.push(format!("{}: its header has not one line \"Guarantee: \"", tests.file));
        }
        for named in tests.promises() {
            if named != NO_GUARANTEE && !known.contains(named) {
                faults.push(format!("{}: the page promises no {named}", tests.file));
            }
            tested.insert(named);
        }
    }
    let untested = known.into_iter().filter(|promise| !tested.contains(promise));
    faults.extend(untested.map(|promise| format!("{promise}: no test")));
    faults
}

/// The index as a page.
fn index(promises: &[String], files: &[Tests]) -> String {
    let mut by_promise: BTreeMap<&str, Vec<&Tests>> = BTreeMap::new();
    for tests in files {
        for named in tests.promises() {
            by_promise.entry(named).or_default().push(tests);
        }
    }
    let mut text = "# The tests of each guarantee\n".to_owned();
    for promise in promises.iter().map(String::as_str).chain([NO_GUARANTEE]) {
        let _ = writeln!(text, "\n## {promise}");
        for Tests { file, names, .. } in by_promise.get(promise).into_iter().flatten() {
            let _ = writeln!(text, "\n`{file}`:\n");
            for name in names {
                let _ = writeln!(text, "* `{name}`");
            }
        }
    }
    text
}

fn all_tests() -> Vec<Tests> {
    let mut files = Vec::new();
    files_below(Path::new("tests"), &mut files);
    let of = |(file, code): &(String, String)| {
        (!file.starts_with("tests/ui/")).then(|| Tests::of(file, code)).flatten()
    };
    files.iter().filter_map(of).collect()
}

/// It also writes the index, which `scripts/guarantees` prints.
#[test]
fn every_promise_has_tests_and_every_file_of_tests_names_promises() {
    let promises = promised(&fs::read_to_string("docs/guarantees.md").unwrap());
    let files = all_tests();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    fs::write(target.join("guarantees.md"), index(&promises, &files)).unwrap();
    let faults = faults(&promises, &files);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let tests: usize = files.iter().map(|tests| tests.names.len()).sum();
    assert!(promises.len() > 30 && files.len() > 180 && tests > 900, "{} {tests}", files.len());
}

#[test]
fn a_promise_without_tests_and_a_file_without_a_promise_are_found() {
    let page = "# P\n\n| <a id=\"one\"></a>`One` | x |\n\n### The second, too\n\n### Third\n";
    let promises = promised(page);
    assert_eq!(promises, ["one", "the-second-too", "third"]);
    let file = |name: &str, header: &str| {
        Tests::of(name, &format!("//! Tests.\n{header}\n#[test]\nfn it_works() {{}}\n"))
    };
    assert!(Tests::of("empty", "//! Guarantee: one\nfn helper() {}\n").is_none());
    let files: Vec<_> = [
        file("a", "//!\n//! Guarantee: one, the-second-too"),
        file("b", "//! Guarantee: fourth"),
        file("c", ""),
        file("d", "//! Guarantee: none"),
        file("e", "//! Guarantee: one\n//! Guarantee: one"),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert_eq!(
        faults(&promises, &files),
        [
            "b: the page promises no fourth",
            "c: its header has not one line \"Guarantee: \"",
            "e: its header has not one line \"Guarantee: \"",
            "third: no test",
        ]
    );
    let index = index(&promises, &files);
    assert!(index.contains("## the-second-too\n\n`a`:\n\n* `it_works`\n"), "{index}");
    let twice = promised("<a id=\"one\"></a>\n### One\n");
    assert_eq!(faults(&twice, &[]).len(), 2);
}
