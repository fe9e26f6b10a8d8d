//! The rights that the documents name, read from them: they are enough, and none of them can be left out.
//!
//! Guarantee: rights

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::thread;

use super::fixture::{RestrictedServer, nothing_is_held};
use super::forms::Form;
use super::probes::{self, Probe};

/// One line of the table.
struct Line {
    letter: String,
    on_top_of: Vec<String>,
    rules: BTreeSet<String>,
}

fn page(name: &str) -> String {
    fs::read_to_string(format!("docs/{name}.md")).unwrap()
}

/// The table of rights, and the line with all of it.
fn rights() -> (Vec<Line>, BTreeSet<String>) {
    let page = page("standalone");
    let lines = page.lines().filter_map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, letter, _, on_top_of, rules, _, _] = cells.as_slice() else { return None };
        let rules = rules.strip_prefix('`')?.split('`').next()?;
        Some(Line {
            letter: (*letter).to_owned(),
            on_top_of: on_top_of.split(", ").filter(|x| !x.is_empty()).map(str::to_owned).collect(),
            rules: words(rules),
        })
    });
    let command = "ACL SETUSER app on >secret resetchannels -@all ";
    let all = page.lines().find_map(|line| line.strip_prefix(command)).unwrap();
    (lines.collect(), words(all))
}

/// The line with all of it, without what a cluster has not.
pub(crate) fn line() -> BTreeSet<String> {
    rights().1.into_iter().filter(|rule| rule != "+select").collect()
}

/// The block of rules in which this one stands.
pub(crate) fn besides(name: &str, rule: &str) -> BTreeSet<String> {
    let page = page(name);
    let has = |line: &&str| line.split(' ').any(|word| word == rule);
    let line = page.lines().filter(|line| line.starts_with(['+', '&'])).find(has);
    words(line.unwrap_or_else(|| panic!("docs/{name}.md has no line of rules with {rule}")))
}

fn words(rules: &str) -> BTreeSet<String> {
    rules.split(' ').map(str::to_owned).collect()
}

impl Line {
    /// Its own rules, and those of the lines that it comes on top of.
    fn closure(&self, lines: &[Self]) -> BTreeSet<String> {
        let below = lines.iter().filter(|line| self.on_top_of.contains(&line.letter));
        below.flat_map(|line| line.closure(lines)).chain(self.rules.iter().cloned()).collect()
    }
}

fn may(fixture: &RestrictedServer, rules: &BTreeSet<String>) {
    let rules: Vec<_> = rules.iter().map(String::as_str).collect();
    fixture.operator(&format!("reset on >secret resetchannels -@all {}", rules.join(" ")));
}

#[test]
fn a_user_with_the_documented_rights_and_no_others_can_do_all_of_it() {
    let (lines, all) = rights();
    let united: BTreeSet<_> = lines.iter().flat_map(|line| line.rules.clone()).collect();
    assert_eq!(all, united, "the one line is the table");
    let fixture = RestrictedServer::start();
    may(&fixture, &all);
    for rest in ["", "?protocol=resp3", "2"] {
        let sessions = fixture.sessions_at(rest, crate::fixture::LONG);
        for form in Form::ALL {
            form.play(&sessions).unwrap_or_else(|error| panic!("{rest} {form:?}: {error}"));
        }
        nothing_is_held(&sessions);
        assert_eq!(sessions.status().transactional.counts.all_replaced(), 0);
    }
}

#[test]
fn each_documented_line_is_enough_for_what_it_is_for_and_no_right_in_it_can_be_left_out() {
    let (lines, _) = rights();
    let mut cases = Vec::new();
    for line in &lines {
        let closure = line.closure(&lines);
        cases.push((line, closure.clone(), None));
        for left_out in &line.rules {
            let rest = closure.iter().filter(|rule| *rule != left_out).cloned().collect();
            cases.push((line, rest, Some(left_out)));
        }
    }
    let cases = Mutex::new(cases);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let fixture = RestrictedServer::start();
                loop {
                    let Some((line, rules, left_out)) = cases.lock().unwrap().pop() else { break };
                    fixture.server.ask::<()>(&["FLUSHALL"]);
                    fixture.server.ask::<()>(&["SCRIPT", "FLUSH"]);
                    may(&fixture, &rules);
                    let failed = first_failure(&fixture, probes::of(&line.letter));
                    match left_out {
                        None => assert_eq!(failed, None, "line {}", line.letter),
                        Some(right) => {
                            assert!(failed.is_some(), "line {} needs no {right}", line.letter);
                        }
                    }
                }
            });
        }
    });
}

fn first_failure(fixture: &RestrictedServer, probes: &[Probe]) -> Option<String> {
    probes.iter().find_map(|probe| probe(fixture).err())
}
