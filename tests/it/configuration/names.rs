//! One set of names: the builder's, a configuration's, and the documents'.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

#[cfg(feature = "tls-rustls")]
use rediscope::Config;
use rediscope::SessionManager;

#[cfg(feature = "tls-rustls")]
use super::environment;
use super::toml;

/// The builder's, but for these: what is no plain value cannot be read.
const BY_PROGRAM_ONLY: [&str; 4] =
    ["async_credentials_provider", "build", "credentials_provider", "look_up_names_with"];
/// A configuration's, but for these: they are not the builder's.
const OF_A_CONFIGURATION: [&str; 4] =
    ["url", "tls_root_certificates", "tls_client_certificate", "tls_client_key"];

type Names = BTreeSet<String>;

/// The settings that a configuration lists.
fn of_a_configuration() -> Names {
    let error = toml(&[("no_such_name", "1")]).builder().build().unwrap_err().to_string();
    let (_, known) = error.split_once("there are ").unwrap();
    known.split(", ").map(str::to_owned).collect()
}

/// The methods of the builder, in the two places that they are made in.
fn of_the_builder() -> Names {
    let table = fs::read_to_string("src/settings/table.rs").unwrap();
    let row = |line: &str| {
        let (name, rest) = line.trim().split_once(": ")?;
        let is_name = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        (is_name && rest.ends_with(';')).then(|| name.to_owned())
    };
    let mut names: Names = table.lines().filter_map(row).collect();
    let builder = fs::read_to_string("src/session/builder.rs").unwrap();
    let method = |line: &str| {
        let (name, _) = line.trim().strip_prefix("pub fn ")?.split_once('(')?;
        (!name.starts_with('$')).then(|| name.split('<').next().unwrap().to_owned())
    };
    let builder = builder.split("\nimpl ").filter(|part| part.starts_with("Builder {"));
    names.extend(builder.flat_map(str::lines).filter_map(method));
    names
}

/// The rows of the table of settings in the operator's page: a name, and its default.
fn of_the_documents() -> BTreeMap<String, String> {
    let page = fs::read_to_string("docs/operations.md").unwrap();
    let (_, page) = page.split_once("## Settings of a session manager").unwrap();
    let (page, _) = page.split_once("\n## ").unwrap();
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        (cells.len() == 7).then(|| (name.to_owned(), cells[4].to_owned()))
    };
    page.lines().filter_map(row).collect()
}

fn without(names: Names, some: &[&str]) -> Names {
    names.into_iter().filter(|name| !some.contains(&name.as_str())).collect()
}

#[test]
fn a_configuration_has_the_names_of_the_builder_and_no_others() {
    let here = without(of_a_configuration(), &OF_A_CONFIGURATION);
    let builder = without(of_the_builder(), &BY_PROGRAM_ONLY);
    assert!(here.len() > 20, "{here:?}");
    // The method is there with its feature only.
    assert_eq!(here, builder);
    assert_eq!(of_a_configuration().len(), here.len() + OF_A_CONFIGURATION.len());
}

#[test]
fn the_operators_page_has_every_name_and_its_default() {
    let documented = of_the_documents();
    let names: Names = documented.keys().cloned().collect();
    let here = without(of_a_configuration(), &OF_A_CONFIGURATION);
    assert_eq!(without(names, &BY_PROGRAM_ONLY), here);
    let builder = format!("{:?}", SessionManager::builder("redis://h/"));
    let (_, settings) = builder.split_once(" settings: Settings { ").unwrap();
    let (settings, _) = settings.split_once('}').unwrap();
    let mut compared = 0;
    for (name, default) in documented {
        // The page has its default in words.
        if name == "tls" {
            continue;
        }
        let Some((_, value)) = settings.split_once(&format!("{name}: ")) else { continue };
        let value = value.split(',').next().unwrap().trim();
        assert_eq!(value, shown(&default, value.starts_with("Some")), "{name}");
        compared += 1;
    }
    assert!(compared >= 19, "only {compared} defaults were compared");
}

/// What stands in the page behind that line, up to the end of the block.
#[cfg(feature = "tls-rustls")]
fn block(opening: &str) -> String {
    let page = fs::read_to_string("docs/operations.md").unwrap();
    let (_, page) = page.split_once("## Configuration from a file").unwrap();
    let (_, page) = page.split_once(opening).unwrap();
    page.split_once("```").unwrap().0.to_owned()
}

#[cfg(feature = "tls-rustls")]
#[test]
fn the_sample_on_the_operators_page_can_be_read() {
    let text = block("```toml");
    let file: Config = ::toml::from_str(&text).unwrap();
    let error = file.builder().build().unwrap_err().to_string();
    assert!(error.contains("/etc/redis/ca.pem cannot be read"), "all but the files: {error}");
    let (text, _) = text.split_once("[tls]").unwrap();
    let file: Config = ::toml::from_str(text).unwrap();
    assert_eq!(file.builder().build().unwrap().status().pooled.max_size, 16);

    let text = block("```text");
    let variable = |line: &str| {
        let (name, value) = line.strip_prefix("APP_REDIS_")?.split_once('=')?;
        Some((name.to_lowercase(), value.to_owned()))
    };
    let variables: Vec<_> = text.lines().filter_map(variable).collect();
    let entries: Vec<_> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(entries.len(), 4);
    let error = environment(&entries).builder().build().unwrap_err().to_string();
    assert!(error.contains("/etc/redis/ca.pem cannot be read"), "all but the file: {error}");
}

/// A default as the page has it, in the form that `Debug` has.
fn shown(default: &str, may_be_off: bool) -> String {
    let plain = default.replace(',', "");
    if default == "off" {
        return "None".to_owned();
    }
    if let Some(text) = default.strip_prefix('`') {
        return format!("{:?}", text.trim_end_matches('`'));
    }
    match plain.split_once(' ') {
        None => plain,
        Some((number, "KiB")) => (number.parse::<u64>().unwrap() << 10).to_string(),
        Some((number, "MiB")) => (number.parse::<u64>().unwrap() << 20).to_string(),
        Some((number, "GiB")) => (number.parse::<u64>().unwrap() << 30).to_string(),
        Some((number, unit)) => {
            let number: u64 = number.parse().unwrap();
            let time = match unit {
                "ms" => Duration::from_millis(number),
                "s" => Duration::from_secs(number),
                "min" => Duration::from_secs(60 * number),
                "h" => Duration::from_secs(60 * 60 * number),
                other => panic!("{default}: what is {other}?"),
            };
            if may_be_off { format!("Some({time:?})") } else { format!("{time:?}") }
        }
    }
}
