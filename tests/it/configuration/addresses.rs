//! An address never becomes weaker than it is written. `build` refuses an impossible one, and its error names
//! what is wrong without a value.
//!
//! Guarantee: settings

use rediscope::error::ConfigError;
use rediscope::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use rediscope::{Builder, SessionManager};

use super::everywhere;

/// Stands in every user, password and value.
const SECRET: &str = "S3CRET";

/// What `build` refuses it with, in which there is no secret; `what` names the case.
#[track_caller]
fn refused(what: &str, builder: Builder) -> String {
    let shown = format!("{builder:?}");
    let error = match builder.build() {
        Ok(_) => panic!("{what}: not refused"),
        Err(error) => error,
    };
    for text in [error.to_string(), format!("{error:?}"), shown] {
        assert!(!text.contains(SECRET), "{what}: {text}");
    }
    error.to_string()
}

/// The builders that an address can be given to as a text.
fn forms(url: &str) -> Vec<(String, Builder)> {
    let mut forms = vec![
        ("builder".to_owned(), SessionManager::builder(url)),
        ("String".to_owned(), SessionManager::builder(url.to_owned())),
    ];
    for (format, config) in everywhere(&[("url", url)]) {
        forms.push((format!("Config, {format}"), config.builder()));
    }
    forms.push(("cluster".into(), SessionManager::cluster([url])));
    forms.push(("second node".into(), SessionManager::cluster(["redis://h", url])));
    let like = "redis://h/";
    forms.push(("sentinel".into(), SessionManager::sentinel("m", [url]).server_info(like)));
    forms.push(("server_info".into(), SessionManager::sentinel("m", [like]).server_info(url)));
    let entries = [("url", "redis+sentinel://h/m"), ("server_info", url)];
    for (format, config) in everywhere(&entries) {
        forms.push((format!("server_info, {format}"), config.builder()));
    }
    forms
}

/// And the schemes of several hosts.
fn many(rest: &str) -> Vec<(String, Builder)> {
    let mut forms = Vec::new();
    for scheme in ["redis", "rediss"] {
        forms.push(format!("{scheme}+cluster://h:1,i:2/{rest}"));
        forms.push(format!("{scheme}+sentinel://h:1,i:2/m{rest}"));
    }
    let of = |url: String| {
        let configs = everywhere(&[("url", &url)]);
        let configs =
            configs.into_iter().map(|(format, config)| (format.to_owned(), config.builder()));
        configs.chain([("builder".to_owned(), SessionManager::builder(&*url))]).collect::<Vec<_>>()
    };
    forms.into_iter().flat_map(of).collect()
}

#[cfg(feature = "tls-rustls")]
#[test]
fn tls_without_verification_is_refused_by_name_in_every_form() {
    let check = |form: &str, builder| {
        let text = refused(form, builder);
        assert!(text.contains("#insecure") && text.contains("Builder::tls"), "{form}: {text}");
    };
    for url in ["rediss://h/#insecure", "rediss://u:S3CRET@h:1/2?protocol=resp3#insecure"] {
        for (form, builder) in forms(url) {
            check(&form, builder);
        }
    }
    for rest in ["#insecure", "?protocol=resp3#insecure", "?sentinel_password=S3CRET#insecure"] {
        for (form, builder) in many(rest) {
            if !(rest.contains("sentinel") && form.contains("cluster")) {
                let text = refused(&form, builder);
                assert!(text.contains("#insecure") || text.contains("sentinel_pass"), "{text}");
            }
        }
    }
    // Made by hand, with no word of a URL.
    let address =
        ConnectionAddr::TcpTls { host: "h".into(), port: 1, insecure: true, tls_params: None };
    check("ConnectionAddr", SessionManager::builder(address.clone()));
    let info: ConnectionInfo = address.into_connection_info().unwrap();
    check("ConnectionInfo", SessionManager::builder(info.clone()));
    check("with tls", SessionManager::builder(info.clone()).tls(rediscope::Tls::new()));
    check("cluster", SessionManager::cluster([info.clone()]));
    {
        check("sentinel", SessionManager::sentinel("m", [info.clone()]).server_info("redis://h"));
        check("like", SessionManager::sentinel("m", ["redis://h"]).server_info(info));
    }
}

