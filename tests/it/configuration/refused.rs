//! A wrong setting is refused by its name, and its value is not repeated.
//!
//! Guarantee: settings

use rediscope::Config;
use rediscope::error::ConfigError;

use super::{everywhere, toml};

const SECRET: &str = "redis://:S3CRETpassword@elsewhere/";

/// The error of `build`. Neither it nor any `Debug` has a word of the secret.
#[track_caller]
fn refused(config: &Config) -> ConfigError {
    let error = config.builder().build().map(drop).unwrap_err();
    let builder = config.builder().max_size(3);
    for text in [
        error.to_string(),
        format!("{error:?}"),
        format!("{config:?}"),
        format!("{config:#?}"),
        format!("{builder:?}"),
    ] {
        assert!(!text.contains("S3CRET") && !text.contains("elsewhere"), "{text}");
    }
    error
}

#[test]
fn a_value_that_does_not_fit_is_refused_by_its_name() {
    let numbers = ["max_size", "min_idle", "flush_bytes", "max_commands", "max_bytes"];
    let numbers = numbers.into_iter().chain([
        "max_reply_bytes",
        "max_watched_keys",
        "max_group",
        "max_leaders",
        "max_merged",
        "lanes",
        "max_in_flight",
    ]);
    let times = ["connect_timeout", "checkout_timeout", "response_timeout", "cleanup_timeout"];
    let times = times.into_iter().chain(["trust_window", "poll", "max_pin_time", "register_ttl"]);
    let may_be_off = ["idle_timeout", "max_lifetime", "tcp_keepalive", "tcp_user_timeout"];
    let may_be_off = may_be_off.into_iter().chain(["pin_warning"]);
    let numbers = numbers.map(|name| (name, "a whole number", "off"));
    let times = times.map(|name| (name, "a time with its unit", "off"));
    let may_be_off = may_be_off.map(|name| (name, "or \"off\"", "never"));
    for (name, expected, odd) in numbers.chain(times).chain(may_be_off) {
        for value in [SECRET, odd, "", "-1", "1.5", "S3CRET ms"] {
            for (format, config) in everywhere(&[("url", "redis://h/"), (name, value)]) {
                let error = refused(&config);
                assert_eq!(error.setting_name(), Some(name), "{format}, {value}: {error}");
                assert!(error.to_string().contains(expected), "{format}, {value}: {error}");
            }
        }
    }
}

#[test]
fn a_value_of_another_kind_is_refused_by_its_name() {
    for value in ["true", "[1, 'S3CRET']", "{ a = 'S3CRET' }", "-1", "1.5", "1979-05-27"] {
        for name in ["max_size", "trust_window", "pin_warning", "prefix", "tls"] {
            let config = format!("url = 'redis://h/'\n{name} = {value}");
            let error = refused(&toml::from_str(&config).unwrap());
            assert_eq!(error.setting_name(), Some(name), "{value}: {error}");
        }
        let error = refused(&toml::from_str(&format!("url = {value}")).unwrap());
        assert!(matches!(&error, ConfigError::Address { .. }), "{error}");
    }
    let null = r#"{"url": "redis://h/", "idle_timeout": null}"#;
    let error = refused(&serde_json::from_str(null).unwrap());
    assert!(error.to_string().contains("\"off\""), "null may have meant that: {error}");
    let five = r#"{"url": "redis://h/", "trust_window": 5}"#;
    assert!(refused(&serde_json::from_str(five).unwrap()).to_string().contains("its unit"));
}

#[test]
fn a_value_that_cannot_work_is_refused_by_the_same_check_as_the_builders() {
    for (name, value) in [("max_size", "0"), ("min_idle", "9"), ("cleanup_timeout", "0s")] {
        for (format, config) in everywhere(&[("url", "redis://h/"), (name, value)]) {
            assert_eq!(refused(&config).setting_name(), Some(name), "{format}");
        }
    }
    let config = toml(&[("url", "redis://h/"), ("response_timeout", "4s")]);
    assert_eq!(refused(&config).setting_name(), Some("checkout_timeout"));
    let config = toml(&[("url", "redis://h/"), ("server_info", SECRET)]);
    assert_eq!(refused(&config).setting_name(), Some("server_info"));
}

