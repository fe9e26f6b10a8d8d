//! A benchmark with a section of its own in `figures.md`: its arguments, and where its text goes.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::machine;
use crate::report::{insert_as, narrow};

/// The arguments and the begin of one run.
#[derive(Debug)]
pub struct Section {
    name: &'static str,
    /// The seed, which is set.
    pub seed: u64,
    /// Number of interleaved rounds.
    pub rounds: u64,
    /// Duration of one measurement.
    pub slice: Duration,
    /// The folder of the page. `None`: the text is only printed.
    into: Option<String>,
    began: Instant,
    load: Option<f64>,
}

impl Section {
    /// Reads the program's arguments; `rounds` and `slice` (in milliseconds) are the defaults. Ends the
    /// program if they cannot be read.
    pub fn from_arguments(name: &'static str, mut rounds: u64, mut slice: u64) -> Self {
        let usage = || -> ! {
            eprintln!("{name} [--seed N] [--rounds N] [--slice MS] [--into FOLDER | --dry]");
            std::process::exit(2)
        };
        let (mut seed, mut into) = (fastrand::u64(..1 << 32), Some("benches".to_owned()));
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let value = arguments.next().and_then(|text| text.parse().ok());
                value.unwrap_or_else(|| usage())
            };
            match argument.as_str() {
                "--seed" => seed = number(),
                "--rounds" => rounds = number().max(1),
                "--slice" => slice = number().max(1),
                "--into" => into = Some(arguments.next().unwrap_or_else(|| usage())),
                "--dry" => into = None,
                _ => usage(),
            }
        }
        let (began, load) = (Instant::now(), machine::load());
        fastrand::seed(seed);
        Self { name, seed, rounds, slice: Duration::from_millis(slice), into, began, load }
    }

    /// The machine, and how busy it was before the run.
    pub fn machine(&self) -> String {
        let load = self.load.map_or("unknown".to_owned(), |load| format!("{load:.1}"));
        format!("{}; load average before {load}", machine::describe())
    }

    /// Prints the text, and writes it into the section of the page.
    pub fn write(&self, text: &str) {
        let text = narrow(text);
        println!("{text}\ntook {:.0} s", self.began.elapsed().as_secs_f64());
        if let Some(folder) = &self.into {
            let page = Path::new(folder).join("figures.md");
            let before = std::fs::read_to_string(&page).unwrap_or_default();
            std::fs::write(&page, insert_as(&before, self.name, &text)).expect("write the figures");
            eprintln!("wrote {}", page.display());
        }
    }
}
