//! The rights that `docs/sentinel.md` names: on the servers, besides those of one server, and on the
//! sentinels.
//!
//! Guarantee: rights

use crate::fixture::SOON;
use crate::side::{BuildSide as _, SessionManager};
use std::collections::BTreeSet;
use std::time::Duration;

use rediscope::Error;
use rediscope::redis::{self, Commands};

use super::documents::{besides, line};
use super::fixture::{EFFECT_WAIT, nothing_is_held, summary};
use super::forms::{Form, N};
use rediscope_testing::sentinel::Group;
use rediscope_testing::{connect, eventually, try_for};

/// Servers and sentinels whose user `app` has the rights that a test gives.
struct RestrictedGroup {
    group: Group,
}

impl RestrictedGroup {
    fn may(&self, on_servers: &BTreeSet<String>, on_sentinels: &BTreeSet<String>) {
        let user = ["SETUSER", "app", "reset", "on", ">secret", "resetchannels", "-@all"];
        let with = |rules: &BTreeSet<String>| -> Vec<String> {
            user.into_iter().map(str::to_owned).chain(rules.iter().cloned()).collect()
        };
        for server in &self.group.servers {
            let rules = with(on_servers);
            server.acl(&rules.iter().map(String::as_str).collect::<Vec<_>>());
        }
        for sentinel in &self.group.sentinels {
            let mut connection = connect(&sentinel.url());
            redis::cmd("ACL").arg(with(on_sentinels)).exec(&mut connection).unwrap();
        }
    }

    fn sessions(&self) -> SessionManager {
        let url = self.group.url().replace("redis+sentinel://", "redis+sentinel://app:secret@");
        SessionManager::builder(format!("{url}?sentinel_username=app&sentinel_password=secret"))
            .connect_timeout(Duration::from_secs(1))
            .response_timeout(Duration::from_secs(1))
            .checkout_timeout(Duration::from_secs(4))
            .build_side()
            .unwrap()
    }

    /// For how many seconds each of the user's connections has heard of switches.
    fn listeners(&self) -> Vec<u64> {
        let listens = |line: &&str| line.contains(" user=app ") && line.contains(" flags=P ");
        let age = |line: &str| {
            let age = line.split(' ').find_map(|word| word.strip_prefix("age="));
            age.unwrap().parse().unwrap()
        };
        let of = |sentinel: &rediscope_testing::sentinel::Sentinel| {
            let mut connection = connect(&sentinel.url());
            let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
            list.lines().filter(listens).map(age).collect::<Vec<_>>()
        };
        self.group.sentinels.iter().flat_map(of).collect()
    }
}

/// Every one of these, a read from a replica, and a subscription to failovers.
fn all(fixture: &RestrictedGroup, forms: &[Form]) -> Result<(), String> {
    let gone = try_for(SOON, || (fixture.listeners().is_empty()).then_some(()));
    assert!(gone.is_some(), "those of before listen still");
    let sessions = fixture.sessions();
    let words = |error: Error| summary(&error);
    forms.iter().try_for_each(|form| form.play(&sessions)).map_err(words)?;
    let read: redis::RedisResult<Option<i64>> = sessions.replica_reads().get(N);
    read.map_err(|error| summary(&error.into()))?;
    nothing_is_held(&sessions);
    let heard = try_for(EFFECT_WAIT, || (fixture.listeners().len() == 1).then_some(()));
    heard.ok_or_else(|| "no connection hears of switches".to_owned())
}

#[test]
fn the_rights_behind_sentinels_are_enough_and_none_can_be_left_out() {
    let fixture = RestrictedGroup { group: Group::start() };
    let own = besides("sentinel", "+role");
    let servers: BTreeSet<_> = line().union(&own).cloned().collect();
    let sentinels = besides("sentinel", "+sentinel|master");
    fixture.may(&servers, &sentinels);
    all(&fixture, &Form::ALL).unwrap();
    let without = |rules: &BTreeSet<String>, left_out: &String| -> BTreeSet<String> {
        rules.iter().filter(|rule| *rule != left_out).cloned().collect()
    };
    for left_out in &own {
        fixture.may(&without(&servers, left_out), &sentinels);
        let refused = all(&fixture, &[Form::Run]).unwrap_err();
        assert_eq!(refused, "Connect Refused NOPERM, applied No", "{left_out}");
    }
    for left_out in &sentinels {
        fixture.may(&servers, &without(&sentinels, left_out));
        let refused = all(&fixture, &[Form::Run, Form::Single]).unwrap_err();
        let expected = match left_out.as_str() {
            "+subscribe" | "&+switch-master" => "no connection hears of switches",
            _ => "Connect Refused NOPERM, applied No",
        };
        assert_eq!(refused, expected, "{left_out}");
    }
    fixture.may(&servers, &sentinels);
    all(&fixture, &Form::ALL).unwrap();
    // It may not send PING to the sentinel, and the refusal, every two seconds, shows that it lives.
    let sessions = fixture.sessions();
    Form::Run.play(&sessions).unwrap();
    eventually(SOON, "one connection listens", || fixture.listeners().iter().any(|age| *age >= 4));
}
