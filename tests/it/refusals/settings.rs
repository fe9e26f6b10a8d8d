//! `build` refuses settings that cannot work, by the name of the wrong one.
//!
//! Guarantee: settings

use crate::side::BuildSide as _;
use std::time::Duration;

use crate::side::SessionManager;
use rediscope::error::ConfigError;
use rediscope::prelude::*;
use rediscope::{Builder, Credentials, RotatingCredentials};

use rediscope_testing::server::Server;

const SECRET: &str = "S3CRETpassword";

/// What is wrong with an address. Neither way of saying so repeats any of it.
#[track_caller]
fn address(url: &str) -> String {
    let connected = SessionManager::connect(url).map(drop).unwrap_err();
    let built = SessionManager::builder(url).build_side().map(drop).unwrap_err();
    assert_eq!(connected, built);
    assert_eq!(connected.setting_name(), None);
    let ConfigError::Address { reason, .. } = &connected else { panic!("{connected:?}") };
    for text in [connected.to_string(), format!("{connected:?}"), format!("{connected:#?}")] {
        assert!(!text.contains(SECRET) && !text.contains("S3CRET"), "{text}");
        assert!(!text.contains("elsewhere"), "{text}");
    }
    let builder = format!("{:?}", SessionManager::builder(url));
    assert!(!builder.contains("S3CRET"), "{builder}");
    reason.clone()
}

#[test]
fn an_address_that_cannot_be_understood_is_refused_without_being_repeated() {
    for url in [
        "http://:S3CRETpassword@elsewhere/",
        "S3CRETpassword",
        "redis:S3CRETpassword@elsewhere",
        "redis://:S3CRETpassword@elsewhere:port/",
        "redis://:S3CRETpassword@elsewhere:999999/",
        "redis://:S3CRETpassword@elsewhere/first",
        "redis://:S3CRETpassword@elsewhere/-1",
        "redis://:S3CRETpassword@/0",
        "redis://user:S3CRETpassword%ff@elsewhere/",
        "redis://:S3CRETpassword@elsewhere/?protocol=S3CRETprotocol",
        "redis+unix:///elsewhere?db=S3CRETdb&pass=S3CRETpassword",
        "redis+unix:///elsewhere?db=-4&pass=S3CRETpassword",
        "valkey+nothing://:S3CRETpassword@elsewhere/",
        "",
    ] {
        assert!(!address(url).is_empty(), "{url}");
    }
}

#[test]
fn the_refusal_of_an_address_has_the_form_that_it_should_have() {
    for (url, form) in [
        ("", "begins with redis://"),
        ("elsewhere:6379", "begins with redis://"),
        ("http://:S3CRETpassword@elsewhere/", "begins with redis://"),
        ("redis-cluster://:S3CRETpassword@elsewhere/", "redis+cluster://"),
        ("redis:/elsewhere", "begins with redis://"),
        ("redis://:S3CRET/password@elsewhere/", "%2F"),
        ("redis://elsewhere:99999/", "redis://user:password@host:6379/0"),
        ("redis://elsewhere/first", "redis://user:password@host:6379/0"),
        ("redis+unix://elsewhere/redis.sock", "redis+unix:///path"),
        ("redis://:S3CRETpassword@elsewhere,elsewhere:7/", "redis+cluster://host,host/"),
    ] {
        let reason = address(url);
        assert!(reason.contains(form), "{url}: {reason}");
    }
    let several = SessionManager::connect(("elsewhere,elsewhere", 6379)).map(drop).unwrap_err();
    assert!(several.to_string().contains("redis+sentinel://host,host/name"), "{several}");
}

#[test]
#[cfg(not(feature = "tls-rustls"))]
fn an_address_that_needs_tls_fails_with_the_name_of_the_missing_feature() {
    let reason = address("rediss://:S3CRETpassword@elsewhere/");
    assert!(reason.contains("feature `tls-rustls`"), "{reason}");
    let (host, port) = ("elsewhere".to_owned(), 6379);
    let tls = redis::ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
    let error = SessionManager::connect(tls).map(drop).unwrap_err();
    assert!(error.to_string().contains("tls-rustls"), "{error}");
}

