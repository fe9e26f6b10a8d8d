//! Configuration values without a type, before validation.
//!
//! Parsing does not fail, so that no deserializer's error shows a line with a password. A value
//! that does not fit becomes an error later, with its name and without the value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::config::ConfigError;

/// A value, or a table of values.
#[derive(Clone)]
pub(crate) enum RawValue {
    Text(String),
    /// A number or a bool.
    Bare(String),
    Table(Vec<(String, RawValue)>),
    /// A value that fits no setting.
    Other,
}

impl RawValue {
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Shows a value that fits its setting, as it was read.
impl fmt::Debug for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(value) | Self::Bare(value) => f.write_str(value),
            Self::Table(_) | Self::Other => f.write_str("…"),
        }
    }
}

/// The type of a setting, parsed from a raw value.
pub(crate) trait FromRaw: Sized {
    /// End of a sentence that begins with the setting's name.
    const EXPECTED: &'static str;

    /// Returns `None` if the raw value does not fit the type.
    fn from_raw(raw: &RawValue) -> Option<Self>;
}

/// Parses the value of the setting with that name.
pub(crate) fn parse<T: FromRaw>(name: &'static str, raw: &RawValue) -> Result<T, ConfigError> {
    T::from_raw(raw).ok_or_else(|| ConfigError::setting(name, T::EXPECTED))
}

macro_rules! from_raw {
    ($($type:ty = $parse:expr, $expected:literal;)+) => {$(
        impl FromRaw for $type {
            const EXPECTED: &'static str = $expected;

            fn from_raw(raw: &RawValue) -> Option<Self> {
                $parse(raw)
            }
        }
    )+};
}

from_raw! {
    u32 = bare, "must be a whole number, from 0 to 4294967295";
    usize = bare, "must be a whole number, such as 65536";
    bool = bare, "must be true or false";
    Duration = duration, "must be a time with its unit, such as \"500ms\" or \"2s\"";
    Option<Duration> = duration_or_off,
        "must be a time with its unit, such as \"500ms\" or \"10m\", or \"off\"";
    String = |raw: &RawValue| raw.text().map(str::to_owned), "must be text";
}

/// Parses a number or a bool, also from text, because the environment has no others.
fn bare<T: FromStr>(raw: &RawValue) -> Option<T> {
    match raw {
        RawValue::Text(value) | RawValue::Bare(value) => value.trim().parse().ok(),
        RawValue::Table(_) | RawValue::Other => None,
    }
}

fn duration(raw: &RawValue) -> Option<Duration> {
    humantime::parse_duration(raw.text()?.trim()).ok()
}

fn duration_or_off(raw: &RawValue) -> Option<Option<Duration>> {
    if raw.text()?.trim() == "off" { Some(None) } else { duration(raw).map(Some) }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(RawVisitor)
    }
}

/// Accepts a value of any type.
struct RawVisitor;

/// Name under which `serde_json` passes a number's text, if its feature `arbitrary_precision` is
/// on.
const NUMBER: &str = "$serde_json::private::Number";

macro_rules! scalars {
    ($($visit:ident($($value:ident: $type:ty)?) = $raw:expr;)+) => {$(
        fn $visit<E>(self, $($value: $type)?) -> Result<RawValue, E> {
            Ok($raw)
        }
    )+};
}

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a configuration")
    }

    scalars! {
        visit_bool(value: bool) = RawValue::Bare(value.to_string());
        visit_i64(value: i64) = RawValue::Bare(value.to_string());
        visit_u64(value: u64) = RawValue::Bare(value.to_string());
        visit_str(value: &str) = RawValue::Text(value.to_owned());
        visit_i128(_value: i128) = RawValue::Other;
        visit_u128(_value: u128) = RawValue::Other;
        visit_f64(_value: f64) = RawValue::Other;
        visit_bytes(_value: &[u8]) = RawValue::Other;
        visit_none() = RawValue::Other;
        visit_unit() = RawValue::Other;
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<RawValue, D::Error> {
        RawValue::deserialize(from)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<RawValue, D::Error> {
        RawValue::deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawValue, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(RawValue::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
        let mut table = Vec::new();
        while let Some((name, raw)) = map.next_entry::<RawValue, RawValue>()? {
            // No setting has an empty name.
            let name = name.text().unwrap_or_default().to_owned();
            match raw {
                RawValue::Text(number) if name == NUMBER => return Ok(RawValue::Bare(number)),
                raw => table.push((name, raw)),
            }
        }
        Ok(RawValue::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> RawValue {
        RawValue::Text(text.to_owned())
    }

    #[test]
    fn a_number_is_one_also_as_text() {
        assert_eq!(u32::from_raw(&RawValue::Bare("7".to_owned())), Some(7));
        assert_eq!(u32::from_raw(&text(" 7 ")), Some(7));
        assert_eq!(usize::from_raw(&text("65536")), Some(65536));
        for none in [text("-1"), text("7.5"), text("4294967296"), text(""), RawValue::Other] {
            assert_eq!(u32::from_raw(&none), None);
        }
        let precise = format!(r#"{{"{NUMBER}": "42"}}"#);
        let raw: RawValue = serde_json::from_str(&precise).unwrap();
        assert_eq!(u32::from_raw(&raw), Some(42));
    }

    #[test]
    fn a_time_says_its_unit_and_off_is_none() {
        let time = |raw| Duration::from_raw(&text(raw));
        assert_eq!(time("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(time("1h 30m"), Some(Duration::from_secs(5400)));
        assert_eq!(time(" 0s "), Some(Duration::ZERO));
        for none in ["500", "2 parsecs", "", "off", "s", "-2s", "99999999999999999999s"] {
            assert_eq!(time(none), None, "{none}");
        }
        assert_eq!(Duration::from_raw(&RawValue::Bare("5".to_owned())), None, "five of what?");
        assert_eq!(Option::<Duration>::from_raw(&text("off")), Some(None));
        assert_eq!(
            Option::<Duration>::from_raw(&text("10m")),
            Some(Some(Duration::from_secs(600)))
        );
        assert_eq!(Option::<Duration>::from_raw(&RawValue::Other), None);
    }
}