#[test]
fn a_parameter_that_is_not_known_is_refused_by_its_name_and_without_its_value() {
    for (url, name) in [
        ("redis://h/?protocl=S3CRET", "`protocl`"),
        ("redis://h/0?protocol=resp3&db=1", "`db`"),
        ("redis://h?password=S3CRET", "`password`"),
        ("redis://h/?Protocol=resp3", "`Protocol`"),
        ("redis://h/?timeout=5&protocol=resp3", "`timeout`"),
        ("redis://h/?protocol=resp3&protocol=resp2", "`protocol` is given twice"),
        ("redis://h/?protocol%20=S3CRET", "of the name that it has"),
        ("redis://u:S3C?S3CRET@h/", ""),
        ("redis://u:1?S3CRET@h/", "of the name that it has"),
        ("redis://u:1#S3CRET@h/", "%23"),
        ("redis://h/#S3CRET", "`#`"),
        ("valkey://h/?protocl=S3CRET", "`protocl`"),
        ("redis+unix:///s?user=S3CRET&passs=S3CRET", "`passs`"),
        ("redis+unix:///s?pass=S3C&S3CRET", "%26"),
        ("redis+unix:///s?user=u&pass=S3C&S3CRET=1&db=1", "%26"),
        ("redis+unix:///s?pass=S3C&pass=S3CRET", "`pass` is given twice"),
        ("unix:///s?db=1&db=2", "`db` is given twice"),
    ] {
        for (form, builder) in forms(url) {
            let text = refused(&format!("{url}, {form}"), builder);
            assert!(text.contains(name), "{url}, {form}: {text}");
            assert!(!text.contains("resp3"), "{url}, {form}: {text}");
        }
    }
    for (form, builder) in many("?protocl=S3CRET").into_iter().chain(many("?sentinel_pass=S3CRET"))
    {
        let text = refused(&form, builder);
        assert!(text.contains("`protocl`") || text.contains("`sentinel_pass`"), "{form}: {text}");
        assert!(text.contains("protocol"), "those that there are: {text}");
    }
    for form in ["sentinel_password=S3C&S3CRET", "sentinel_password=S3C&S3CRET=1"] {
        let url = format!("redis+sentinel://h/m?{form}");
        assert!(refused(&url, SessionManager::builder(&*url)).contains("%26"), "{url}");
    }
    for (form, builder) in many("?protocol=resp2&protocol=resp3") {
        assert!(refused(&form, builder).contains("given twice"), "{form}");
    }
    // And what is known stays so.
    for url in [
        "redis://h/?protocol=resp3",
        "redis+unix:///s?db=1&user=u&pass=p&protocol=resp3",
        "redis://h/?",
    ] {
        SessionManager::builder(url).build().unwrap();
    }
}

#[test]
fn a_user_without_a_password_is_refused_in_every_form() {
    let form = |text: &str| assert!(text.contains("password"), "{text}");
    for url in ["redis://app@h/", "redis://app:@h/", "redis+unix:///s?user=app"] {
        for (what, builder) in forms(url) {
            if !(url.contains("unix") && ["cluster", "second node", "sentinel"].contains(&&*what)) {
                form(&refused(&format!("{url}, {what}"), builder));
            }
        }
        let info: ConnectionInfo = url.into_connection_info().unwrap();
        form(&refused("ConnectionInfo", SessionManager::builder(info)));
    }
    for url in ["redis+cluster://app@h,i/", "redis+sentinel://app@h,i/m"] {
        form(&refused(url, SessionManager::builder(url)));
    }
    // A sentinel behind the first, whose user is its own.
    let sentinels = ["redis://u:p@h", "redis://app@i"];
    form(&refused("second sentinel", SessionManager::sentinel("m", sentinels)));
}

