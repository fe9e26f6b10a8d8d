//! Addresses of clusters and of masters behind sentinels.
//!
//! Guarantee: settings

use super::*;

fn nodes(url: &str) -> Result<Vec<String>, String> {
    match url.into_address().map_err(|error| error.to_string())? {
        Address::Cluster(nodes) => Ok(nodes.iter().map(|node| node.addr().to_string()).collect()),
        _ => Ok(Vec::new()),
    }
}

#[test]
fn a_cluster_is_named_by_one_url_of_several_nodes() {
    assert_eq!(nodes("redis+cluster://a:1,b/"), Ok(vec!["a:1".into(), "b:6379".into()]));
    assert_eq!(nodes("redis+cluster://[::1]:7"), Ok(vec!["::1:7".into()]));
    assert_eq!(nodes("redis://a"), Ok(vec![]));
    let Ok(Address::Cluster(found)) = "redis+cluster://u:p%40@a,b?protocol=resp3".into_address()
    else {
        unreachable!("a cluster");
    };
    for node in found {
        let settings = node.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("u"), Some("p@")));
    }
}

#[test]
fn addresses_that_no_cluster_has_are_refused_without_repeating_them() {
    for url in ["redis+cluster://", "redis+cluster://secret:a/1", "redis+cluster://a/1"] {
        let error = nodes(url).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
    let none: [&str; 0] = [];
    assert!(cluster(none).is_err());
}

fn behind(url: &str) -> SentinelConfig {
    match url.into_address() {
        Ok(Address::Sentinel(behind)) => *behind,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn a_master_is_named_by_one_url_of_several_sentinels() {
    let found = behind(
        "redis+sentinel://app:p%40@s1:1,[::1]:2,s3/mymaster/4?sentinel_password=a/b&protocol=resp3",
    );
    let sentinels: Vec<_> = found.sentinels.iter().map(|one| one.addr().to_string()).collect();
    assert_eq!(found.name, "mymaster");
    assert_eq!(sentinels, ["s1:1", "::1:2", "s3:26379"]);
    let servers = found.server_template.redis_settings();
    assert_eq!((servers.username(), servers.password()), (Some("app"), Some("p@")));
    assert_eq!(servers.db(), 4);
    assert!(servers.protocol().supports_resp3());
    for sentinel in &found.sentinels {
        assert_eq!(sentinel.redis_settings().password(), Some("a/b"));
        assert_eq!(sentinel.redis_settings().username(), None);
    }
}

#[test]
fn no_character_of_a_sentinels_user_or_password_changes_anything_else() {
    let every = "?#@/:%,=+[] é\\\"'<>;!*$()";
    let wholly: String = every.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let seldom = "a?b#c@d/e:f%g,h=i+j";
    for (written, meant) in [(&*wholly, every), (seldom, seldom), ("%40%zz%", "@%zz%")] {
        for port in ["", ":7"] {
            let query = format!("sentinel_username={written}&sentinel_password={written}");
            let found = behind(&format!("redis+sentinel://u:p@host{port},b/m/3?{query}"));
            let hosts: Vec<_> = found.sentinels.iter().map(|one| one.addr().to_string()).collect();
            let port = if port.is_empty() { ":26379" } else { port };
            assert_eq!(hosts, [format!("host{port}"), "b:26379".into()], "{written}");
            for sentinel in &found.sentinels {
                let auth = sentinel.redis_settings();
                assert_eq!((auth.username(), auth.password()), (Some(meant), Some(meant)));
                assert_eq!(auth.db(), 0);
            }
            let server_template = found.server_template.redis_settings();
            assert_eq!(
                (server_template.username(), server_template.password()),
                (Some("u"), Some("p"))
            );
            assert_eq!((&*found.name, server_template.db()), ("m", 3));
        }
    }
}

#[cfg(unix)]
#[test]
fn every_character_of_a_sockets_user_and_password_is_kept() {
    let every = "?#@/:%,=+[] é\\\"'<>;!*$()&";
    let wholly: String = every.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let seldom = "a?b+c@d/e:f%g,h=i";
    for (written, meant) in [(&*wholly, every), (seldom, seldom), ("%40%zz%", "@%zz%")] {
        for scheme in ["redis+unix", "unix", "valkey+unix"] {
            let url = format!("{scheme}:///a+b?pass={written}&db=3&user={written}&protocol=resp3");
            let Ok(Address::One(info)) = url.as_str().into_address() else {
                unreachable!("{url}");
            };
            let auth = info.redis_settings();
            assert_eq!((auth.username(), auth.password()), (Some(meant), Some(meant)));
            assert_eq!((auth.db(), auth.protocol().supports_resp3()), (3, true));
            assert_eq!(info.addr().to_string(), "/a+b");
        }
    }
    let url = "redis+unix:///path?pass=a+b\n";
    let Ok(Address::One(info)) = url.into_address() else { unreachable!("{url:?}") };
    let auth = info.redis_settings();
    assert_eq!((auth.username(), auth.password()), (None, Some("a+b")));
    let error = "redis+unix:///path?user=secret&pass=%FF".into_address().unwrap_err().to_string();
    assert!(error.contains("UTF-8") && !error.contains("secret"), "{error}");
}

#[test]
fn addresses_without_a_master_name_are_refused_without_repeating_them() {
    for url in [
        "redis+sentinel://secret@a:1",
        "redis+sentinel://:secret@/name",
        "redis+sentinel://a:secret/m",
    ] {
        let error = url.into_address().unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
