//! Settings that were read have their effect on a real server.
//!
//! Guarantee: settings

#[cfg(feature = "tls-rustls")]
use rediscope::Config;
use rediscope::TransactionOptions;
use rediscope::prelude::*;

#[cfg(feature = "tls-rustls")]
use super::environment;
use super::everywhere;
use rediscope_testing::server::Server;

#[test]
fn a_transaction_runs_over_a_configuration_that_was_read() {
    let server = Server::with(&["--requirepass", "S3CRET"]);
    let url = format!("redis://:S3CRET@127.0.0.1:{}/2", server.port());
    let entries = [("url", url.as_str()), ("max_size", "2"), ("prefix", "app")];
    for (hits, (format, config)) in (1..).zip(everywhere(&entries)) {
        let sessions = config.builder().build().unwrap();
        let once = TransactionOptions::new().exactly_once();
        let counted = sessions.transactional().with(once).run(|tx| Ok(tx.incr("hits", 1)));
        assert_eq!(counted.unwrap(), hits, "{format}");
        let keys: Vec<String> = sessions.pooled().keys("*").unwrap();
        assert!(keys.iter().any(|key| key.starts_with("app:")), "{format}: {keys:?}");
        assert_eq!(sessions.status().transactional.max_size, 2, "{format}");
    }
}

#[cfg(feature = "tls-rustls")]
#[test]
fn files_of_tls_are_used_by_a_table_and_by_flat_names_which_count_more() {
    use rediscope_testing::tls::TlsServer;

    let tls = TlsServer::choosy();
    let client = tls.authority.client();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca = file("ca", &tls.authority.pem());
    let certificate = file("certificate", &client.certificate);
    let key = file("key", &client.key);
    let hit = |config: &Config| {
        config.builder().build().unwrap().transactional().run(|tx| Ok(tx.incr("hits", 1)))
    };

    let url = tls.url();
    let text = format!(
        "url = {url:?}\n[tls]\nroot_certificates = {ca:?}\nclient_certificate = {certificate:?}\n\
         client_key = {key:?}"
    );
    let table: Config = toml::from_str(&text).unwrap();
    assert_eq!(hit(&table).unwrap(), 1);
    let flat = [
        ("url", url.as_str()),
        ("tls_root_certificates", &ca),
        ("tls_client_certificate", &certificate),
        ("tls_client_key", &key),
    ];
    for (hits, (format, config)) in (2..).zip(everywhere(&flat)) {
        assert_eq!(hit(&config).unwrap(), hits, "{format}");
    }
    let wrong = text.replace(&ca, "/no/such/file");
    let wrong: Config = toml::from_str(&wrong).unwrap();
    assert!(wrong.builder().build().is_err());
    let mended = wrong.overridden_by(environment(&flat[1..2]));
    assert_eq!(hit(&mended).unwrap(), 5);
    let both = format!("tls_root_certificates = {ca:?}\n{}", text.replace(&ca, "/no/such/file"));
    let both: Config = toml::from_str(&both).unwrap();
    assert_eq!(hit(&both).unwrap(), 6);
}
