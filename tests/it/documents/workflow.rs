//! The workflow for a public host: it only calls scripts that the gate runs too.
//!
//! Guarantee: none

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The scripts that the gate is made of, each with its text.
fn gate() -> String {
    let gate = fs::read_to_string(".ci/run").unwrap();
    gate + &fs::read_to_string("scripts/test").unwrap()
}

/// What the steps do: the lines with a dash, without their comments.
fn steps(workflow: &str) -> Vec<&str> {
    let lines = workflow.split(" #").flat_map(str::lines).map(str::trim);
    lines
        .filter_map(|line| line.strip_prefix("- "))
        .filter(|step| !step.starts_with("cron"))
        .collect()
}

/// What is wrong with a step.
fn fault(step: &str, gate: &str) -> Option<String> {
    if step == "uses: actions/checkout@v4" {
        return None;
    }
    let Some(script) = step.strip_prefix("run: ") else {
        return Some(format!("{step}: not one line that runs something"));
    };
    let words: Vec<_> = script.split(' ').collect();
    if !Path::new(words[0]).is_file() {
        return Some(format!("{step}: no script of this repository"));
    }
    let is_gate = [".ci/run", "scripts/test"].contains(&script);
    let calls = |line: &str| {
        let line: Vec<_> = line.split(' ').collect();
        line.windows(words.len()).any(|part| part == words)
    };
    let in_gate = || gate.lines().any(calls);
    (!is_gate && !in_gate()).then(|| format!("{step}: the gate does not run it"))
}

#[test]
fn each_step_of_the_workflow_is_one_script_that_the_gate_runs_too() {
    let workflow = fs::read_to_string(".github/workflows/ci.yml").unwrap();
    let gate = gate();
    let steps = steps(&workflow);
    let faults: Vec<_> = steps.iter().filter_map(|step| fault(step, &gate)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let scripts: BTreeSet<_> = steps.iter().filter_map(|step| step.strip_prefix("run: ")).collect();
    let wanted =
        [".ci/run", "scripts/msrv", "scripts/redis2", "scripts/test", "scripts/matrix --newer"];
    assert!(wanted.iter().all(|script| scripts.contains(script)), "{scripts:?}");
    for name in ["beta", "macos-latest"] {
        assert!(workflow.contains(name), "no job on {name}");
    }
}

#[test]
fn a_step_of_another_kind_is_found() {
    let workflow = "on:\n  - cron: \"1\"\nsteps:\n  - uses: a/b@v1\n  - run: cargo test # why\n  - run: \
                    scripts/gone\n  - run: scripts/words\n  - run: scripts/words x\n  - run: scripts/bench\n  - run: \
                    |\n";
    let steps = steps(workflow);
    let faults: Vec<_> =
        steps.iter().filter_map(|step| fault(step, "check scripts/words")).collect();
    assert_eq!(steps.len(), 7);
    assert_eq!(faults.len(), 6, "{faults:?}");
}