#[test]
fn a_name_that_is_not_known_is_refused_with_those_that_are() {
    for (format, config) in everywhere(&[("url", SECRET), ("max_sise", "3")]) {
        let error = refused(&config);
        let text = error.to_string();
        assert!(matches!(error, ConfigError::Configuration { .. }), "{format}: {text}");
        assert!(text.contains("`max_sise`") && text.contains(", max_size,"), "{format}: {text}");
    }
    // A reader's own error would show the line.
    for misspelled in ["urll", "Url", "tls_root"] {
        let text = refused(&toml(&[(misspelled, SECRET)])).to_string();
        assert!(text.contains(&format!("`{misspelled}`")), "{text}");
    }
    let swapped = format!("{{{SECRET:?}: \"url\"}}");
    assert!(matches!(
        refused(&serde_json::from_str(&swapped).unwrap()),
        ConfigError::Configuration { .. }
    ));
    let first = toml(&[("no_such_name", "1")]);
    let text = refused(&first.overridden_by(toml(&[("url", SECRET)]))).to_string();
    assert!(text.contains("`no_such_name`"), "it is not forgotten: {text}");
    let text = refused(&toml(&[("url", SECRET)]).overridden_by(toml(&[("other", "1")])));
    assert!(text.to_string().contains("`other`"), "{text}");
}

#[test]
fn a_name_that_is_given_twice_is_refused() {
    let twice = r#"{"url": "redis://h/", "max_size": 1, "max_size": 2, "min_idle": 0}"#;
    let error = refused(&serde_json::from_str(twice).unwrap());
    assert!(error.to_string().contains("`max_size` is given twice"), "{error}");
}

#[test]
fn a_value_that_is_no_table_of_names_is_refused_without_being_repeated() {
    for text in [format!("{SECRET:?}"), format!("[{SECRET:?}]"), "null".into(), "7".into()] {
        let error = refused(&serde_json::from_str(&text).unwrap());
        assert!(error.to_string().contains("no table of names"), "{error}");
    }
}

#[test]
fn a_url_is_required_and_one_that_cannot_be_understood_is_not_repeated() {
    for (format, config) in everywhere(&[("max_size", "3")]) {
        assert!(refused(&config).to_string().contains("no url"), "{format}");
    }
    for url in ["http://:S3CRETpassword@elsewhere/", "S3CRETpassword", ""] {
        for (format, config) in everywhere(&[("url", url)]) {
            let error = refused(&config);
            assert!(matches!(error, ConfigError::Address { .. }), "{format}: {error}");
        }
    }
    let config = toml(&[("url", SECRET), ("server_info", SECRET), ("max_size", "9")]);
    let shown = format!("{config:?}");
    assert!(shown.contains("url: true") && shown.contains("max_size: 9"), "{shown}");
    assert!(!shown.contains("S3CRET") && !shown.contains("min_idle"), "{shown}");
}

#[cfg(not(feature = "tls-rustls"))]
#[test]
fn files_of_tls_are_refused_without_tls() {
    let config = toml(&[("url", "redis://h/"), ("tls_root_certificates", "/no/where")]);
    let error = refused(&config);
    assert_eq!(error.setting_name(), Some("tls"));
    assert!(error.to_string().contains("feature tls-rustls"), "{error}");
}

#[cfg(feature = "tls-rustls")]
#[test]
fn files_of_tls_that_cannot_be_used_are_refused_by_name() {
    let reason = |entries: &[(&str, &str)]| {
        let mut reasons = Vec::new();
        for (format, config) in everywhere(&[&[("url", "rediss://h/")], entries].concat()) {
            let error = refused(&config);
            assert_eq!(error.setting_name(), Some("tls"), "{format}: {error}");
            reasons.push(error.to_string());
        }
        reasons.dedup();
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        reasons.remove(0)
    };
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let empty = empty.to_str().unwrap();
    let text = reason(&[("tls_root_certificates", "/no/such/file")]);
    assert!(text.contains("root_certificates: /no/such/file cannot be read"), "{text}");
    assert!(reason(&[("tls_root_certificates", empty)]).contains("no certificate"));
    assert!(reason(&[("tls_client_certificate", empty)]).contains("together"));
    assert!(reason(&[("tls_client_key", empty)]).contains("together"));
    // The text itself in place of a path.
    let pem = "-----BEGIN PRIVATE KEY-----\\nS3CRET\\n-----END PRIVATE KEY-----";
    let text = reason(&[("tls_client_key", pem), ("tls_client_certificate", empty)]);
    assert!(text.contains("client_key must be the path of a file"), "{text}");
    let config: Config =
        toml::from_str("url = 'rediss://h/'\n[tls]\nclient_kei = '/S3CRET'").unwrap();
    let error = refused(&config);
    assert!(error.to_string().contains("`client_kei`"), "{error}");
    assert!(error.to_string().contains("root_certificates, client_certificate, client_key"));
}
