//! Floats that are added to an integer.

use crate::protocol::command::upper_name::UpperName;

/// Whether a command adds a float to an integer, which the server rejects when it runs.
pub(crate) fn adds_float(args: &[&[u8]]) -> bool {
    let name = args.first().copied().and_then(UpperName::new);
    name.is_some_and(|name| matches!(name.as_str(), "INCRBY" | "DECRBY" | "HINCRBY"))
        && args.len() > 2
        && args.last().copied().is_some_and(is_float)
}

/// Returns the alternative to a command that adds a float to an integer.
pub(crate) fn float_hint(command: &str) -> &'static str {
    match command {
        "HINCRBY" => "it adds integers; hincr_float adds a float",
        "DECRBY" => "it subtracts integers; incr_float adds a float, also a negative one",
        _ => "it adds integers; incr_float adds a float",
    }
}

/// Whether the argument is a number with a fraction or an exponent, or not finite.
pub(crate) fn is_float(arg: &[u8]) -> bool {
    let digits = arg.strip_prefix(b"-").unwrap_or(arg);
    !digits.iter().all(u8::is_ascii_digit)
        && std::str::from_utf8(arg).is_ok_and(|text| text.parse::<f64>().is_ok())
}
