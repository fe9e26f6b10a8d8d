//! Names of commands as errors and logs show them.

use crate::protocol::command::table;
use crate::protocol::command::upper_name::UpperName;

/// Stands for a name that may be the caller's data.
pub(crate) const UNKNOWN: &str = "an unknown command";

/// The name in upper case if it is one of the server's own, has a module's form (`JSON.SET`) or is
/// one word of letters. Any other name may be the caller's data: a whole command passed as a name
/// contains its key and value.
pub(crate) fn display_name(name: &[u8]) -> String {
    let is_word = |part: &[u8]| {
        !part.is_empty() && part.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
    };
    let mut parts = name.split(|byte| *byte == b'.');
    let is_name = parts.all(is_word);
    match UpperName::new(name) {
        Some(folded) if is_name || table::is_server_command(name) => folded.as_str().to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_may_be_data_is_not_shown() {
        for (name, shown) in [
            ("get", "GET"),
            ("EvalSha", "EVALSHA"),
            ("migrate", "MIGRATE"),
            ("multi", "MULTI"),
            ("json.set", "JSON.SET"),
            ("FT._LIST", "FT._LIST"),
            ("vadd", "VADD"),
            ("nosuch", "NOSUCH"),
        ] {
            assert_eq!(display_name(name.as_bytes()), shown);
        }
        for name in [
            "SET key value",
            "SET\tkey",
            "user:17",
            "hunter2",
            "",
            ".",
            "a.",
            "GET.s3cret",
            "a.name.that.is.longer.than.any.in.a.table",
        ] {
            assert_eq!(display_name(name.as_bytes()), UNKNOWN, "{name}");
        }
        assert_eq!(display_name(b"\xff\xfe"), UNKNOWN);
    }
}
