//! Many transactions in a row: memory is flat, and the last cost what the first did.

use std::time::Instant;

use rediscope::SessionManager;

use crate::peers::raw::Socket;
use crate::report::{Spread, thousands};
use crate::server::{Server, Via};
use crate::tens;

/// So many of ours, then so many in raw bytes: short enough for the system to treat both alike.
const TURN: (usize, usize) = (400, 100);
/// To MULTI, the two commands and EXEC.
const REPLIES: usize = 4;

/// The target's line.
pub fn line(server: &Server, count: usize) -> String {
    let sessions =
        SessionManager::builder(server.info(Via::Tcp)).build().expect("settings that work");
    let handle = sessions.transactional();
    let mut raw = Socket::open(server, Via::Tcp);
    let mut two = redis::pipe();
    two.atomic().incr("a:0", 1).incr("b:0", 1);
    let bytes = two.get_packed_pipeline();
    let tenth = count / 10;
    let mut costs = Vec::new();
    let mut memory = Vec::new();
    for _ in 0..10 {
        // Raw bytes take turns with them: the machine itself is not as fast all the time, and least
        // of all where the system moves the thread.
        let turns: Vec<_> = (0..tenth / TURN.0)
            .map(|_| {
                let ours = timed(TURN.0, || tens::run_two(&handle));
                let wire = timed(TURN.1, || {
                    raw.send(&bytes);
                    raw.skip(REPLIES);
                });
                (ours, wire)
            })
            .collect();
        let median = |of: fn(&(f64, f64)) -> f64| {
            Spread::of(turns.iter().map(of).collect()).map_or(f64::NAN, |spread| spread.median)
        };
        costs.push([median(|turn| turn.0), median(|turn| turn.1), median(|turn| turn.0 / turn.1)]);
        memory.push(resident());
    }
    let ratio = costs[9][2] / costs[0][2];
    let grown = match (memory[0], memory[9]) {
        (Some(first), Some(last)) => Some((last - first) / 1024),
        _ => None,
    };
    let flat = grown.is_none_or(|grown| grown <= 1024);
    let same = (0.9..=1.1).contains(&ratio);
    let bold = if flat && same { "" } else { "**" };
    let grown = grown.map_or("not known here".to_owned(), |grown| format!("{grown:+} KiB"));
    format!(
        "| {} transactions | rediscope run | memory from the first tenth to the last; cost of one in \
         raw bytes, in the last tenth, of the first | flat (≤ 1 MiB); 0.9 to 1.1 | \
         {bold}{grown}; {ratio:.2}{bold} ({:.1} of {:.1} µs, {:.1} of {:.1} µs) | {} | |\n",
        thousands(count as f64),
        costs[0][0],
        costs[0][1],
        costs[9][0],
        costs[9][1],
        if flat && same { "met" } else { "**not met**" },
    )
}

/// What one of so many takes, in microseconds.
fn timed(count: usize, mut once: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..count {
        once();
    }
    began.elapsed().as_secs_f64() / count as f64 * 1e6
}

/// The process's memory in bytes, if the system has it.
fn resident() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
