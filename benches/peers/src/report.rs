//! What was measured, as tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::measure::Sample;
use crate::peers::{self, Peer};
use crate::scenario::{Callers, POOL, Row, Scenario};
use crate::targets::{self, Metric};

/// Median, quartiles and maximum of the rounds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    /// A quarter of the rounds are below it.
    pub lower: f64,
    /// A quarter of the rounds are above it.
    pub upper: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        // Between the two values that are next to it.
        let at = |part: f64| {
            let place = last as f64 * part;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Self { median: at(0.5), lower: at(0.25), upper: at(0.75), most: values[last] })
    }
}

/// What heads a column of such figures.
pub const SPREAD: &str = "median (quartiles of the rounds)";

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

    /// The client that is not ours, decodes what it reads and has no more connections than the row
    /// gives it, with the highest rate.
    pub fn best_peer(&self, row: &Row) -> Option<&'static str> {
        let fits = |name: &str| name != peers::DEDICATED || row.workers <= POOL;
        self.quickest(row, |name| {
            !name.starts_with("rediscope") && !name.starts_with("raw") && fits(name)
        })
    }

    /// The form of ours with the highest rate.
    fn best_of_ours(&self, row: &Row) -> Option<&'static str> {
        self.quickest(row, |name| name.starts_with("rediscope"))
    }

    fn quickest(&self, row: &Row, wanted: impl Fn(&str) -> bool) -> Option<&'static str> {
        let mut peers: Vec<_> = peers::of(row.callers)
            .iter()
            .map(|peer| peer.name)
            .filter(|name| wanted(name))
            .filter_map(|name| Some((self.spread(row, name, Metric::Rate)?.median, name)))
            .collect();
        peers.sort_by(|a, b| a.0.total_cmp(&b.0));
        peers.pop().map(|(_, name)| name)
    }

    /// The peers of a row, as they are listed.
    pub fn peers(&self, row: &Row) -> Vec<&'static str> {
        let measured = |peer: &Peer| !self.rounds(row, peer.name).is_empty();
        let peers = peers::of(row.callers);
        peers.iter().filter(|peer| measured(peer)).map(|peer| peer.name).collect()
    }
}

/// The targets, and what became of them.
pub fn targets(measured: &Measured, callers: Callers) -> String {
    let scenario = match callers {
        Callers::Threads => "scenario, workers/connections",
        Callers::Tasks => "scenario",
    };
    let head = format!(
        "| {scenario} | ours | measured | target | {SPREAD} | | its limit, of the same \
         |\n|---|---|---|---|---|---|---|\n"
    );
    let lines = targets::of(callers).into_iter().map(|target| target.line(measured) + "\n");
    head + &lines.collect::<String>()
}

/// The quickest of ours beside the quickest other client, row by row.
pub fn best(measured: &Measured, rows: &[Row]) -> String {
    let mut text = format!(
        "| scenario, workers/connections | ours | best peer | rate, of the best peer: {SPREAD} | p99, \
         of the best peer |\n|---|---|---|---|---|\n"
    );
    // The others are in the file with all figures.
    for row in rows.iter().filter(|row| targets::is_one(row)) {
        let both = measured.best_of_ours(row).zip(measured.best_peer(row));
        let Some((ours, peer)) = both else { continue };
        let of = |metric| measured.ratio(row, ours, peer, metric);
        let Some((rate, p99)) = of(Metric::Rate).zip(of(Metric::P99)) else { continue };
        let bold = if rate.median < 1.0 { "**" } else { "" };
        let _ = writeln!(
            text,
            "| {} | {ours} | {peer} | {bold}{:.2}{bold} ({:.2} to {:.2}) | {:.2} ({:.2} to {:.2}) |",
            row.name(),
            rate.median,
            rate.lower,
            rate.upper,
            p99.median,
            p99.lower,
            p99.upper,
        );
    }
    text
}

