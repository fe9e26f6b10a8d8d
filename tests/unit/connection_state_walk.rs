//! Follows every path through the states of a server, by the table `connection_state.tsv`, in any order of
//! commands: a connection that counts as clean is clean on the server.
//!
//! The table is recorded from a server, and compared with it, by
//! `tests/it/properties/server_table.rs`.
//!
//! Guarantee: clean-connections

use std::collections::BTreeSet;

use super::*;

const TABLE: &str = include_str!("connection_state.tsv");

/// One row: the effect of a step in one state of the server.
struct Row {
    from: &'static str,
    command: &'static str,
    reply: Option<Reply>,
    to: &'static str,
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let [from, step, reply, to] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let resp = match reply {
            "-" => None,
            reply => Some(redis::parse_redis_value(format!("{reply}\r\n").as_bytes()).unwrap()),
        };
        let command = step.strip_prefix("denied ").unwrap_or(step);
        Row { from, command, reply: resp.map(Reply::from), to }
    };
    TABLE.lines().map(row).collect()
}

impl Row {
    fn is_in(&self, fact: &str) -> bool {
        self.from.split('+').any(|word| word == fact)
    }

    /// The kinds of reply that the command may be sent with. A single command may meet a MULTI, and
    /// one that is meant to be queued may meet none if MULTI was rejected.
    fn expects(&self) -> &'static [Expect] {
        match self.command {
            "WATCH" | "WATCH k" => &[Expect::Watch],
            "UNWATCH" => &[Expect::Unwatch],
            "MULTI" => &[Expect::Multi],
            "EXEC" => &[Expect::Exec],
            "DISCARD" => &[Expect::Discard],
            _ => &[Expect::Queued, Expect::Plain],
        }
    }

    /// Whether the connection may be tainted after it, although the server has it clean.
    fn is_odd(&self, expect: Expect) -> bool {
        let in_multi = self.is_in("multi");
        let refused = self.reply.as_ref().is_some_and(Reply::is_refused);
        match expect {
            Expect::Queued | Expect::Exec => !in_multi,
            Expect::Unwatch => in_multi || refused,
            Expect::Discard => refused,
            _ => false,
        }
    }
}

/// The commands sent and the replies so far.
type Path = Vec<(Expect, Reply)>;

fn after(path: &Path) -> ConnectionState {
    let mut state = ConnectionState::default();
    for (expect, reply) in path {
        state.sending(*expect, 1);
        assert!(!state.is_clean(), "clean before {expect:?} had its reply");
        state.reply(reply);
    }
    state
}

/// The same commands in one write.
fn after_one_write(path: &Path) -> ConnectionState {
    let mut state = ConnectionState::default();
    path.iter().for_each(|(expect, _)| state.sending(*expect, 1));
    for (expect, reply) in path {
        assert!(!state.is_clean(), "clean before {expect:?} had its reply");
        state.reply(reply);
    }
    state
}

fn check(state: &ConnectionState, server: &str, is_odd: bool, path: &Path) {
    let has = |fact: &str| server.split('+').any(|word| word == fact);
    let (multi, watching) = (has("multi"), has("watching"));
    if state.is_clean() {
        assert!(!multi && !watching, "clean, and the server has it {server}: {path:?}");
    } else if !is_odd {
        assert_eq!(state.tainted(), None, "nothing odd happened: {path:?}");
        assert!(multi || watching, "a clean connection was not recognised: {path:?}");
    }
    if !is_odd {
        let known = (state.is_in_multi(), state.is_watching());
        assert_eq!(known, (multi, watching), "the server has it {server}: {path:?}");
    }
}

#[test]
fn a_connection_never_counts_as_clean_while_the_server_has_it_in_multi_or_watching() {
    let rows = rows();
    let mut seen = BTreeSet::new();
    let mut todo = vec![("idle", false, Path::new())];
    let mut tainted = 0;
    while let Some((server, is_odd, path)) = todo.pop() {
        let state = after(&path);
        if !seen.insert((server, is_odd, format!("{state:?}"))) {
            continue;
        }
        for row in rows.iter().filter(|row| row.from == server) {
            let Some(reply) = &row.reply else {
                todo.push((row.to, is_odd, path.clone()));
                continue;
            };
            for expect in row.expects() {
                let is_odd = is_odd || row.is_odd(*expect);
                let mut path = path.clone();
                path.push((*expect, reply.clone()));
                let state = after(&path);
                check(&state, row.to, is_odd, &path);
                let at_once = after_one_write(&path);
                assert_eq!(format!("{at_once:?}"), format!("{state:?}"), "{path:?}");
                match state.tainted() {
                    Some(_) => tainted += 1,
                    None => todo.push((row.to, is_odd, path)),
                }
            }
        }
    }
    // Every state of the server was reached, and some paths ended.
    let states: BTreeSet<_> = rows.iter().map(|row| row.from).collect();
    assert_eq!(seen.iter().map(|seen| seen.0).collect::<BTreeSet<_>>(), states);
    assert!(tainted > 20, "{tainted}");
}

#[test]
fn an_exec_that_the_server_does_not_know_is_no_proof_that_multi_is_over() {
    let value = |resp: &[u8]| Reply::from(redis::parse_redis_value(resp).unwrap());
    let path = vec![
        (Expect::Multi, value(b"+OK\r\n")),
        (Expect::Queued, value(b"+QUEUED\r\n")),
        (Expect::Exec, value(b"-ERR unknown command 'EXEC', with args beginning with: \r\n")),
    ];
    assert_eq!(after(&path).tainted(), Some(CloseReason::LeftDirty));
}
