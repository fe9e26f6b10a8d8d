//! The wording of errors: causes only on request, durations and counts in a readable form.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Writes the causes of `error` after its own text, in the alternate form (`{:#}`) only.
pub(crate) fn causes(error: &dyn Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if !f.alternate() {
        return Ok(());
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}

/// Implements `Display` by the error's own `text`, with its causes in the alternate form.
macro_rules! display {
    ($($error:ty),+) => {$(
        impl std::fmt::Display for $error {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.text(f)?;
                $crate::text::causes(self, f)
            }
        }
    )+};
}
pub(crate) use display;

/// Implements `Debug` by the type's name alone: its value must not be shown, or describes nothing.
macro_rules! opaque_debug {
    ($name:ident) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}
pub(crate) use opaque_debug;

/// A reply of a kind that the requested type cannot hold.
pub(crate) fn unreadable(found: &str, expected: &str) -> String {
    let hint = if found == "nil" { "; a reply that may be nil is read as an `Option`" } else { "" };
    format!("{found}, which cannot be read as {expected}{hint}")
}

/// A duration with two digits, or with all digits of its whole units if these are more.
pub(crate) fn brief(duration: Duration) -> impl fmt::Display {
    Brief(duration)
}

struct Brief(Duration);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u128); 4] =
            [("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000), ("ns", 1)];
        let nanos = self.0.as_nanos();
        for (unit, size) in UNITS {
            // Tenths are shown only below ten units.
            let tenths = (nanos * 10 + size / 2) / size;
            let whole = (nanos + size / 2) / size;
            if (10..100).contains(&tenths) && !tenths.is_multiple_of(10) {
                return write!(f, "{}.{}{unit}", tenths / 10, tenths % 10);
            }
            if tenths >= 10 {
                return write!(f, "{whole}{unit}");
            }
        }
        f.write_str("0s")
    }
}

/// A number and its noun, with an `s` unless the number is one.
pub(crate) fn count(number: usize, what: &str) -> impl fmt::Display {
    Counted(number, what)
}

struct Counted<'w>(usize, &'w str);

impl fmt::Display for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.0, self.1, if self.0 == 1 { "" } else { "s" })
    }
}

/// A condition in a text: its index, the function that made it, and its own name if it has one.
pub(crate) fn condition_label(index: usize, kind: &str, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("#{index} {kind} ({name})"),
        None => format!("#{index} {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_digits_or_all_of_their_whole_units() {
        for (duration, shown) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(7), "7ns"),
            (Duration::from_nanos(1_250), "1.3µs"),
            (Duration::from_micros(29_998), "30ms"),
            (Duration::from_micros(999_960), "1s"),
            (Duration::from_millis(250), "250ms"),
            (Duration::from_millis(1_002), "1s"),
            (Duration::from_millis(1_250), "1.3s"),
            (Duration::from_millis(28_512), "29s"),
            (Duration::from_secs(3600), "3600s"),
            (Duration::MAX, "18446744073709551616s"),
        ] {
            assert_eq!(brief(duration).to_string(), shown, "{duration:?}");
        }
        assert_eq!(count(1, "command").to_string(), "1 command");
        assert_eq!(count(0, "command").to_string(), "0 commands");
    }
}
