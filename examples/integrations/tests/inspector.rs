//! Promise: the inspector's page shows, in a browser, which call holds a connection, since when and from which place.
//!
//! ```text
//! apt-get install -y chromium
//! cargo test -p rediscope-integrations --test inspector -- --nocapture
//! SCREENSHOT=docs/inspector.png cargo test -p rediscope-integrations --test inspector
//! ```
//!
//! The browser is $CHROMIUM, or `chromium` on the PATH. Without one the test prints that it was not run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic with a clear message is how it reports"
)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rediscope_testing::program::Killed;
use rediscope_testing::server::Server;

/// Time within which the page must have what is looked for.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn the_page_names_the_holder_its_place_and_the_time_and_plots_the_counters() {
    let browser = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    if Command::new(&browser).arg("--version").output().is_err() {
        return rediscope_testing::not_run(&format!("there is no {browser}; set CHROMIUM to one"));
    }
    let server = Server::start();
    let child = Command::new(env!("CARGO_BIN_EXE_inspector"))
        .args(["--seconds", "120"])
        .env("REDIS_URL", server.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut inspector = Killed(child);
    let mut line = String::new();
    BufReader::new(inspector.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.split(' ').find(|word| word.starts_with("http://")).expect("the address");

    let profile = tempfile::tempdir().unwrap();
    // The page's clock, not the machine's: the browser runs ahead where nothing is under way.
    let look = |how: &str, seconds: u32| {
        let flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
                     --disable-background-networking --disable-component-update --disable-sync \
                     --window-size=1000,900";
        let output = Command::new(&browser)
            .args(flags.split_whitespace())
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--virtual-time-budget={}", seconds * 1_000))
            .args([how, url])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // Between two reports the connection is free for a moment.
    let begun = Instant::now();
    let place = "examples/integrations/src/bin/inspector/main.rs:";
    let page = loop {
        let page = look("--dump-dom", 6);
        if page.contains("nightly report") && page.contains(place) {
            break page;
        }
        assert!(begun.elapsed() < SOON, "{page}");
    };
    let scopes = page.split("id=\"scopes\"").nth(1).unwrap().split("</tbody>").next().unwrap();
    assert!(scopes.contains("<td>transactional</td><td>nightly report</td>"), "{scopes}");
    assert!(scopes.contains(" s</td>") || scopes.contains(" ms</td>"), "{scopes}");
    assert!(scopes.contains("<td>task "), "{scopes}");
    for plot in ["transactional commits", "transactional conflicts", "locks acquired"] {
        let figure = page.split(&format!("id=\"plot {plot}\"")).nth(1).expect(plot);
        let points = figure.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert!(points.split(' ').count() > 1, "{plot}: {points}");
    }
    assert!(page.contains("1 held, "), "the lock is not shown");
    if let Ok(path) = std::env::var("SCREENSHOT") {
        let path = std::path::absolute(format!("../../{path}")).unwrap();
        look(&format!("--screenshot={}", path.display()), 45);
        assert!(path.metadata().unwrap().len() <= 100 * 1024, "the picture is too large");
    }
}
