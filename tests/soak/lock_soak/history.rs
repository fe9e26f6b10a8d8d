//! The history of a lock as its clients saw it, and what must not be in it.
//!
//! Each client writes an entry before each call and after its result, in one list on a server of
//! its own, which has no faults. The place in the list is the time: an entry before a call is
//! older than the event that made its result true. So no clocks are compared, and a client that was
//! stopped between a result and its entry makes a hold look shorter, never longer.
//!
//! A client surely held the lock from its entry "acquired" to its last check that returned yes.
//!
//! The check is a function of the entries alone, without a server or a clock.
//!
//! Guarantee: locks

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// Maximum number of faults that the report describes.
const DESCRIBED: usize = 20;

/// One entry: of which hold, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) hold: String,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Is about to ask for the lock.
    Wants,
    /// Was given it, with this token.
    Acquired(u64),
    /// Was not given it.
    GaveUp,
    /// Is about to ask whether it still holds it, or to release it.
    Asks,
    Yes,
    No,
    /// There was no result.
    Unanswered,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.what {
            What::Wants => "wants",
            What::Acquired(token) => return write!(f, "{} acquired {token}", self.hold),
            What::GaveUp => "gave-up",
            What::Asks => "asks",
            What::Yes => "yes",
            What::No => "no",
            What::Unanswered => "unanswered",
        };
        write!(f, "{} {word}", self.hold)
    }
}

impl Entry {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let hold = words.next()?.to_owned();
        let what = match words.next()? {
            "wants" => What::Wants,
            "acquired" => What::Acquired(words.next()?.parse().ok()?),
            "gave-up" => What::GaveUp,
            "asks" => What::Asks,
            "yes" => What::Yes,
            "no" => What::No,
            "unanswered" => What::Unanswered,
            _ => return None,
        };
        Some(Self { hold, what })
    }
}

/// What the comparison came to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) holds: usize,
    /// Holds that were surely held for a while.
    pub(crate) sure: usize,
    /// Holds that were reported as lost.
    pub(crate) lost: usize,
    pub(crate) gave_up: usize,
    pub(crate) answers: usize,
    pub(crate) unanswered: usize,
    pub(crate) faults: Vec<String>,
}

/// One hold, as its holder saw it.
#[derive(Debug)]
struct HeldInterval<'a> {
    name: &'a str,
    /// The largest token of any client before the call.
    floor: u64,
    token: Option<u64>,
    acquired: usize,
    asked: Option<usize>,
    sure_until: Option<usize>,
    lost: bool,
}

/// Compares the entries with what a lock of so many permits promises.
pub(crate) fn check(entries: &[Entry], permits: usize) -> Verdict {
    let mut verdict = Verdict::default();
    let (mut holds, mut tokens, mut highest) = (HashMap::new(), HashSet::new(), 0);
    for (at, Entry { hold: name, what }) in entries.iter().enumerate() {
        let hold = holds.entry(name.as_str()).or_insert_with(|| HeldInterval {
            name,
            floor: highest,
            token: None,
            acquired: 0,
            asked: None,
            sure_until: None,
            lost: false,
        });
        match what {
            What::Wants => hold.floor = highest,
            What::GaveUp => verdict.gave_up += 1,
            What::Acquired(token) => {
                verdict.holds += 1;
                (hold.token, hold.acquired) = (Some(*token), at);
                if !tokens.insert(*token) {
                    verdict.fault(format!("{name} has a token that another one had: {token}"));
                }
                if *token <= hold.floor {
                    let floor = hold.floor;
                    verdict.fault(format!("{name} has {token}; it was {floor} before the call"));
                }
                highest = highest.max(*token);
            }
            What::Asks => hold.asked = Some(at),
            What::Yes => {
                verdict.answers += 1;
                if hold.lost {
                    verdict.fault(format!("{name} holds it again after it had lost it"));
                }
                match (hold.token, hold.asked.take()) {
                    (Some(_), Some(asked)) => hold.sure_until = Some(asked),
                    _ => verdict.fault(format!("{name} has a result without a call")),
                }
            }
            What::No => {
                verdict.answers += 1;
                verdict.lost += usize::from(!std::mem::replace(&mut hold.lost, true));
            }
            What::Unanswered => verdict.unanswered += 1,
        }
    }
    let mut sure: Vec<_> = holds.values().filter(|hold| hold.sure_until.is_some()).collect();
    sure.sort_by_key(|hold| hold.acquired);
    verdict.sure = sure.len();
    // The present holders, by the last time at which they surely held it.
    let mut now: BTreeMap<usize, &str> = BTreeMap::new();
    for hold in &sure {
        now = now.split_off(&hold.acquired);
        now.insert(hold.sure_until.unwrap_or_default(), hold.name);
        if now.len() > permits {
            let names: Vec<_> = now.values().collect();
            verdict.fault(format!("{} hold it at once: {names:?}", now.len()));
        }
    }
    if permits == 1 {
        for pair in sure.windows(2) {
            if pair[0].token >= pair[1].token {
                let [first, second] = [pair[0], pair[1]];
                verdict.fault(format!("the token did not grow: {first:?}, then {second:?}"));
            }
        }
    }
    verdict
}

