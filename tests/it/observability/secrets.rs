//! Keys, values and passwords are in nothing that is shown.
//!
//! Guarantee: reports

use std::fmt;
use std::time::Duration;

use rediscope::{
    Condition, Error, Outcome, Pooled, Queued, RetryPolicy, SessionManager, TransactionOptions,
    Transactional, prelude::*, redis,
};

use super::listen::Seen;
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;

#[test]
fn keys_values_and_passwords_appear_nowhere() {
    rediscope_testing::own_process!();
    let server = Server::with(&["--requirepass", secret::PASSWORD]);
    server.acl(&["SETUSER", "app", "on", &format!(">{}", secret::PASSWORD), "~*", "+@all"]);
    let proxy = Proxy::to(&server);
    let everywhere = Seen::everywhere();
    let mut shown = Shown::default();
    let url = |password: &str| format!("redis://app:{password}@{}/", proxy.address());
    let builder = SessionManager::builder(url(secret::PASSWORD))
        .connect_timeout(Duration::from_millis(200))
        .response_timeout(Duration::from_millis(300))
        .checkout_timeout(Duration::from_millis(900))
        .max_size(2)
        .pin_warning(Some(Duration::from_millis(5)));
    shown.see("builder", &builder);
    let sessions = builder.build().unwrap();
    let (db, accounts) = (sessions.pooled(), sessions.transactional());
    shown.see("sessions", &sessions);
    shown.see("pooled", &db);
    shown.see("transactional", &accounts);

    guards_show_nothing(&accounts, &mut shown);
    refusals_show_nothing(db.clone(), &accounts, &mut shown);
    losses_show_nothing(db, &accounts, &proxy, &mut shown);

    let wrong = format!("{}-wrong", secret::PASSWORD);
    let wrong = SessionManager::connect(url(&wrong)).unwrap();
    shown.error("wrong password", &wrong.transactional().begin().unwrap_err());
    shown.see("wrong password", &wrong.status());
    let garbled = format!("redis://app:{}@[nowhere", secret::PASSWORD);
    shown.error("garbled address", &SessionManager::connect(garbled.as_str()).unwrap_err());
    let garbled = format!("redis://127.0.0.1/{}", secret::PASSWORD);
    shown.error("garbled database", &SessionManager::connect(garbled.as_str()).unwrap_err());

    shown.see("status", &sessions.status());
    shown.text("status", sessions.status().to_string());
    for recorded in everywhere.all() {
        shown.text("recorded", format!("{recorded:?}"));
    }
    shown.assert_clean();
}

#[test]
fn the_search_for_secrets_finds_a_planted_one() {
    rediscope_testing::own_process!();
    for planted in [
        format!("{:?}", redis::cmd("SET").arg(secret::KEY).arg(1)),
        format!("{:?}", secret::VALUE.as_bytes()),
        format!("{:x?}", secret::VALUE.as_bytes()),
        format!("redis://app:{}@localhost/", secret::PASSWORD),
    ] {
        let mut shown = Shown::default();
        shown.text("planted", planted.clone());
        assert!(shown.found().len() == 1, "not found in {planted}");
    }
}

/// Words that must not be found.
mod secret {
    pub(crate) const KEY: &str = "zebra-key";
    pub(crate) const VALUE: &str = "quartz-value";
    pub(crate) const PASSWORD: &str = "walrus-password";
}

fn guards_show_nothing(accounts: &Transactional, shown: &mut Shown) {
    let condition = Condition::equals(secret::KEY, secret::VALUE);
    shown.see("condition", &condition);
    let required = accounts.require(condition);
    shown.see("conditional", &required);
    shown.error("condition", &required.run(|tx| Ok(tx.set(secret::KEY, 1))).unwrap_err());
    let mut tx = accounts.begin().unwrap();
    let wrote = tx.set(secret::KEY, secret::VALUE);
    let read: Queued<String> = tx.get(secret::KEY);
    shown.see("transaction", &tx);
    let mut part = tx.savepoint();
    part.set(secret::KEY, secret::VALUE);
    shown.see("savepoint", &part);
    part.release();
    shown.see("queued", &(wrote, read));
    let replies = tx.commit().unwrap();
    shown.see("replies", &replies);
    assert_eq!(replies.get(read).unwrap(), secret::VALUE);
    shown.error("unexpected", &replies.get(read.cast::<i64>()).unwrap_err());

    accounts
        .run(|tx| {
            tx.set(secret::KEY, secret::VALUE);
            shown.see("block", tx);
            Ok(())
        })
        .unwrap();

    let watch = accounts.watch([secret::KEY]);
    shown.see("watch", &watch);
    let mut watching = watch.begin().unwrap();
    let read: String = watching.get(secret::KEY).unwrap();
    assert_eq!(read, secret::VALUE);
    shown.error("decode", &watching.get::<_, i64>(secret::KEY).unwrap_err());
    shown.see("watching", &watching);
    let mut tx = watching.multi();
    tx.set(secret::KEY, secret::VALUE);
    shown.see("watched transaction", &tx);
    let outcome = tx.commit().unwrap();
    shown.see("outcome", &outcome);
    assert!(matches!(outcome, Outcome::Committed(_)));
}