/// The setting that is named. Nothing is connected: there is no server here.
#[track_caller]
fn setting(change: impl FnOnce(Builder) -> Builder) -> &'static str {
    let url = format!("redis://:{SECRET}@127.0.0.1:1/");
    let builder = change(SessionManager::builder(url));
    assert!(!format!("{builder:?}").contains(SECRET));
    let error = builder.build_side().map(drop).unwrap_err();
    let setting = error.setting_name().unwrap();
    assert!(error.to_string().starts_with(setting), "{error}");
    assert!(error.to_string().len() > setting.len() + 10, "and why: {error}");
    assert!(!format!("{error:?} {error}").contains(SECRET));
    let outer = rediscope::Error::from(error);
    assert_eq!((outer.applied(), outer.is_retryable()), (rediscope::error::Applied::No, false));
    setting
}

#[test]
fn a_count_of_nothing_is_refused_by_name() {
    assert_eq!(setting(|builder| builder.max_size(0)), "max_size");
    assert_eq!(setting(|builder| builder.flush_bytes(0)), "flush_bytes");
    assert_eq!(setting(|builder| builder.max_commands(0)), "max_commands");
    assert_eq!(setting(|builder| builder.max_bytes(0)), "max_bytes");
    assert_eq!(setting(|builder| builder.max_watched_keys(0)), "max_watched_keys");
    assert_eq!(setting(|builder| builder.max_size(2).min_idle(3)), "min_idle");
}

#[test]
fn a_client_name_that_no_server_takes_is_refused_by_name() {
    for name in ["two words", "line\n", "\t", "é", "nul\0"] {
        assert_eq!(setting(|builder| builder.client_name(name)), "client_name");
    }
}

/// The same for an address without a user and a password.
#[track_caller]
fn account(change: impl FnOnce(Builder) -> Builder) -> (&'static str, String) {
    let builder = change(SessionManager::builder("redis://127.0.0.1:1/"));
    assert!(!format!("{builder:?}").contains(SECRET));
    let error = builder.build_side().map(drop).unwrap_err();
    assert!(!format!("{error:?} {error}").contains(SECRET));
    (error.setting_name().unwrap(), error.to_string())
}

#[test]
fn a_user_and_a_password_apart_from_the_address_are_given_once_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (good, empty) = (file("good", SECRET.as_bytes()), file("empty", b"\n"));
    let (binary, huge) = (file("binary", b"\xff"), file("huge", &[b'x'; 64 * 1024 + 1]));
    // The address has a password too.
    assert_eq!(setting(|builder| builder.username("app").password(SECRET)), "password");
    assert_eq!(setting(|builder| builder.password_file(&good)), "password_file");
    type Change<'c> = Box<dyn FnOnce(Builder) -> Builder + 'c>;
    let wrong: [(Change<'_>, _, _); 8] = [
        (Box::new(|b| b.username("app")), "username", "needs"),
        (Box::new(|b| b.password("")), "password", "empty"),
        (Box::new(|b| b.username("").password(SECRET)), "username", "empty"),
        (
            Box::new(|b| b.password(SECRET).password_file(&good)),
            "password_file",
            "password is given",
        ),
        (
            Box::new(|b| b.password_file(folder.path().join(SECRET))),
            "password_file",
            "cannot be read",
        ),
        (Box::new(|b| b.password_file(&empty)), "password_file", "no password"),
        (Box::new(|b| b.password_file(&binary)), "password_file", "not UTF-8"),
        (Box::new(|b| b.password_file(&huge)), "password_file", "larger"),
    ];
    for (change, name, why) in wrong {
        let (setting, text) = account(change);
        assert!(setting == name && text.contains(why), "{name}, {why}: {text}");
    }
    let provider = || RotatingCredentials::new(Credentials::password(SECRET));
    let both = account(|builder| builder.password(SECRET).credentials_provider(provider()));
    assert_eq!(both.0, "password");
    // Behind sentinels and in a cluster too.
    let behind = SessionManager::sentinel("m", ["redis://:other@127.0.0.1:1/"]);
    let behind = behind.server_info("redis://app@any/0").password(SECRET);
    assert_eq!(behind.build_side().map(drop).unwrap_err().setting_name(), Some("password"));
    let nodes = SessionManager::cluster(["redis://app:1@127.0.0.1:1/", "redis://127.0.0.1:2/"]);
    let nodes = nodes.password_file(&good).build_side().map(drop);
    assert_eq!(nodes.unwrap_err().setting_name(), Some("password_file"));
}

