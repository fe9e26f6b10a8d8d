//! The same as a picture: a bar a peer, a group a row. Written by hand, since it is bars and text.

use std::fmt::Write as _;

use crate::report::{Measured, thousands};
use crate::scenario::Row;
use crate::targets::Metric;

const BAR: usize = 15;
const TITLE: usize = 30;
const LABELS: usize = 190;
const WIDTH: usize = 860;
const BARS: f64 = 470.0;

/// Operations a second, medians of the rounds, with a line from the lower to the upper quartile.
/// Each row has a scale of its own.
pub fn svg(measured: &Measured, rows: &[Row], caption: &str) -> String {
    let mut body = String::new();
    let mut y = 46;
    for row in rows {
        let _ = writeln!(body, r#"<text x="8" y="{}" class="row">{}</text>"#, y + 20, row.name());
        y += TITLE;
        let spreads: Vec<_> = measured
            .peers(row)
            .into_iter()
            .filter_map(|peer| Some((peer, measured.spread(row, peer, Metric::Rate)?)))
            .collect();
        let most = spreads.iter().map(|(_, spread)| spread.upper).fold(1.0, f64::max);
        let x = |value: f64| LABELS as f64 + value / most * BARS;
        for (peer, spread) in spreads {
            let class = match peer {
                ours if ours.starts_with("rediscope") => "ours",
                limit if limit.starts_with("raw") => "limit",
                _ => "peer",
            };
            let middle = y + BAR / 2;
            let end = x(spread.median);
            let _ = writeln!(
                body,
                r#"<text x="{}" y="{}" class="name">{peer}</text><rect x="{LABELS}" y="{y}" width="{:.1}" height="{}" class="{class}"/><path d="M{:.1} {middle}H{:.1}"/><text x="{:.1}" y="{}">{}</text>"#,
                LABELS - 6,
                y + BAR - 4,
                end - LABELS as f64,
                BAR - 3,
                x(spread.lower),
                x(spread.upper),
                x(spread.upper) + 6.0,
                y + BAR - 4,
                thousands(spread.median),
            );
            y += BAR;
        }
    }
    let height = y + 16;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="operations a second by scenario and client">
<style>text{{font:11px sans-serif;fill:#333}}.row{{font-weight:bold;font-size:13px}}.name{{text-anchor:end}}.ours{{fill:#c0392b}}.peer{{fill:#7f9db9}}.limit{{fill:#ccc}}path{{stroke:#111;stroke-width:1}}</style>
<rect width="100%" height="100%" fill="#fff"/>
<text x="8" y="20" class="row">Operations a second: medians and quartiles of the rounds</text>
<text x="8" y="38">{}</text>
{body}</svg>
"##,
        caption.replace('&', "&amp;").replace('<', "&lt;")
    )
}
