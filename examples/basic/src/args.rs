//! Command line arguments that are numbers.

use std::error::Error;

/// Reads `--name number` pairs, with defaults for the others. `--help` ends the program.
///
/// # Errors
/// An argument that is not in `known`, or not a number.
pub fn numbers<const N: usize>(
    mut known: [(&'static str, u64); N],
) -> Result<[u64; N], Box<dyn Error>> {
    let usage = known.map(|(name, default)| format!("[{name} {default}]")).join(" ");
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
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
    Ok(known.map(|(_, value)| value))
}
