//! How a doubt is resolved: at once, late, again, by several threads, while EXEC arrives.
//!
//! All results are kept; none is preferred.

use std::thread;
use std::time::Duration;

use fastrand::Rng;
use redis::Value;
use rediscope::SessionManager;
use rediscope::error::{InDoubt, Resolution};

use super::operations::{Plan, count_key, counts_key, set, tag};
use super::worker::{Shared, sessions};

/// By what a doubt is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// As the library does it.
    WatchedRegister,
    /// By a key that the transaction writes besides: what is not there was not applied.
    Marker,
    /// By the register, as the master has it that the transaction was sent to: what is not there
    /// was not applied.
    OldOwner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Manner {
    AtOnce,
    Late,
    Repeated,
    Together,
    /// While what was held is let go.
    Racing,
    /// Not before all the others are over.
    AtTheEnd,
}

impl Manner {
    pub(crate) const ALL: [Self; 6] =
        [Self::AtOnce, Self::Late, Self::Repeated, Self::Together, Self::Racing, Self::AtTheEnd];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::AtOnce => "at once",
            Self::Late => "1 to 12 ms late",
            Self::Repeated => "three times",
            Self::Together => "by 2 to 4 threads, two session managers",
            Self::Racing => "while what was held is let go",
            Self::AtTheEnd => "at the end only",
        }
    }

    pub(crate) fn any(random: &mut Rng) -> Self {
        Self::ALL[random.usize(..Self::ALL.len())]
    }
}

/// Asks in this manner. `stranger` is a session manager of which the transaction was not, and
/// `let_go` lets held requests go.
pub(crate) fn ask(
    doubt: &InDoubt,
    manner: Manner,
    stranger: &SessionManager,
    random: &mut Rng,
    let_go: &(dyn Fn() + Sync),
) -> Vec<Resolution> {
    let token = doubt.token().expect("every transaction here is exactly once");
    match manner {
        Manner::AtOnce => vec![doubt.resolve()],
        Manner::Late => {
            // It waits for nothing: a resolver that comes late is what is tested.
            thread::sleep(Duration::from_micros(random.u64(1_000..12_000)));
            vec![doubt.resolve()]
        }
        Manner::Repeated => vec![doubt.resolve(), stranger.resolve(token, None), doubt.resolve()],
        Manner::Together => thread::scope(|scope| {
            let askers: Vec<_> = (0..random.usize(2..=4))
                .map(|nth| {
                    scope.spawn(move || match nth % 2 {
                        0 => doubt.resolve(),
                        _ => stranger.resolve(token, None),
                    })
                })
                .collect();
            askers.into_iter().map(|asker| asker.join().expect("a resolver panicked")).collect()
        }),
        Manner::Racing => thread::scope(|scope| {
            scope.spawn(let_go);
            vec![doubt.resolve(), stranger.resolve(token, None)]
        }),
        Manner::AtTheEnd => Vec::new(),
    }
}

/// Resolves by a wrong rule.
pub(crate) fn take(rule: Rule, doubt: &InDoubt, plan: Plan, shared: &Shared) -> Resolution {
    let there = match rule {
        Rule::WatchedRegister => return doubt.resolve(),
        Rule::Marker => {
            let sessions = sessions(shared.target.url(), "marker");
            let mut db = sessions.pooled();
            let counts = counts_key(&tag(plan.worker, set(plan.id)));
            let found = match plan.fresh {
                true => redis::cmd("EXISTS").arg(count_key(plan.id)).query(&mut db),
                false => redis::cmd("HEXISTS").arg(counts).arg(plan.id).query(&mut db),
            };
            sessions.close(Duration::ZERO);
            found.expect("a node serves the slot")
        }
        Rule::OldOwner => {
            let token = doubt.token().expect("every transaction here is exactly once");
            let asked = shared.target.at(&token.address, |server| {
                let mut pipe = redis::pipe();
                pipe.cmd("PEXPIRE").arg(&token.register).arg(3_600_000).ignore();
                pipe.cmd("GET").arg(&token.register);
                pipe.query::<Vec<Value>>(&mut server.connection())
            });
            let number = token.number.to_string();
            asked.is_ok_and(|found| found == [Value::BulkString(number.into_bytes())])
        }
    };
    if there { Resolution::Committed } else { Resolution::NotCommitted }
}
