//! Random data, random conditions, a random write in between: the server and the model agree.
//!
//! Guarantee: conditions

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use crate::side::SessionManager;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRunner};
use redis::Connection;
use rediscope::{Condition, Error, prelude::*};

use rediscope_testing::server::Server;

const SEQUENCES: u32 = 10_000;
const KEYS: [&str; 3] = ["k0", "k1", "k2"];

#[derive(Clone, Debug)]
enum Data {
    Text(String),
    Hash(BTreeMap<u8, u8>),
    List(Vec<u8>),
    Set(BTreeSet<u8>),
    Sorted(BTreeMap<u8, i8>),
    Stream(BTreeSet<u8>),
}

impl Data {
    /// Puts it where nothing is.
    fn write(&self, key: &str) -> redis::Cmd {
        let mut cmd = redis::Cmd::new();
        match self {
            Self::Text(text) => cmd.arg("SET").arg(key).arg(text),
            Self::Hash(fields) => cmd.arg("HSET").arg(key).arg(fields),
            Self::List(list) => {
                cmd.arg("RPUSH").arg(key);
                list.iter().fold(&mut cmd, |cmd, element| cmd.arg(*element))
            }
            Self::Set(set) => {
                cmd.arg("SADD").arg(key);
                set.iter().fold(&mut cmd, |cmd, member| cmd.arg(*member))
            }
            Self::Sorted(scores) => {
                cmd.arg("ZADD").arg(key);
                scores.iter().fold(&mut cmd, |cmd, (member, score)| cmd.arg(*score).arg(*member))
            }
            Self::Stream(_) => unreachable!("an entry is a command"),
        };
        cmd
    }
}

type Model = BTreeMap<usize, Data>;

/// Writes one key again, or deletes it.
fn put(connection: &mut Connection, key: usize, data: Option<&Data>) {
    let name = KEYS[key];
    let mut pipe = redis::pipe();
    pipe.atomic().del(name);
    match data {
        Some(Data::Stream(entries)) => {
            for entry in entries {
                pipe.cmd("XADD").arg(name).arg(format!("{entry}-1")).arg("f").arg("v");
            }
        }
        Some(data) => {
            pipe.add_command(data.write(name));
        }
        // So that it counts as a change, also where it was missing.
        None => {
            pipe.cmd("SET").arg(name).arg("").del(name);
        }
    }
    pipe.exec(connection).unwrap();
}

#[derive(Clone, Copy, Debug)]
enum Question {
    Exists,
    Equals(u8),
    AtLeast(i64),
    TextLen(i64),
    FieldExists(u8),
    FieldEquals(u8, u8),
    FieldAtMost(u8, i64),
    HashLen(i64),
    Index(i64, u8),
    ListLen(i64),
    Member(u8),
    SetLen(i64),
    Ranked(u8),
    ScoreEquals(u8, i8),
    ScoreAtLeast(u8, i8),
    ScoreAtMost(u8, i8),
    SortedLen(i64),
    Entry(u8),
    StreamLen(i64),
}

/// A read of a key, and which result is wanted: `at_least` or the plain one, else `at_most`
/// or its opposite.
#[derive(Clone, Copy, Debug)]
struct Asked {
    key: usize,
    question: Question,
    positive: bool,
}

