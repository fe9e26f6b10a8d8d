//! The form of the pages: their sizes, their lines, the files, links, tests and decisions that they name.
//!
//! Guarantee: none

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::{files_below, tests_in};

/// The most lines of a page. The others are bounded by the size of all.
const MOST_LINES: &[(&str, usize)] = &[
    ("architecture", 120),
    ("decisions", 300),
    ("evidence", 200),
    ("guarantees", 250),
    ("locks", 225),
    ("migration", 400),
    ("operations", 400),
    ("performance", 150),
    ("threat-model", 40),
];
/// The most bytes of all pages.
const MOST_BYTES: usize = 140_000;
/// The most characters of a line outside tables and code.
const WIDTH: usize = 120;

/// The pages, by their names without `.md`.
fn pages() -> Vec<(String, String)> {
    let mut pages: Vec<_> = fs::read_dir("docs")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name()?.to_str()?.strip_suffix(".md")?.to_owned();
            Some((name, fs::read_to_string(&path).unwrap()))
        })
        .collect();
    pages.sort();
    assert!(pages.len() >= 12, "{} pages", pages.len());
    pages
}

/// The anchor that a code host and rustdoc give a heading.
pub(super) fn anchor_of(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().trim().replace(' ', "-")
}

/// The anchors of a page.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in outside_code(page) {
        let heading = line
            .split_once(' ')
            .filter(|(marks, _)| !marks.is_empty() && marks.bytes().all(|b| b == b'#'));
        found.extend(heading.map(|(_, heading)| anchor_of(heading)));
        let ids = line.split("<a id=\"").skip(1);
        found.extend(ids.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    }
    found
}

fn outside_code(page: &str) -> Vec<&str> {
    let mut in_code = false;
    let outside = page.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        let outside = !in_code && !fence;
        in_code ^= fence;
        outside
    });
    outside.collect()
}

