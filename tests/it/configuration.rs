//! The whole configuration from TOML, JSON or the environment: the same names, the same checks, and no value
//! in an error.

mod addresses;
mod names;
mod refused;
mod sources;
mod used;

use std::collections::HashMap;

use config::Environment;
use rediscope::Config;

/// A value as a person means it; each format writes it in its own way.
type Entry<'a> = (&'a str, &'a str);

/// The same entries from TOML, from JSON and from the environment, where everything is text.
fn everywhere(entries: &[Entry<'_>]) -> [(&'static str, Config); 3] {
    [("TOML", toml(entries)), ("JSON", json(entries)), ("environment", environment(entries))]
}

fn toml(entries: &[Entry<'_>]) -> Config {
    let line = |(name, value): &Entry<'_>| match value.parse::<u64>() {
        Ok(number) => format!("{name} = {number}\n"),
        Err(_) => format!("{name} = {value:?}\n"),
    };
    toml::from_str(&entries.iter().map(line).collect::<String>()).unwrap()
}

fn json(entries: &[Entry<'_>]) -> Config {
    let entry = |(name, value): &Entry<'_>| match value.parse::<u64>() {
        Ok(number) => format!("{name:?}: {number}"),
        Err(_) => format!("{name:?}: {value:?}"),
    };
    let entries: Vec<_> = entries.iter().map(entry).collect();
    serde_json::from_str(&format!("{{{}}}", entries.join(", "))).unwrap()
}

fn environment(entries: &[Entry<'_>]) -> Config {
    let sources = config::Config::builder().add_source(variables(entries));
    sources.build().unwrap().try_deserialize().unwrap()
}

/// As if the process had been started with them.
fn variables(entries: &[Entry<'_>]) -> Environment {
    let name = |name: &str| format!("APP_REDIS_{}", name.to_uppercase());
    let all: HashMap<_, _> =
        entries.iter().map(|(key, value)| (name(key), (*value).to_owned())).collect();
    Environment::with_prefix("APP_REDIS").source(Some(all))
}
