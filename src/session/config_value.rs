//! Configuration values without a type, before validation.
//!
//! Parsing does not fail, so that no deserializer's error shows a line with a password. A value
//! that does not fit becomes an error later, with its name and without the value.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::config::ConfigError;

/// A value, or a table of values.
pub(crate) enum RawValue {
    Number(u64),
    Text(String),
    Bool(bool),
    Table(Vec<(String, RawValue)>),
    /// A value that fits no setting.
    Other,
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

/// Parses a number, also from text, because the environment has no numbers.
fn number(raw: &RawValue) -> Option<u64> {
    match raw {
        RawValue::Number(number) => Some(*number),
        RawValue::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
}

impl FromRaw for u32 {
    const EXPECTED: &'static str = "must be a whole number, from 0 to 4294967295";

    fn from_raw(raw: &RawValue) -> Option<Self> {
        number(raw)?.try_into().ok()
    }
}

impl FromRaw for usize {
    const EXPECTED: &'static str = "must be a whole number, such as 65536";

    fn from_raw(raw: &RawValue) -> Option<Self> {
        number(raw)?.try_into().ok()
    }
}

impl FromRaw for bool {
    const EXPECTED: &'static str = "must be true or false";

    fn from_raw(raw: &RawValue) -> Option<Self> {
        match raw {
            RawValue::Bool(value) => Some(*value),
            RawValue::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

impl FromRaw for Duration {
    const EXPECTED: &'static str = "must be a time with its unit, such as \"500ms\" or \"2s\"";

    fn from_raw(raw: &RawValue) -> Option<Self> {
        match raw {
            RawValue::Text(text) => humantime::parse_duration(text.trim()).ok(),
            _ => None,
        }
    }
}

impl FromRaw for Option<Duration> {
    const EXPECTED: &'static str =
        "must be a time with its unit, such as \"500ms\" or \"10m\", or \"off\"";

    fn from_raw(raw: &RawValue) -> Option<Self> {
        match raw {
            RawValue::Text(text) if text.trim() == "off" => Some(None),
            raw => Duration::from_raw(raw).map(Some),
        }
    }
}

impl FromRaw for String {
    const EXPECTED: &'static str = "must be text";

    fn from_raw(raw: &RawValue) -> Option<Self> {
        match raw {
            RawValue::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
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

macro_rules! no_setting {
    ($($visit:ident($type:ty))+) => {$(
        fn $visit<E>(self, _: $type) -> Result<RawValue, E> {
            Ok(RawValue::Other)
        }
    )+};
}

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a configuration")
    }

    no_setting! { visit_f64(f64) visit_i128(i128) visit_u128(u128) visit_bytes(&[u8]) }

    fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Bool(value))
    }

    fn visit_u64<E>(self, number: u64) -> Result<RawValue, E> {
        Ok(RawValue::Number(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<RawValue, E> {
        Ok(u64::try_from(number).map_or(RawValue::Other, RawValue::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<RawValue, E> {
        Ok(RawValue::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<RawValue, E> {
        Ok(RawValue::Text(text))
    }

    fn visit_none<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Other)
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Other)
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
            match (name, raw) {
                (RawValue::Text(name), text @ RawValue::Text(_)) if name == NUMBER => {
                    return Ok(text);
                }
                (RawValue::Text(name), raw) => table.push((name, raw)),
                // No setting has an empty name.
                (_, raw) => table.push((String::new(), raw)),
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
        assert_eq!(u32::from_raw(&RawValue::Number(7)), Some(7));
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
        assert_eq!(Duration::from_raw(&RawValue::Number(5)), None, "five of what?");
        assert_eq!(Option::<Duration>::from_raw(&text("off")), Some(None));
        assert_eq!(
            Option::<Duration>::from_raw(&text("10m")),
            Some(Some(Duration::from_secs(600)))
        );
        assert_eq!(Option::<Duration>::from_raw(&RawValue::Other), None);
    }
}
