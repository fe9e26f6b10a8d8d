//! `scripts/words` finds each name that is not used any more, and too many vague words.
//!
//! Guarantee: none

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A tree that holds the script and these files.
fn tree(files: &[(&str, &str)]) -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/words");
    std::fs::create_dir(tree.path().join("scripts")).unwrap();
    std::fs::copy(script, tree.path().join("scripts/words")).unwrap();
    for (path, text) in files {
        let path = tree.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    tree
}

fn run(root: &Path, arguments: &[&str]) -> Output {
    Command::new("bash").arg(root.join("scripts/words")).args(arguments).output().unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_tree_of_plain_words_passes() {
    let tree = tree(&[
        ("src/pool.rs", "/// A hub for lanes: a gate by a gate, opening by opening.\n"),
        ("README.md", "The stockholder pins one connection.\n"),
    ]);
    let output = run(tree.path(), &[]);
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn a_name_that_is_not_used_any_more_fails_with_its_place() {
    for (path, line, name) in [
        ("src/pool.rs", "let openings = 1;", "openings"),
        ("src/lock/mod.rs", "//! One\nstruct Courier;", "courier"),
        ("docs/operations.md", "is a knob of", "knob"),
        ("benches/micro/a.rs", "sessions.pins()", "pins()"),
        ("examples/basic/src/bin/a.rs", "guard.again()", ".again()"),
        ("tests/it/a.rs", "mod stage;", "mod stage"),
        ("src/a.rs", "fn ask_couriers() {}", "couriers"),
        ("src/a.rs", "struct SlotAtlas;", "atlas"),
        ("tests/it/knobs.rs", "", "knobs"),
        ("tests/it/words/words.rs", "struct Hub;", "Hub"),
        ("scripts/a", "# knob", "knob"),
        ("Makefile", "chores:", "chores"),
        ("src/a.rs", "struct Parcels<'a>;", "Parcels"),
        ("src/a.rs", "pub(crate) struct Ticket {", "struct Ticket"),
    ] {
        let tree = tree(&[(path, line)]);
        let output = run(tree.path(), &[]);
        let text = printed(&output);
        assert!(!output.status.success(), "{path}: {line}");
        assert!(text.lines().any(|l| l.starts_with(path) && l.ends_with(name)), "{line}:\n{text}");
    }
}

#[test]
fn a_name_that_is_ordinary_elsewhere_fails_in_src_only() {
    let elsewhere = tree(&[("tests/it/a.rs", "fn judge() {}")]);
    assert!(run(elsewhere.path(), &[]).status.success());
    let in_src = tree(&[("src/a.rs", "fn judge() {}")]);
    assert!(!run(in_src.path(), &[]).status.success());
}

#[test]
fn vague_words_fail_beyond_their_limit_only() {
    let vague = ["wh", "o"].concat();
    for (path, text) in [
        ("src/a.rs", format!("// {vague} {vague}\n").repeat(20)),
        ("README.md", format!("{vague}, ").repeat(40)),
        (
            "tests/it/a.rs",
            format!("    pub(crate) fn by_{vague}_it_is() {{}} // {vague}\n").repeat(40),
        ),
    ] {
        let at_limit = tree(&[(path, &text)]);
        let output = run(at_limit.path(), &[]);
        assert!(output.status.success(), "{path}:\n{}", printed(&output));
        let beyond = tree(&[(path, &text), ("examples/basic/src/a.rs", &format!("// {vague}"))]);
        let output = run(beyond.path(), &[]);
        assert!(!output.status.success(), "{path}");
        assert!(printed(&output).contains("41  in all"), "{path}:\n{}", printed(&output));
    }
}

#[test]
fn a_folder_is_searched_alone() {
    let tree = tree(&[("src/a.rs", "struct Courier;"), ("docs/a.md", "a knob")]);
    let text = printed(&run(tree.path(), &["docs"]));
    assert!(text.contains("docs/a.md:1:knob") && !text.contains("Courier"), "{text}");
}

#[test]
fn a_path_that_does_not_exist_fails() {
    let tree = tree(&[("src/a.rs", "fn a() {}\n")]);
    assert!(run(tree.path(), &["src"]).status.success());
    assert!(!run(tree.path(), &["scr"]).status.success());
}