impl Asked {
    fn condition(self) -> Condition {
        use Condition as C;
        use Question::*;
        let key = KEYS[self.key];
        match (self.question, self.positive) {
            (Exists, true) => C::exists(key),
            (Exists, false) => C::not_exists(key),
            (Equals(value), true) => C::equals(key, value),
            (Equals(value), false) => C::not_equals(key, value),
            (AtLeast(n), true) => C::at_least(key, n),
            (AtLeast(n), false) => C::at_most(key, n),
            (TextLen(n), true) => C::string_len_at_least(key, n),
            (TextLen(n), false) => C::string_len_at_most(key, n),
            (FieldExists(field), true) => C::hash_field_exists(key, field),
            (FieldExists(field), false) => C::hash_field_not_exists(key, field),
            (FieldEquals(field, value), true) => C::hash_field_equals(key, field, value),
            (FieldEquals(field, value), false) => C::hash_field_not_equals(key, field, value),
            (FieldAtMost(field, n), true) => C::hash_field_at_least(key, field, n),
            (FieldAtMost(field, n), false) => C::hash_field_at_most(key, field, n),
            (HashLen(n), true) => C::hash_len_at_least(key, n),
            (HashLen(n), false) => C::hash_len_at_most(key, n),
            (Index(index, value), true) => C::list_index_equals(key, index, value),
            (Index(index, value), false) => C::list_index_not_equals(key, index, value),
            (ListLen(n), true) => C::list_len_at_least(key, n),
            (ListLen(n), false) => C::list_len_at_most(key, n),
            (Member(member), true) => C::set_contains(key, member),
            (Member(member), false) => C::set_not_contains(key, member),
            (SetLen(n), true) => C::set_len_at_least(key, n),
            (SetLen(n), false) => C::set_len_equals(key, n),
            (Ranked(member), true) => C::sorted_set_contains(key, member),
            (Ranked(member), false) => C::sorted_set_not_contains(key, member),
            (ScoreEquals(member, score), _) => {
                C::sorted_set_score_equals(key, member, score.into())
            }
            (ScoreAtLeast(member, score), _) => {
                C::sorted_set_score_at_least(key, member, score.into())
            }
            (ScoreAtMost(member, score), _) => {
                C::sorted_set_score_at_most(key, member, score.into())
            }
            (SortedLen(n), true) => C::sorted_set_len_at_least(key, n),
            (SortedLen(n), false) => C::sorted_set_len_at_most(key, n),
            (Entry(entry), true) => C::stream_contains(key, format!("{entry}-1")),
            (Entry(entry), false) => C::stream_not_contains(key, format!("{entry}-1")),
            (StreamLen(n), true) => C::stream_len_at_least(key, n),
            (StreamLen(n), false) => C::stream_len_equals(key, n),
        }
    }

