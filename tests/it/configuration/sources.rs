//! The same settings from every source.
//!
//! Guarantee: settings

use std::time::Duration;

use config::{File, FileFormat};
use rediscope::{Builder, Config, SessionManager};

use super::{Entry, everywhere, toml, variables};

const URL: Entry<'_> = ("url", "redis://app:S3CRET@h:1/3?protocol=resp3");

/// Every setting, with a value that is not its default.
const ALL: [Entry<'_>; 26] = [
    ("max_size", "9"),
    ("min_idle", "3"),
    ("idle_timeout", "11m"),
    ("max_lifetime", "2h"),
    ("tcp_keepalive", "7s"),
    ("tcp_user_timeout", "20s"),
    ("connect_timeout", "300ms"),
    ("checkout_timeout", "1m 30s"),
    ("response_timeout", "1500ms"),
    ("cleanup_timeout", "400ms"),
    ("trust_window", "0s"),
    ("poll", "50us"),
    ("max_pin_time", "59s"),
    ("pin_warning", "9s"),
    ("flush_bytes", "70000"),
    ("max_commands", "17"),
    ("max_bytes", "1000000"),
    ("max_reply_bytes", "2000000"),
    ("max_group", "2"),
    ("max_leaders", "5"),
    ("max_merged", "6"),
    ("lanes", "3"),
    ("max_in_flight", "100"),
    ("server_messages", "true"),
    ("prefix", "app"),
    ("register_ttl", "2days"),
];

fn by_hand() -> Builder {
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(24 * 60 * 60));
    SessionManager::builder(URL.1)
        .max_size(9)
        .min_idle(3)
        .idle_timeout(Some(11 * 60 * second))
        .max_lifetime(Some(2 * 60 * 60 * second))
        .tcp_keepalive(Some(7 * second))
        .tcp_user_timeout(Some(20 * second))
        .connect_timeout(second * 3 / 10)
        .checkout_timeout(90 * second)
        .response_timeout(second * 3 / 2)
        .cleanup_timeout(second * 4 / 10)
        .trust_window(Duration::ZERO)
        .poll(Duration::from_micros(50))
        .max_pin_time(59 * second)
        .pin_warning(Some(9 * second))
        .flush_bytes(70_000)
        .max_commands(17)
        .max_bytes(1_000_000)
        .max_reply_bytes(2_000_000)
        .max_group(2)
        .max_leaders(5)
        .max_merged(6)
        .lanes(3)
        .max_in_flight(100)
        .server_messages(true)
        .prefix("app")
        .register_ttl(2 * day)
}

/// All that a builder holds.
#[track_caller]
fn assert_same(one: &Builder, other: &Builder, of: &str) {
    assert_eq!(format!("{one:#?}"), format!("{other:#?}"), "{of}");
}

#[test]
fn every_setting_is_read_from_toml_json_and_the_environment() {
    let entries: Vec<_> = [URL].into_iter().chain(ALL).collect();
    for (format, config) in everywhere(&entries) {
        assert_same(&config.builder(), &by_hand(), format);
        config.builder().build().unwrap();
    }
    let default = format!("{:?}", SessionManager::builder(URL.1));
    for setting in ALL {
        let one = toml(&[URL, setting]).builder();
        assert_ne!(format!("{one:?}"), default, "{} does nothing", setting.0);
    }
}

#[test]
fn numbers_may_be_text_in_every_format() {
    let config: Config = toml::from_str("url = 'redis://h/'\nmax_size = '9'").unwrap();
    assert_same(&config.builder(), &SessionManager::builder("redis://h/").max_size(9), "TOML");
    let config: Config = serde_json::from_str(r#"{"url": "redis://h/", "max_size": "9"}"#).unwrap();
    assert_same(&config.builder(), &SessionManager::builder("redis://h/").max_size(9), "JSON");
}

#[test]
fn settings_that_can_be_off_are_shown_as_off() {
    let off = ["idle_timeout", "max_lifetime", "tcp_keepalive", "tcp_user_timeout", "pin_warning"];
    let entries: Vec<_> = [URL].into_iter().chain(off.map(|name| (name, "off"))).collect();
    let by_hand = SessionManager::builder(URL.1)
        .idle_timeout(None)
        .max_lifetime(None)
        .tcp_keepalive(None)
        .tcp_user_timeout(None)
        .pin_warning(None);
    for (format, config) in everywhere(&entries) {
        assert_same(&config.builder(), &by_hand, format);
    }
}

#[test]
fn settings_that_are_not_given_keep_their_defaults() {
    for (format, config) in everywhere(&[URL]) {
        assert_same(&config.builder(), &SessionManager::builder(URL.1), format);
    }
}

#[test]
fn every_url_is_understood_as_the_builder_understands_it() {
    let mut urls = vec!["redis://h/", "redis+unix:///tmp/s?db=1"];
    if cfg!(feature = "tls-rustls") {
        urls.push("rediss://h/");
    }
    urls.push("redis+cluster://u:p@a:1,b:2/");
    urls.push("redis+sentinel://u:p@a:1,b:2/m/4?sentinel_password=q");
    for url in urls {
        for (format, config) in everywhere(&[("url", url)]) {
            assert_same(&config.builder(), &SessionManager::builder(url), format);
        }
    }
}

#[test]
fn server_info_of_servers_behind_sentinels_is_read() {
    let entries = [("url", "redis+sentinel://a:1/m"), ("server_info", "redis://u:p@any/2")];
    let by_hand = SessionManager::builder(entries[0].1).server_info(entries[1].1);
    for (format, config) in everywhere(&entries) {
        assert_same(&config.builder(), &by_hand, format);
    }
}

#[test]
fn the_environment_overrides_the_file_and_the_program_both() {
    let (file, here) = ("url = 'redis://h/'\nmax_size = 9\nmin_idle = 2", ("max_size", "5"));
    let expected = SessionManager::builder("redis://h/").max_size(5).min_idle(2);
    let sources = config::Config::builder()
        .add_source(File::from_str(file, FileFormat::Toml))
        .add_source(variables(&[here]));
    let config: Config = sources.build().unwrap().try_deserialize().unwrap();
    assert_same(&config.builder(), &expected, "by the reader");
    let file: Config = toml::from_str(file).unwrap();
    let config = file.clone().overridden_by(toml(&[here]));
    assert_same(&config.builder(), &expected, "by overridden_by");
    let all = toml(&ALL).overridden_by(toml(&[URL]));
    assert_same(&all.builder(), &by_hand(), "what is not given overrides nothing");
    let all = toml(&[URL]).overridden_by(toml(&ALL));
    assert_same(&all.builder(), &by_hand(), "what is given does");
    let sessions = config.builder().max_size(4).build().unwrap();
    assert_eq!(sessions.status().pooled.max_size, 4);
}

#[test]
fn it_may_be_a_part_of_a_larger_configuration() {
    #[derive(serde::Deserialize)]
    struct Service {
        name: String,
        redis: Config,
    }

    let service: Service =
        toml::from_str("name = 'orders'\n[redis]\nurl = 'redis://h/'\nmax_size = 9").unwrap();
    assert_eq!(service.name, "orders");
    let expected = SessionManager::builder("redis://h/").max_size(9);
    assert_same(&service.redis.builder(), &expected, "a table of its own");
}
