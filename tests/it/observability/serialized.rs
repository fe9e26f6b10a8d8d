//! The report as data.
//!
//! Guarantee: reports

use rediscope::{SessionManager, TransactionOptions, prelude::*};
use serde_json::{Value, json};

use rediscope_testing::server::Server;

#[test]
fn the_report_as_json_has_the_names_of_its_fields_places_and_seconds() {
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(1).build().unwrap();
    let orders = sessions.transactional().with(TransactionOptions::new().name("order"));
    let (mut tx, line) = (orders.begin().unwrap(), line!());
    tx.set("secret-key", "secret-value");
    let status = serde_json::to_value(sessions.status()).unwrap();
    let scope = &status["transactional"]["scopes"][0];
    assert_eq!(scope["name"], "order");
    let place = scope["begun_at"].as_str().unwrap();
    assert!(place.starts_with(&format!("{}:{line}:", file!())), "{place}");
    assert!(scope["age"].as_f64().is_some_and(|age| age > 0.0 && age < 3_600.0), "{scope}");
    assert_eq!((&scope["blocking"], &scope["is_closure"]), (&Value::Null, &json!(false)));
    assert_eq!(scope["thread"].as_str(), std::thread::current().name());
    assert_eq!(serde_json::to_value(sessions.open_scopes()).unwrap()[0]["name"], "order");

    let pool = &status["transactional"];
    assert_eq!((&pool["name"], &pool["in_use"]), (&json!("transactional"), &json!(1)));
    let counts = &pool["counts"];
    assert_eq!((&counts["connects"], &counts["replaced"]), (&json!(1), &json!({})));
    assert_eq!(status["locks"]["held"], 0);
    assert_eq!(status["replicas"], Value::Null);
    assert!(!status.to_string().contains("secret"), "{status}");

    assert_eq!(server.ask::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]), 1);
    drop(tx.commit());
    let status = serde_json::to_value(sessions.status()).unwrap();
    assert_eq!(status["transactional"]["counts"]["replaced"], json!({ "closed": 1 }));
    // Each field of the debug form is there: a field that is added is not forgotten.
    let debug = format!("{:?}", sessions.status().transactional.counts);
    let names = debug.split([' ', '{', ',', '(']).filter_map(|word| word.strip_suffix(':'));
    for name in names {
        assert!(!counts[name].is_null(), "{name} is missing");
    }
}