/// Every peer of every row.
pub fn rows(measured: &Measured, rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let base = match (row.scenario, row.callers) {
            (Scenario::Watch(_), _) => peers::DEADPOOL,
            (_, Callers::Threads) => peers::R2D2_UNCHECKED,
            (_, Callers::Tasks) => peers::MULTIPLEXED,
        };
        let tries = matches!(row.scenario, Scenario::Watch(_));
        let cpu = row.callers == Callers::Tasks;
        let _ = write!(
            text,
            "\n#### {}\n\n| | a second | of {base} | p50 | p99 | p99.9 | longest | slowest worker |",
            row.name()
        );
        let of_tasks = if cpu { " client, server CPU | of it |" } else { "" };
        let _ = writeln!(text, "{of_tasks}{}", if tries { " tries |" } else { "" });
        let _ = writeln!(
            text,
            "|---|--:|--:|--:|--:|--:|--:|--:|{}{}",
            if cpu { "--:|--:|" } else { "" },
            if tries { "--:|" } else { "" }
        );
        for peer in measured.peers(row) {
            let Some(rate) = measured.spread(row, peer, Metric::Rate) else {
                let _ = writeln!(text, "| {peer} | failed in every round |");
                continue;
            };
            let of_base = |metric| {
                measured.ratio(row, peer, base, metric).map_or_else(
                    String::new,
                    |Spread { median, lower, upper, .. }| {
                        format!("{median:.2} ({lower:.2} to {upper:.2})")
                    },
                )
            };
            let ratio = of_base(Metric::Rate);
            let longest = measured.spread(row, peer, Metric::Longest);
            let _ = write!(
                text,
                "| {peer} | {} ({} to {}) | {ratio} | {} | {} | {} | {} | {:.2} |",
                thousands(rate.median),
                thousands(rate.lower),
                thousands(rate.upper),
                wait(measured.median(row, peer, |sample| sample.p50)),
                wait(measured.median(row, peer, |sample| sample.p99)),
                wait(measured.median(row, peer, |sample| sample.p999)),
                wait(longest.map_or(f64::NAN, |longest| longest.most / 1e3)),
                measured.median(row, peer, |sample| sample.slowest),
            );
            if cpu {
                let of = |of: fn(&Sample) -> f64| measured.median(row, peer, of) * 1e6;
                let (client, server) = (of(|it| it.client_cpu), of(|it| it.server_cpu));
                let ratio = of_base(Metric::ClientCpu);
                let _ = write!(text, " {client:.1}, {server:.1} µs | {ratio} |");
            }
            let count = measured.median(row, peer, |sample| sample.tries);
            let _ =
                writeln!(text, "{}", if tries { format!(" {count:.2} |") } else { String::new() });
        }
    }
    text
}

/// The peers' settings.
pub fn settings(callers: Callers) -> String {
    let line = |peer: Peer| format!("| {} | {} |\n", peer.name, peer.settings);
    let lines: String = peers::of(callers).into_iter().map(line).collect();
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

/// The text with lines of at most 118 characters, apart from tables.
pub fn narrow(text: &str) -> String {
    const WIDTH: usize = 118;
    let mut narrow = String::new();
    for line in text.lines() {
        if line.starts_with(['|', '#']) {
            narrow += line;
        } else {
            let mut length = 0;
            for word in line.split(' ') {
                let added = word.chars().count() + 1;
                if length > 0 {
                    let fits = length + added <= WIDTH;
                    narrow.push(if fits { ' ' } else { '\n' });
                    length = if fits { length } else { 0 };
                }
                narrow += word;
                length += added;
            }
        }
        narrow.push('\n');
    }
    narrow
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
    fn long_lines_are_broken_and_tables_are_not() {
        let (word, row) = ("word ".repeat(60), format!("| {} |", "cell ".repeat(60)));
        let text = narrow(&format!("{word}\n\n{row}\n"));
        let (long, short): (Vec<_>, Vec<_>) =
            text.lines().partition(|line| line.chars().count() > 120);
        assert_eq!(long, [row.as_str()]);
        assert!(short.len() >= 4, "{text}");
        assert_eq!(text.split_whitespace().filter(|it| *it == "word").count(), 60);
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
    fn a_quartile_between_two_values_is_between_them() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        let found = (spread.lower, spread.median, spread.upper, spread.most);
        assert_eq!(found, (1.75, 2.5, 3.25, 4.0));
        let spread = Spread::of(vec![5.0, 1.0, 4.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.lower, spread.median, spread.upper), (2.0, 3.0, 4.0));
        let one = Spread::of(vec![7.0]).unwrap();
        assert_eq!((one.lower, one.median, one.upper, one.most), (7.0, 7.0, 7.0, 7.0));
        assert!(Spread::of(Vec::new()).is_none());
    }
}