fn refusals_show_nothing(mut db: Pooled, accounts: &Transactional, shown: &mut Shown) {
    use secret::{KEY, VALUE};
    let mut one = |what: &str, cmd: redis::Cmd| {
        let error = Error::from(cmd.exec(&mut db).unwrap_err());
        shown.error(what, &error);
        let queued = accounts.run(|tx| Ok(tx.queue::<()>(cmd)));
        shown.error(what, &queued.unwrap_err());
    };
    // A command's own name is shown, everything behind it is not.
    let script = format!("return redis.error_reply('{VALUE} is wrong')");
    let worse = format!("return redis.call('INCR', '{KEY}')");
    one("wrong type", redis::cmd("LPUSH").arg(KEY).arg(VALUE).take());
    one("no integer", redis::cmd("INCR").arg(KEY).take());
    one("unknown command", redis::cmd("NOSUCH").arg(KEY).arg(VALUE).take());
    one("unknown subcommand", redis::cmd("CLIENT").arg(VALUE).take());
    one("wrong arity", redis::cmd("GET").arg(KEY).arg(VALUE).take());
    one("syntax", redis::cmd("SET").arg(KEY).arg(VALUE).arg(VALUE).take());
    one("script", redis::cmd("EVAL").arg(script).arg(0).take());
    one("script", redis::cmd("EVAL").arg(worse).arg(0).take());
    one("script", redis::cmd("EVAL").arg(format!("{VALUE} !")).arg(0).take());
    one("refused", redis::cmd("SELECT").arg(VALUE).take());
    one("refused", redis::cmd("CLIENT").arg("KILL").arg(VALUE).take());
    shown.error("decode", &Error::from(db.get::<_, i64>(KEY).unwrap_err()));
    shown.text("decode", format!("{:?}", db.get::<_, i64>(KEY).map_err(Error::from)));
}

fn losses_show_nothing(mut db: Pooled, accounts: &Transactional, proxy: &Proxy, shown: &mut Shown) {
    use secret::{KEY, VALUE};
    for fault in [Fault::Cut, Fault::Reset, Fault::BlackHole] {
        proxy.arm((Trigger::InsideCommandNamed("SET", 20), fault));
        shown.error("lost", &Error::from(db.set::<_, _, ()>(KEY, VALUE).unwrap_err()));
        let lost = accounts.with(TransactionOptions::new().retry(RetryPolicy::never()));
        shown.error("lost", &lost.run(|tx| Ok(tx.set(KEY, VALUE))).unwrap_err());
        proxy.disarm();
        proxy.cut_all();
        proxy.arm((Trigger::BeforeReplyTo("EXEC"), fault));
        shown.error("in doubt", &lost.run(|tx| Ok(tx.set(KEY, VALUE))).unwrap_err());
        proxy.disarm();
        proxy.cut_all();
    }
    let (first, second) = (accounts.begin().unwrap(), accounts.begin().unwrap());
    shown.error("timeout", &accounts.begin().unwrap_err());
    drop((first, second));
}

/// Everything that was shown.
#[derive(Default)]
struct Shown(Vec<(String, String)>);

impl Shown {
    fn see(&mut self, what: &str, shown: &impl fmt::Debug) {
        self.text(what, format!("{shown:?}"));
        self.text(what, format!("{shown:#?}"));
    }

    fn text(&mut self, what: &str, text: String) {
        self.0.push((what.to_owned(), text));
    }

    /// With every source behind it.
    fn error(&mut self, what: &str, error: &(dyn std::error::Error + 'static)) {
        let mut next = Some(error);
        while let Some(error) = next {
            self.text(what, format!("{error} {error:?} {error:#?}"));
            next = error.source();
        }
    }

    fn found(&self) -> Vec<String> {
        let words = [secret::KEY, secret::VALUE, secret::PASSWORD];
        let signs: Vec<String> = words
            .iter()
            .flat_map(|word| {
                let word = word.split('-').next().unwrap();
                let numbers = format!("{:?}", word.as_bytes());
                let pretty = format!("{:#?}", word.as_bytes()).split_whitespace().collect();
                let hex = format!("{:x?}", word.as_bytes());
                let inner = |list: String| list.trim_matches(['[', ']']).to_owned();
                [word.to_owned(), inner(numbers), inner(pretty), inner(hex)]
            })
            .collect();
        let holds = |text: &String| {
            let text = &text.to_lowercase();
            let dense: String = text.split_whitespace().collect();
            signs
                .iter()
                .any(|sign| text.contains(sign) || dense.contains(sign.trim_end_matches(',')))
        };
        self.0
            .iter()
            .filter(|(_, text)| holds(text))
            .map(|(what, text)| format!("{what}: {text}"))
            .collect()
    }

    #[track_caller]
    fn assert_clean(&self) {
        let found = self.found();
        assert!(found.is_empty(), "{} of {}:\n{}", found.len(), self.0.len(), found.join("\n"));
    }
}