#[test]
fn a_time_that_is_none_too_short_to_measure_or_longer_than_a_day_is_refused_by_name() {
    type Setting = (&'static str, fn(Builder, Duration) -> Builder);
    let times: [Setting; 10] = [
        ("connect_timeout", Builder::connect_timeout),
        ("checkout_timeout", Builder::checkout_timeout),
        ("response_timeout", Builder::response_timeout),
        ("cleanup_timeout", Builder::cleanup_timeout),
        ("max_pin_time", Builder::max_pin_time),
        ("idle_timeout", |builder, time| builder.idle_timeout(Some(time))),
        ("max_lifetime", |builder, time| builder.max_lifetime(Some(time))),
        ("pin_warning", |builder, time| builder.pin_warning(Some(time))),
        ("tcp_keepalive", |builder, time| builder.tcp_keepalive(Some(time))),
        ("tcp_user_timeout", |builder, time| builder.tcp_user_timeout(Some(time))),
    ];
    for (name, set) in times {
        for time in [Duration::ZERO, Duration::from_nanos(1), Duration::from_micros(999)] {
            assert_eq!(setting(|builder| set(builder, time)), name);
        }
        for time in [Duration::from_secs(24 * 60 * 60 + 1), Duration::MAX] {
            assert_eq!(setting(|builder| set(builder, time)), name);
        }
    }
}

#[test]
fn deadlines_that_cannot_work_together_are_refused_by_the_one_that_must_grow() {
    let together = |connect: u64, response: u64, checkout: u64| {
        move |builder: Builder| {
            builder
                .connect_timeout(Duration::from_millis(connect))
                .response_timeout(Duration::from_millis(response))
                .checkout_timeout(Duration::from_millis(checkout))
        }
    };
    assert_eq!(setting(together(100, 100, 299)), "checkout_timeout");
    assert_eq!(setting(together(5000, 1, 5000)), "checkout_timeout");
    assert_eq!(setting(together(1, 2500, 5000)), "checkout_timeout");
    let works = together(100, 100, 300)(SessionManager::builder("redis://127.0.0.1:1/"));
    assert!(works.build_side().is_ok());
}

#[test]
fn every_keepalive_that_is_accepted_lets_a_connection_open() {
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(32_767));
    for time in [least - Duration::from_nanos(1), most + Duration::from_nanos(1)] {
        assert_eq!(setting(|builder| builder.tcp_keepalive(Some(time))), "tcp_keepalive");
    }
    let server = Server::start();
    for time in [least, most] {
        let builder = SessionManager::builder(server.url()).tcp_keepalive(Some(time));
        let sessions = builder.build_side().unwrap();
        assert_eq!(sessions.pooled().ping::<String>().unwrap(), "PONG", "{time:?}");
    }
}

#[test]
fn settings_that_may_be_unlimited_or_none_are_accepted() {
    let builder = SessionManager::builder("redis://127.0.0.1:1/")
        .idle_timeout(None)
        .max_lifetime(None)
        .tcp_keepalive(None)
        .tcp_user_timeout(None)
        .pin_warning(None)
        .trust_window(Duration::ZERO)
        .max_size(1)
        .flush_bytes(usize::MAX)
        .max_bytes(usize::MAX)
        .max_commands(u32::MAX);
    assert!(builder.clone().build_side().is_ok());
    assert!(builder.trust_window(Duration::MAX).build_side().is_ok());
}