#[test]
fn nodes_of_a_cluster_that_name_something_else_than_the_first_are_refused() {
    let tls = cfg!(feature = "tls-rustls");
    for (first, second, word, hint) in [
        ("redis://a", "rediss://b", "scheme", "rediss:// in each"),
        ("rediss://a", "redis://b", "scheme", "rediss:// in each"),
        ("rediss://u:S3CRET@a", "redis://b", "scheme", "redis://"),
        ("redis://u:S3CRET@a", "redis://v:S3CRET@b", "user", "in the first alone"),
        ("redis://a", "redis://v:S3CRET@b", "user", "in the first alone"),
        ("redis://u:S3CRET@a", "redis://:S3CRET@b", "user", "in the first alone"),
        ("redis://:S3CRET@a", "redis://u:S3CRET@b", "user", "in the first alone"),
        ("redis://u:S3CRET@a", "redis://u:S3CRET2@b", "password", "in the first alone"),
        ("redis://u:S3CRET@a", "redis://u@b", "password", "in the first alone"),
        ("redis://a", "redis://:S3CRET@b", "password", "in the first alone"),
        ("redis://a", "redis://b?protocol=resp3", "protocol", "`?protocol=`"),
        ("redis://a?protocol=resp3", "redis://b?protocol=resp2", "protocol", "`?protocol=`"),
    ] {
        if !tls && (first.contains("ss:") || second.contains("ss:")) {
            continue;
        }
        let info = |url: &str| url.into_connection_info().unwrap();
        let mut forms = vec![
            ("two", SessionManager::cluster([first, second])),
            ("third", SessionManager::cluster([first, first, second])),
            ("strings", SessionManager::cluster([first.to_owned(), second.to_owned()])),
        ];
        // What a connection's description does not say, it does not name.
        if !second.contains("resp2") {
            forms.push(("infos", SessionManager::cluster([info(first), info(second)])));
        }
        for (form, builder) in forms {
            let text = refused(&format!("{first}, {second}, {form}"), builder);
            assert!(text.contains(&format!("another {word}")), "{first}, {second}: {text}");
            assert!(text.contains(hint), "{first}, {second}: {text}");
        }
    }
    for (first, second) in [
        ("redis://u:p@a", "redis://b"),
        ("redis://u:p@a", "redis://u:p@b"),
        ("redis://:p@a", "redis://b"),
        ("redis://a?protocol=resp3", "redis://b"),
        ("redis://a?protocol=resp3", "redis://b?protocol=resp3"),
        ("redis://a", "redis://b?protocol=resp2"),
    ] {
        let built = SessionManager::cluster([first, second]).build();
        assert!(built.is_ok(), "{first}, {second}: {built:?}");
    }
    // In one URL user and password are given once.
    for url in ["redis+cluster://u:S3CRET@a,v:S3CRET@b/", "redis+cluster://u:S3@CRET@a,b"] {
        for (form, config) in everywhere(&[("url", url)]) {
            let text = refused(form, config.builder());
            assert!(text.contains("given once") && text.contains("%40"), "{text}");
        }
    }
}

#[cfg(feature = "tls-rustls")]
#[test]
fn servers_in_clear_behind_sentinels_of_tls_are_refused_unless_that_is_set() {
    for sentinels in [vec!["rediss://h:1"], vec!["redis://h:1", "rediss://:S3CRET@i:2"]] {
        let text = refused("clear", SessionManager::sentinel("m", sentinels.clone()));
        assert!(text.contains("server_info") && text.contains("rediss://"), "{text}");
        let text = refused(
            "tls",
            SessionManager::sentinel("m", sentinels.clone()).tls(rediscope::Tls::new()),
        );
        assert!(text.contains("server_info"), "{text}");
        for like in ["redis://any/", "rediss://u:p@any/0", "redis://u:p@any/0"] {
            for tls in [false, true] {
                let builder = SessionManager::sentinel("m", sentinels.clone()).server_info(like);
                let builder = if tls { builder.tls(rediscope::Tls::new()) } else { builder };
                assert!(builder.build().is_ok(), "{like}, {tls}");
            }
        }
    }
    SessionManager::sentinel("m", ["redis://u:p@a", "redis://v:q@b", "redis://c"]).build().unwrap();
    SessionManager::connect("rediss+sentinel://a,b/m").unwrap();
    for (_, config) in everywhere(&[("url", "rediss+sentinel://a/m"), ("server_info", "redis://x")])
    {
        config.builder().build().unwrap();
    }
}

#[test]
fn a_sentinels_user_needs_a_password_and_several_hosts_have_one_login() {
    let text =
        refused("user", SessionManager::builder("redis+sentinel://h/m?sentinel_username=S3CRET"));
    assert!(text.contains("sentinel_password"), "{text}");
    let url = "redis+sentinel://u:S3CRET@a,v:S3CRET@b/m";
    assert!(refused("login", SessionManager::builder(url)).contains("given once"));
    let url = "redis+sentinel://h/m?sentinel_password=%ff%feS3CRET";
    assert!(refused("bytes", SessionManager::builder(url)).contains("UTF-8"));
    let error = SessionManager::connect("redis+sentinel://h/m#S3CRET").unwrap_err();
    assert!(matches!(error, ConfigError::Address { .. }), "{error}");
}