impl Verdict {
    fn fault(&mut self, what: String) {
        if self.faults.len() < DESCRIBED {
            self.faults.push(what);
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.holds += other.holds;
        self.sure += other.sure;
        self.lost += other.lost;
        self.gave_up += other.gave_up;
        self.answers += other.answers;
        self.unanswered += other.unanswered;
        self.faults.extend(other.faults);
    }
}

mod tests {
    use super::{Entry, Verdict, check};

    fn of(lines: &str, permits: usize) -> Verdict {
        let entries: Vec<_> =
            lines.split(';').map(|line| Entry::parse(line.trim()).expect(line)).collect();
        let again = entries.iter().map(|entry| Entry::parse(&entry.to_string()).unwrap());
        assert!(again.eq(entries.iter().cloned()), "what is written is what is read");
        check(&entries, permits)
    }

    #[track_caller]
    fn finds(lines: &str, permits: usize, what: &str) {
        let faults = of(lines, permits).faults;
        assert!(faults.iter().any(|fault| fault.contains(what)), "not found: {faults:?}");
    }

    const TURNS: &str = "a wants; b wants; a acquired 5; a asks; a yes; a asks; b acquired 7; \
                         a no; b asks; b yes; c wants; b asks; b yes; c acquired 8; c asks; c yes";

    #[test]
    fn a_history_in_which_one_held_it_after_the_other_has_no_fault() {
        let verdict = of(TURNS, 1);
        assert!(verdict.faults.is_empty(), "{:?}", verdict.faults);
        assert_eq!((verdict.holds, verdict.sure, verdict.lost, verdict.answers), (3, 3, 1, 5));
    }

    #[test]
    fn two_holders_at_once_are_found() {
        let planted = TURNS.replace("a no", "a yes");
        // Its last question was put before the other one had it.
        assert!(of(&planted, 1).faults.is_empty());
        let planted = TURNS.replace("a no", "a no; d wants; d acquired 9; d asks; d yes");
        let planted = planted.replace("c wants", "c wants; d asks; d yes");
        finds(&planted, 1, "2 hold it at once");
        finds(&TURNS.replace("a no; b asks", "a asks; a yes; b asks"), 1, "2 hold it at once");
    }

    #[test]
    fn one_holder_of_a_semaphore_too_many_is_found_and_not_one_less() {
        let three = "a wants; b wants; c wants; a acquired 1; b acquired 2; c acquired 3; \
                     a asks; b asks; c asks; c yes; b yes; a yes";
        assert!(of(three, 3).faults.is_empty());
        finds(three, 2, "3 hold it at once");
    }

    #[test]
    fn a_token_that_does_not_grow_is_found() {
        finds(&TURNS.replace('8', "6"), 1, "it was 7 before the call");
        finds(&TURNS.replace('8', "7"), 1, "another one had");
        // Both had called before, so only the order of holding decides.
        finds(&TURNS.replace('5', "9"), 1, "the token did not grow");
    }

    #[test]
    fn a_lock_that_is_held_again_after_it_was_lost_is_found() {
        finds(&TURNS.replace("a no", "a no; a asks; a yes"), 1, "holds it again");
    }

    #[test]
    fn a_reply_without_a_request_is_found() {
        finds("a asks; a yes", 1, "a result without a call");
        finds("a wants; a acquired 1; a yes", 1, "a result without a call");
    }
}
