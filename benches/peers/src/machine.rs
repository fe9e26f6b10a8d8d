//! The machine of the measurement.

use std::process::{Child, Command};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::server::Server;

/// One line: cores, processor, server, compiler, date.
pub fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, {}; {}; {}; {}", processor(), server(), compiler(), today())
}

/// What the asynchronous peers run on: as many workers as there are cores.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from))
        .enable_all()
        .build()
        .expect("a runtime")
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    match model {
        Some(model) => model.to_owned(),
        None => first_line(Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"])),
    }
}

fn server() -> String {
    let line = first_line(Command::new(Server::binary()).arg("--version"));
    let version = line.split_whitespace().find_map(|word| word.strip_prefix("v="));
    format!("redis-server {}", version.unwrap_or("of an unknown version"))
}

fn compiler() -> String {
    let line = first_line(Command::new("rustc").arg("--version"));
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn first_line(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&output);
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

/// The load average of the last minute, if the system has it: what other programs did meanwhile.
pub fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// The date in UTC: days since 1970, by Howard Hinnant's `civil_from_days`.
fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = now / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

/// Endless loops beside the run, a process each, ended with their handle.
#[derive(Debug)]
pub struct Loops(Vec<Child>);

impl Loops {
    pub fn start(count: usize) -> Self {
        let start = |_| {
            Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("an endless loop")
        };
        Self((0..count).map(start).collect())
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
