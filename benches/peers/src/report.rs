//! What was measured, as tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::measure::Sample;
use crate::peers::{self, Peer};
use crate::scenario::{Row, Scenario};
use crate::targets::{self, Metric};

/// Median, least and most of the rounds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => return None,
            odd if odd % 2 == 1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Self { median, least: values[0], most: values[values.len() - 1] })
    }
}

/// The samples by row and peer, one a round; `None` where the slice failed.
#[derive(Debug, Default)]
pub struct Measured {
    samples: BTreeMap<(String, &'static str), Vec<Option<Sample>>>,
}

impl Measured {
    pub fn note(&mut self, row: &Row, peer: &'static str, sample: Option<Sample>) {
        self.samples.entry((row.name(), peer)).or_default().push(sample);
    }

    fn rounds(&self, row: &Row, peer: &'static str) -> &[Option<Sample>] {
        self.samples.get(&(row.name(), peer)).map_or(&[], Vec::as_slice)
    }

    pub fn spread(&self, row: &Row, peer: &'static str, metric: Metric) -> Option<Spread> {
        let rounds = self.rounds(row, peer).iter().flatten();
        Spread::of(rounds.map(|sample| metric.of(sample)).collect())
    }

    fn median(&self, row: &Row, peer: &'static str, of: impl Fn(&Sample) -> f64) -> f64 {
        let rounds = self.rounds(row, peer).iter().flatten();
        Spread::of(rounds.map(of).collect()).map_or(f64::NAN, |spread| spread.median)
    }

    /// Round by round, so that what slows the machine slows both.
    pub fn ratio(
        &self,
        row: &Row,
        ours: &'static str,
        peer: &'static str,
        metric: Metric,
    ) -> Option<Spread> {
        let both = self.rounds(row, ours).iter().zip(self.rounds(row, peer));
        let ratio = |(ours, peer): (&Option<Sample>, &Option<Sample>)| {
            Some(metric.of(ours.as_ref()?) / metric.of(peer.as_ref()?))
        };
        Spread::of(both.filter_map(ratio).collect())
    }

    /// The client that is not ours, and does decode what it reads, with the highest rate.
    pub fn best_peer(&self, row: &Row) -> Option<&'static str> {
        let mut peers: Vec<_> = peers::all()
            .iter()
            .map(|peer| peer.name)
            .filter(|name| !name.starts_with("rediscope") && !name.starts_with("raw"))
            .filter_map(|name| Some((self.spread(row, name, Metric::Rate)?.median, name)))
            .collect();
        peers.sort_by(|a, b| a.0.total_cmp(&b.0));
        peers.pop().map(|(_, name)| name)
    }

    /// The peers of a row, as they are listed.
    pub fn peers(&self, row: &Row) -> Vec<&'static str> {
        let measured = |peer: &Peer| !self.rounds(row, peer.name).is_empty();
        peers::all().iter().filter(|peer| measured(peer)).map(|peer| peer.name).collect()
    }
}

/// The targets, and what became of them.
pub fn targets(measured: &Measured, soak: &str) -> String {
    let mut text = "| scenario, workers/connections | ours | measured | target \
                    | median (least to most of the rounds) | | its limit, of the same |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for target in targets::all() {
        let _ = writeln!(text, "{}", target.line(measured));
    }
    text + soak
}

/// Every peer of every row.
pub fn rows(measured: &Measured, rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let base = match row.scenario {
            Scenario::Watch(_) => peers::DEADPOOL,
            _ => peers::R2D2_UNCHECKED,
        };
        let tries = matches!(row.scenario, Scenario::Watch(_));
        let _ = write!(
            text,
            "\n#### {}\n\n| | a second | of {base} | p50 | p99 | p99.9 | longest | slowest worker |",
            row.name()
        );
        let _ = writeln!(text, "{}", if tries { " tries |" } else { "" });
        let _ =
            writeln!(text, "|---|--:|--:|--:|--:|--:|--:|--:|{}", if tries { "--:|" } else { "" });
        for peer in measured.peers(row) {
            let Some(rate) = measured.spread(row, peer, Metric::Rate) else {
                let _ = writeln!(text, "| {peer} | failed in every round |");
                continue;
            };
            let ratio = measured
                .ratio(row, peer, base, Metric::Rate)
                .map_or_else(String::new, |Spread { median, least, most }| {
                    format!("{median:.2} ({least:.2} to {most:.2})")
                });
            let longest = measured.spread(row, peer, Metric::Longest);
            let _ = write!(
                text,
                "| {peer} | {} | {ratio} | {} | {} | {} | {} | {:.2} |",
                thousands(rate.median),
                wait(measured.median(row, peer, |sample| sample.p50)),
                wait(measured.median(row, peer, |sample| sample.p99)),
                wait(measured.median(row, peer, |sample| sample.p999)),
                wait(longest.map_or(f64::NAN, |longest| longest.most / 1e3)),
                measured.median(row, peer, |sample| sample.slowest),
            );
            let count = measured.median(row, peer, |sample| sample.tries);
            let _ =
                writeln!(text, "{}", if tries { format!(" {count:.2} |") } else { String::new() });
        }
    }
    text
}

/// The peers' settings.
pub fn settings() -> String {
    let line = |peer: Peer| format!("| {} | {} |\n", peer.name, peer.settings);
    let lines: String = peers::all().into_iter().map(line).collect();
    format!("| peer | version and settings |\n|---|---|\n{lines}")
}

pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn wait(seconds: f64) -> String {
    match seconds {
        short if short < 1e-3 => format!("{:.0} µs", short * 1e6),
        middle if middle < 0.1 => format!("{:.1} ms", middle * 1e3),
        long => format!("{:.0} ms", long * 1e3),
    }
}

/// The page with `text` between its two marks, and the rest as it was.
pub fn insert(page: &str, text: &str) -> String {
    insert_as(page, "measured", text)
}

/// The same for a text of this name.
pub fn insert_as(page: &str, name: &str, text: &str) -> String {
    let begin = format!("<!-- {name}: begin (written by scripts/bench) -->");
    let end = format!("<!-- {name}: end -->");
    let block = format!("{begin}\n\n{}\n\n{end}", text.trim());
    match (page.split_once(&begin), page.split_once(&end)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{block}{after}"),
        _ if page.is_empty() => format!("# Performance\n\n{block}\n"),
        _ => format!("{}\n\n{block}\n", page.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_written() {
        let page = insert("# Performance\n\nBy hand.\n", "one");
        let again = insert(&format!("{page}\nBelow, by hand.\n"), "two");
        assert!(again.starts_with("# Performance\n\nBy hand.\n\n<!-- measured: begin"));
        assert!(again.contains("\n\ntwo\n\n") && !again.contains("one"));
        assert!(again.ends_with("Below, by hand.\n"));
    }

    #[test]
    fn what_is_between_other_marks_stays() {
        let page = insert_as(&insert("# Performance\n", "one"), "locks", "two");
        let page = insert(&page, "three");
        assert!(page.contains("\n\nthree\n\n") && page.contains("\n\ntwo\n\n"), "{page}");
        let page = insert_as(&page, "locks", "four");
        assert!(page.contains("\n\nthree\n\n") && page.contains("\n\nfour\n\n"), "{page}");
        assert!(!page.contains("one") && !page.contains("two"), "{page}");
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.least, spread.most), (2.5, 1.0, 4.0));
    }
}