    /// By the model; `None`: the key is of another type.
    fn holds(self, model: &Model) -> Option<bool> {
        use Question::*;
        let (data, positive) = (model.get(&self.key), self.positive);
        let len = |len: usize, n: i64| {
            let len = i64::try_from(len).unwrap();
            if positive { len >= n } else { len <= n }
        };
        let counter = |text: &str, n: i64| {
            text.parse::<i64>().is_ok_and(|it| if positive { it >= n } else { it <= n })
        };
        macro_rules! of {
            ($kind:ident, $name:ident => $value:expr, else $missing:expr) => {
                match data {
                    None => Some($missing),
                    Some(Data::$kind($name)) => Some($value),
                    Some(_) => None,
                }
            };
        }
        match self.question {
            Exists => Some(data.is_some() == positive),
            Equals(value) => {
                of!(Text, text => (*text == value.to_string()) == positive, else !positive)
            }
            AtLeast(n) => of!(Text, text => counter(text, n), else counter("0", n)),
            TextLen(n) => of!(Text, text => len(text.len(), n), else len(0, n)),
            FieldExists(field) => {
                of!(Hash, hash => hash.contains_key(&field) == positive, else !positive)
            }
            FieldEquals(field, value) => {
                of!(Hash, hash => (hash.get(&field) == Some(&value)) == positive, else !positive)
            }
            FieldAtMost(field, n) => {
                let of = |value: Option<&u8>| counter(&value.map_or(0, |it| *it).to_string(), n);
                of!(Hash, hash => of(hash.get(&field)), else of(None))
            }
            HashLen(n) => of!(Hash, hash => len(hash.len(), n), else len(0, n)),
            Index(index, value) => {
                let at = |list: &[u8]| {
                    let len = i64::try_from(list.len()).unwrap();
                    let index = if index < 0 { len + index } else { index };
                    usize::try_from(index).ok().and_then(|index| list.get(index).copied())
                };
                of!(List, list => (at(list) == Some(value)) == positive, else !positive)
            }
            ListLen(n) => of!(List, list => len(list.len(), n), else len(0, n)),
            Member(member) => of!(Set, set => set.contains(&member) == positive, else !positive),
            SetLen(n) => {
                let of = |it: usize| if positive { len(it, n) } else { it as i64 == n };
                of!(Set, set => of(set.len()), else of(0))
            }
            Ranked(member) => {
                of!(Sorted, sorted => sorted.contains_key(&member) == positive, else !positive)
            }
            ScoreEquals(member, score) => {
                of!(Sorted, sorted => sorted.get(&member) == Some(&score), else false)
            }
            ScoreAtLeast(member, score) => {
                of!(Sorted, sorted => sorted.get(&member).is_some_and(|it| *it >= score), else false)
            }
            ScoreAtMost(member, score) => {
                of!(Sorted, sorted => sorted.get(&member).is_some_and(|it| *it <= score), else false)
            }
            SortedLen(n) => of!(Sorted, sorted => len(sorted.len(), n), else len(0, n)),
            Entry(entry) => {
                of!(Stream, stream => stream.contains(&entry) == positive, else !positive)
            }
            StreamLen(n) => {
                let of = |it: usize| if positive { len(it, n) } else { it as i64 == n };
                of!(Stream, stream => of(stream.len()), else of(0))
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Holds,
    Failed(usize),
    WrongType(usize),
}

fn verdict(asked: &[Asked], model: &Model) -> Verdict {
    for (nth, asked) in asked.iter().enumerate() {
        match asked.holds(model) {
            Some(true) => {}
            Some(false) => return Verdict::Failed(nth),
            None => return Verdict::WrongType(nth),
        }
    }
    Verdict::Holds
}

fn data() -> impl Strategy<Value = Data> {
    let small = || 0_u8..4;
    prop_oneof![
        prop_oneof![
            small().prop_map(|n| n.to_string()),
            prop::sample::select(vec!["", "x", "-2", "1.5", "3 "]).prop_map(str::to_owned),
        ]
        .prop_map(Data::Text),
        prop::collection::btree_map(small(), small(), 1..4).prop_map(Data::Hash),
        prop::collection::vec(small(), 1..4).prop_map(Data::List),
        prop::collection::btree_set(small(), 1..4).prop_map(Data::Set),
        prop::collection::btree_map(small(), -2_i8..3, 1..4).prop_map(Data::Sorted),
        prop::collection::btree_set(1_u8..5, 1..4).prop_map(Data::Stream),
    ]
}

/// Mostly a question that fits what the key holds.
fn asked(of: [Option<u8>; KEYS.len()]) -> impl Strategy<Value = Asked> {
    (0..KEYS.len(), 0_u8..19, 0_u8..10, 0_u8..4, 0_u8..4, -1_i64..5, any::<bool>()).prop_map(
        move |(key, any, stray, a, b, n, positive)| {
            let fitting: &[u8] = match of[key] {
                Some(0) => &[0, 1, 2, 3],
                Some(1) => &[0, 4, 5, 6, 7],
                Some(2) => &[0, 8, 9],
                Some(3) => &[0, 10, 11],
                Some(4) => &[12, 13, 14, 15, 16],
                Some(_) => &[0, 17, 18],
                None => &[],
            };
            let which = match fitting.get(usize::from(any) % fitting.len().max(1)) {
                Some(which) if stray > 0 => *which,
                _ => any,
            };
            let score = i8::try_from(b).unwrap() - 2;
            use Question::*;
            let question = match which {
                0 => Exists,
                1 => Equals(a),
                2 => AtLeast(n),
                3 => TextLen(n),
                4 => FieldExists(a),
                5 => FieldEquals(a, b),
                6 => FieldAtMost(a, n),
                7 => HashLen(n),
                8 => Index(n - 2, a),
                9 => ListLen(n),
                10 => Member(a),
                11 => SetLen(n),
                12 => Ranked(a),
                13 => ScoreEquals(a, score),
                14 => ScoreAtLeast(a, score),
                15 => ScoreAtMost(a, score),
                16 => SortedLen(n),
                17 => Entry(a + 1),
                _ => StreamLen(n),
            };
            Asked { key, question, positive }
        },
    )
}

fn family(data: &Data) -> u8 {
    match data {
        Data::Text(_) => 0,
        Data::Hash(_) => 1,
        Data::List(_) => 2,
        Data::Set(_) => 3,
        Data::Sorted(_) => 4,
        Data::Stream(_) => 5,
    }
}

type Case = (Vec<Option<Data>>, Vec<Asked>, Option<(usize, Option<Data>)>);

fn cases() -> impl Strategy<Value = Case> {
    let stored = prop::collection::vec(prop::option::weighted(0.8, data()), KEYS.len());
    stored.prop_flat_map(|stored| {
        let mut of = [None; KEYS.len()];
        for (slot, data) in of.iter_mut().zip(&stored) {
            *slot = data.as_ref().map(family);
        }
        let meanwhile = (0..KEYS.len(), prop::option::weighted(0.8, data()));
        (Just(stored), prop::collection::vec(asked(of), 1..5), prop::option::of(meanwhile))
    })
}

#[test]
fn whatever_is_required_the_server_and_the_model_agree() {
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let (handle, elsewhere) = (sessions.transactional(), Mutex::new(server.connection()));
    let seen = Mutex::new([0_u32; 4]);
    let config = Config {
        cases: SEQUENCES,
        max_shrink_iters: 2_000,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::XorShift,
        ..Config::default()
    };
    let agreed = TestRunner::new(config).run(&cases(), |(stored, asked, meanwhile)| {
        let mut model = Model::new();
        for (key, data) in stored.iter().enumerate() {
            put(&mut elsewhere.lock().unwrap(), key, data.as_ref());
            model.extend(data.clone().map(|data| (key, data)));
        }
        redis::cmd("DEL").arg("ran").exec(&mut *elsewhere.lock().unwrap()).unwrap();
        let first = verdict(&asked, &model);
        let (mut wanted, mut runs) = (first, 0);
        let held = wanted == Verdict::Holds;
        if let (Verdict::Holds, Some((key, data))) = (&wanted, &meanwhile)
            && asked.iter().any(|asked| asked.key == *key)
        {
            // It is changed under the block, so it is read again.
            model.remove(key);
            model.extend(data.clone().map(|data| (*key, data)));
            wanted = verdict(&asked, &model);
        }
        let mut conditions = asked.iter().map(|asked| asked.condition());
        let required = handle.require(conditions.next().unwrap());
        let required = conditions.fold(required, |required, condition| required.require(condition));
        let reported = required.run(|tx| {
            runs += 1;
            if runs == 1
                && let Some((key, data)) = &meanwhile
            {
                put(&mut elsewhere.lock().unwrap(), *key, data.as_ref());
            }
            Ok(tx.incr("ran", 1))
        });
        let reported = match reported {
            Ok(ran) => {
                prop_assert_eq!(ran, 1);
                Verdict::Holds
            }
            Err(Error::ConditionFailed { index, .. }) => Verdict::Failed(index),
            Err(Error::Command { command, error, .. }) => {
                prop_assert_eq!(error.code(), "WRONGTYPE");
                let (_, which) = command.split_once('#').unwrap();
                Verdict::WrongType(which.split(' ').next().unwrap().parse().unwrap())
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        prop_assert_eq!(&reported, &wanted);
        prop_assert_eq!(runs > 0, held, "the block is run where they hold, and nowhere else");
        let ran: Option<i64> =
            redis::cmd("GET").arg("ran").query(&mut *elsewhere.lock().unwrap()).unwrap();
        prop_assert_eq!(ran, (reported == Verdict::Holds).then_some(1));
        let mut seen = seen.lock().unwrap();
        match reported {
            Verdict::Holds => seen[0] += 1,
            Verdict::Failed(_) => seen[1] += 1,
            Verdict::WrongType(_) => seen[2] += 1,
        }
        seen[3] += u32::from(held && reported != Verdict::Holds || runs > 1);
        Ok(())
    });
    if let Err(failure) = agreed {
        panic!("{failure}");
    }
    let [held, failed, refused, raced] = seen.into_inner().unwrap();
    println!("{held} held, {failed} failed, {refused} refused, {raced} raced");
    assert!(held.min(failed).min(refused).min(raced) > SEQUENCES / 100, "one of them is missing");
    assert_eq!(sessions.status().transactional.counts.all_replaced(), 0);
}
