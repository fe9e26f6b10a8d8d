//! One set of names: the builder's, a configuration's, and the documents'.
//!
//! Guarantee: settings

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

/// Settings that are no row of the table of settings.
const OF_THE_BUILDER: [&str; 6] =
    ["tls", "server_info", "credentials_provider", "username", "password", "password_file"];

const PAGE: &str = "docs/operations.md";

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
    let page = fs::read_to_string(PAGE).unwrap();
    let (_, page) = page.split_once("## Settings of a session manager").unwrap();
    let (page, _) = page.split_once("\n## ").unwrap();
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        let default = cells.get(2)?.split([';', '(']).next()?.split(", ").next()?.trim();
        (cells.len() == 5).then(|| (name.to_owned(), default.to_owned()))
    };
    page.lines().filter_map(row).collect()
}

/// The documentation of each setting, from the two places that make the builder's methods.
fn documentation() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let (mut name, mut text): (Option<String>, Vec<String>);
    for (file, is_table) in [("src/settings/table.rs", true), ("src/session/builder.rs", false)] {
        text = Vec::new();
        for line in fs::read_to_string(file).unwrap().lines().map(str::trim) {
            if let Some(doc) = line.strip_prefix("///") {
                text.push(doc.trim().to_owned());
                continue;
            }
            if line.starts_with("#[") {
                continue;
            }
            name = if is_table {
                line.split_once(": ")
                    .filter(|_| line.ends_with(';'))
                    .map(|(name, _)| name.to_owned())
            } else {
                let method =
                    line.strip_prefix("pub fn ").and_then(|rest| rest.split(['(', '<']).next());
                method.filter(|name| OF_THE_BUILDER.contains(name)).map(str::to_owned)
            };
            if let Some(name) = name.filter(|_| !text.is_empty()) {
                found.push((name, text.join(" ")));
            }
            text = Vec::new();
        }
    }
    found
}

/// The sentences up to that length: the rest is in the documentation of `Builder`.
fn beginning(text: &str) -> &str {
    const ENOUGH: usize = 20;
    let ends = text.match_indices(". ").map(|(at, _)| at + 1);
    ends.filter(|end| *end >= ENOUGH).min().map_or(text, |end| &text[..end])
}

/// The table of settings as the page has it: generated from the methods' documentation.
fn table_of_settings() -> String {
    let mut table = "| setting | default, bounds | meaning |\n|---|---|---|\n".to_owned();
    for (name, text) in documentation() {
        // Links lead to the API documentation, where the page is not always.
        let mut plain = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("](") {
            plain.push_str(before);
            plain.push(']');
            rest = after.split_once(')').unwrap().1;
        }
        let text = (plain + rest).replace("[`", "`").replace("`]", "`");
        let (meaning, default) = match text.split_once("Default") {
            None => (text.clone(), String::new()),
            Some((before, after)) => {
                let after = after.trim_start_matches([':', ' ']);
                let (default, behind) =
                    after.split_once(". ").unwrap_or((after.trim_end_matches('.'), ""));
                (format!("{before}{behind}"), default.to_owned())
            }
        };
        table += &format!("| `{name}` | {default} | {} |\n", beginning(meaning.trim()));
    }
    table
}

/// `UPDATE_PAGES=1` writes it.
#[test]
fn the_operators_table_is_the_documentation_of_the_settings() {
    let page = fs::read_to_string(PAGE).unwrap();
    let begin = page.find("<!-- settings: begin").unwrap();
    let begin = begin + page[begin..].find('\n').unwrap();
    let end = page.find("<!-- settings: end -->").unwrap();
    let table = format!("\n\n{}\n", table_of_settings());
    assert!(table.lines().count() > 25, "{table}");
    if std::env::var_os("UPDATE_PAGES").is_some() {
        fs::write(PAGE, format!("{}{table}{}", &page[..begin], &page[end..])).unwrap();
        return;
    }
    assert_eq!(&page[begin..end], table, "UPDATE_PAGES=1 writes the table");
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
        // Their defaults are in words.
        if OF_THE_BUILDER.contains(&name.as_str()) {
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
    let page = fs::read_to_string(PAGE).unwrap();
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

/// Each text that the page quotes is that of the refusal, `…` standing for whatever there is.
#[cfg(feature = "tls-rustls")]
#[test]
fn each_refusal_has_the_text_that_the_operators_page_quotes() {
    let page = fs::read_to_string(PAGE).unwrap();
    let (_, page) = page.split_once("| text | then |").unwrap();
    let (page, _) = page.split_once("\n\n").unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let texts = rows.map(|row| row.split("` | ").next().unwrap().trim_matches('`'));
    let url = ("url", "redis://h/");
    let tls = [("url", "rediss://h/"), ("tls_client_certificate", "Cargo.toml")];
    let real = [
        toml(&[("url", "redis://h/?protocl=1")]),
        toml(&[url, ("max_sise", "4")]),
        toml(&[url, ("max_size", "many")]),
        toml(&[url, ("pin_warning", "10")]),
        environment(&[tls[0], tls[1], ("tls_client_key", "/etc/redis/app.key")]),
        toml(&[("max_size", "4")]),
    ];
    let mut compared = 0;
    for (shown, config) in texts.zip(real) {
        let text = config.builder().build().unwrap_err().to_string();
        let mut rest = text.as_str();
        for part in shown.split('…') {
            let found = rest.split_once(part.trim_end());
            rest = found.unwrap_or_else(|| panic!("the page has {shown}, it is {text}")).1;
        }
        assert!(shown.ends_with('…') || rest.is_empty(), "the page has {shown}, it is {text}");
        compared += 1;
    }
    assert_eq!(compared, 6);
}

/// A default as the page has it, in the form that `Debug` has.
fn shown(default: &str, may_be_off: bool) -> String {
    let plain = default.replace(',', "");
    if default == "empty" {
        return "\"\"".to_owned();
    }
    if let "`None`" | "`false`" = default {
        return default.trim_matches('`').to_owned();
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
                "minutes" => Duration::from_secs(60 * number),
                "hour" => Duration::from_secs(60 * 60 * number),
                other => panic!("{default}: what is {other}?"),
            };
            if may_be_off { format!("Some({time:?})") } else { format!("{time:?}") }
        }
    }
}
