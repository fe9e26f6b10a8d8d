//! Command line arguments: numbers and switches.

use std::error::Error;

/// Reads `--name number` pairs, with defaults for the others. `--help` ends the program.
///
/// # Errors
/// An argument that is not in `known`, or not a number.
pub fn numbers<const N: usize>(
    known: [(&'static str, u64); N],
) -> Result<[u64; N], Box<dyn Error>> {
    Ok(numbers_and_switches(known, [])?.0)
}

/// Like [`numbers`], with switches that have no number: whether each is there.
///
/// # Errors
/// An argument that is in neither list, or not a number.
pub fn numbers_and_switches<const N: usize, const M: usize>(
    mut known: [(&'static str, u64); N],
    switches: [&'static str; M],
) -> Result<([u64; N], [bool; M]), Box<dyn Error>> {
    let numbers = known.map(|(name, default)| format!("[{name} {default}]"));
    let usage = numbers.into_iter().chain(switches.map(|name| format!("[{name}]")));
    let usage = usage.collect::<Vec<_>>().join(" ");
    let mut present = [false; M];
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let switch = switches.iter().zip(&mut present).find(|(name, _)| **name == arg);
        if let Some((_, present)) = switch {
            *present = true;
            continue;
        }
        if arg == "--help" {
            println!("arguments and their defaults: {usage}");
            std::process::exit(0);
        }
        let value = args.next().and_then(|value| value.replace('_', "").parse().ok());
        let entry = known.iter_mut().find(|(name, _)| *name == arg);
        let (Some((_, number)), Some(value)) = (entry, value) else {
            return Err(format!("{arg}: not understood; arguments and defaults: {usage}").into());
        };
        *number = value;
    }
    Ok((known.map(|(_, value)| value), present))
}