/// What stands in backticks, outside blocks of code.
fn in_backticks(page: &str) -> Vec<&str> {
    outside_code(page).into_iter().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn no_page_is_longer_than_it_may_be() {
    let pages = pages();
    let mut wrong = Vec::new();
    for (name, most) in MOST_LINES {
        let page = pages.iter().find(|(page, _)| page == name);
        let lines = page.unwrap_or_else(|| panic!("no page {name}")).1.lines().count();
        if lines > *most {
            wrong.push(format!("{name}: {lines} lines, at most {most}"));
        }
    }
    let bytes: usize = pages.iter().map(|(_, page)| page.len()).sum();
    if bytes > MOST_BYTES {
        wrong.push(format!("all pages: {bytes} bytes, at most {MOST_BYTES}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_line_outside_tables_and_code_is_too_long() {
    let mut wrong = Vec::new();
    for (name, page) in pages() {
        let long = outside_code(&page)
            .into_iter()
            .filter(|line| !line.starts_with(['|', '[']) || line.starts_with("[`"))
            .filter(|line| line.chars().count() > WIDTH);
        wrong.extend(long.map(|line| format!("{name}: {line}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_that_a_page_names_exists() {
    const PLACES: &[&str] =
        &["src/", "tests/", "testing/", "benches/", "examples/", "scripts/", "docs/", ".ci/"];
    let (mut found, mut wrong) = (0, Vec::new());
    let tests = ["tests/attacks.md", "tests/soak/figures.md"];
    let tests = tests.map(|file| (file.to_owned(), fs::read_to_string(file).unwrap()));
    for (name, page) in pages().into_iter().chain(tests) {
        for named in in_backticks(&page) {
            let path = named.split(' ').next().unwrap().trim_end_matches(':');
            if PLACES.iter().any(|place| path.starts_with(place)) {
                found += 1;
                if !Path::new(path).exists() {
                    wrong.push(format!("{name}: {path}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 40, "only {found} files are named");
}

#[test]
fn every_attack_has_its_tests() {
    let labels = |file: &str| -> BTreeSet<String> {
        let page = fs::read_to_string(file).unwrap();
        let first = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        let is_label = |cell: &&str| cell.len() > 1 && cell.as_bytes()[1].is_ascii_digit();
        first.filter(is_label).map(str::to_owned).collect()
    };
    let attacks = labels("docs/evidence.md");
    assert!(attacks.len() > 20, "{attacks:?}");
    assert_eq!(attacks, labels("tests/attacks.md"));
}

#[test]
fn every_command_of_make_that_a_page_names_exists() {
    let makefile = fs::read_to_string("Makefile").unwrap();
    let (mut found, mut wrong) = (0, Vec::new());
    for (name, page) in pages() {
        for rest in page.split("make ").skip(1) {
            let target = rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap();
            let is_target = |target: &str| makefile.contains(&format!("\n{target}: ## "));
            if target.contains('-') || ["soak", "bench", "test", "demo"].contains(&target) {
                found += 1;
                if !is_target(target) {
                    wrong.push(format!("{name}: make {target}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 5, "only {found} commands are named");
}

/// The name of a link to a page, at the beginning of a text behind an opening bracket.
fn page_link(text: &str) -> Option<&str> {
    let (name, _) = text.split_once(']')?;
    let file = name.split('#').next()?;
    (file.ends_with(".md") && !name.contains([' ', '`'])).then_some(name)
}

/// A link is `[text][page.md#heading]`, and each page ends with what its links mean on a code host. On the
/// documentation site the definitions of `src/docs/links.md` come first.
#[test]
fn every_link_between_pages_leads_to_a_heading_on_both_sites() {
    let pages = pages();
    let on_site = fs::read_to_string("src/docs/links.md").unwrap();
    let (mut found, mut wrong) = (0, Vec::new());
    for (name, page) in &pages {
        let text = outside_code(page).join("\n");
        if text.contains(".md)") || text.contains(".md#") && text.contains("](") {
            let inline = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            let inline: Vec<_> = inline.filter(|link| link.contains(".md")).collect();
            assert!(inline.is_empty(), "{name}: dead on the site: {inline:?}");
        }
        for link in text.split("](#").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !anchors(page).contains(link) {
                wrong.push(format!("{name}: #{link}"));
            }
        }
        for link in text.split('[').skip(1).filter_map(page_link) {
            found += 1;
            if !page.contains(&format!("\n[{link}]: {link}\n")) {
                wrong.push(format!("{name}: {link} is not defined"));
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = pages.iter().find(|(page, _)| file.trim_end_matches(".md") == page);
            let leads = match target {
                Some((_, page)) => anchor.is_empty() || anchors(page).contains(anchor),
                None => Path::new("docs").join(file).exists() && anchor.is_empty(),
            };
            let module = file.trim_start_matches("../").trim_end_matches(".md");
            let module = module.to_lowercase().replace('-', "_");
            let hash = if anchor.is_empty() { "" } else { "#" };
            let site = format!("[{link}]: crate::docs::{module}{hash}{anchor}\n");
            if !leads || !on_site.contains(&site) {
                wrong.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 40, "only {found} links");
}

/// A picture is `![text][name.svg]`, a file on a code host and a definition of `src/docs/pictures.md` on the site.
#[test]
fn every_picture_is_what_the_script_draws() {
    let drawn = Command::new("scripts/pictures").arg("--check").output().unwrap();
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let on_site = fs::read_to_string("src/docs/pictures.md").unwrap();
    let mut found = 0;
    for (name, page) in pages() {
        for picture in page.split("![").skip(1).filter_map(|rest| rest.split("][").nth(1)) {
            let picture = picture.split(']').next().unwrap();
            found += 1;
            assert!(Path::new("docs").join(picture).exists(), "{name}: {picture}");
            assert!(
                on_site.contains(&format!("[{picture}]: data:image/svg+xml")),
                "{name}: {picture}"
            );
            assert!(page.contains(&format!("\n[{picture}]: {picture}\n")), "{name}: {picture}");
        }
    }
    assert!(found >= 5, "only {found} pictures");
}

#[test]
fn every_cell_about_another_client_has_a_source() {
    let page = fs::read_to_string("docs/comparison.md").unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ")).skip(2);
    let (mut cells, mut wrong) = (0, Vec::new());
    for row in rows {
        let mut parts = row.trim_matches('|').split(" | ").map(str::trim);
        let client = parts.next().unwrap();
        for cell in parts {
            cells += 1;
            let source = cell.split("][").nth(1).and_then(|rest| rest.strip_suffix(']'));
            let known = source.is_some_and(|source| {
                page.contains(&format!("\n[{source}]: https://")) || source.contains(".md")
            });
            if !known {
                wrong.push(format!("{client}: {cell}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cells >= 7 * 7, "only {cells} cells");
}

/// A name of so many words is that of a test.
#[test]
fn every_test_that_a_page_names_exists() {
    let mut files = Vec::new();
    for folder in ["tests", "testing", "src", "examples"] {
        files_below(Path::new(folder), &mut files);
    }
    let tests: BTreeSet<_> = files.iter().flat_map(|(_, code)| tests_in(code)).collect();
    let (mut found, mut wrong) = (0, Vec::new());
    for (name, page) in pages() {
        for named in in_backticks(&page) {
            let plain =
                named.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if plain && named.matches('_').count() >= 4 {
                found += 1;
                if !tests.contains(named) {
                    wrong.push(format!("{name}: {named}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 0, "only {found} tests are named");
}

/// Events in tables and samples of logs, and the reasons of a lost lock. Where a sample has a whole run, `doc_samples`
/// compares it with one.
#[test]
fn every_event_that_a_page_shows_is_in_the_source() {
    let mut files = Vec::new();
    files_below(Path::new("src"), &mut files);
    let source: String = files.into_iter().map(|(_, code)| code).collect();
    // A text that is continued on the next line is one text.
    let source: String = source.split("\\\n").map(str::trim_start).collect();
    let (mut found, mut wrong) = (0, Vec::new());
    for (name, page) in pages() {
        let table = page.split_once("| event | level | fields |").map_or("", |(_, rest)| rest);
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let cells = rows.filter_map(|row| row.split(" | ").next());
        let runbook = page.lines().filter(|line| name == "operations" && line.contains(". `it"));
        let in_tables = cells.chain(runbook).flat_map(|cell| cell.split('`').skip(1).step_by(2));
        let in_samples = page.lines().filter_map(|line| {
            let (level, event) = line.split_once(' ')?;
            let is_log = ["DEBUG", "INFO", "WARN"].contains(&level);
            // Its text ends before the first field.
            let fields = event.find('=').and_then(|at| event[..at].rfind(' '));
            is_log.then(|| event[..fields.unwrap_or(event.len())].trim())
        });
        for event in in_tables.chain(in_samples) {
            let event = event.trim_matches(['…', ' ', ':', ';']);
            found += 1;
            if !source.contains(event) {
                wrong.push(format!("{name}: {event}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 30, "only {found} events");
}

#[test]
fn every_decision_that_is_cited_exists() {
    let page = fs::read_to_string("docs/decisions.md").unwrap();
    let number = |heading: &str| heading.split_once(". ")?.0.parse::<u32>().ok();
    let decisions: Vec<_> =
        page.lines().filter_map(|line| number(line.strip_prefix("## ")?)).collect();
    assert!(decisions.is_sorted() && decisions.len() > 20, "{decisions:?}");
    let mut files = Vec::new();
    for folder in ["src", "tests", "testing", "benches", "examples"] {
        files_below(Path::new(folder), &mut files);
    }
    files.extend(pages().into_iter().map(|(name, page)| (format!("docs/{name}.md"), page)));
    let (mut found, mut wrong) = (0, Vec::new());
    for (file, text) in &files {
        for rest in text.split("ecision ").skip(1) {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let Ok(cited) = digits.parse::<u32>() else { continue };
            found += 1;
            if !decisions.contains(&cited) {
                wrong.push(format!("{file}: decision {cited}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 0, "none is cited");
}

#[test]
fn what_stands_in_code_is_no_line_no_heading_and_no_name() {
    let page = "# One `a_b`, too\n\n```text\n## Two\n`c_d`\n```\n<a id=\"x\"></a>\n";
    assert_eq!(anchors(page), BTreeSet::from(["one-a_b-too".to_owned(), "x".to_owned()]));
    assert_eq!(in_backticks(page), ["a_b"]);
    assert_eq!(outside_code(page).len(), 3);
}
