//! What a file or the environment says, before anybody has said what it should be.
//!
//! Everything is taken as it comes: reading does not fail, so no reader's error shows the line that
//! holds a password. What does not fit is told later, by its name.
//!
//! Never: a value in an error.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::config::ConfigError;

/// One value, or a table of them.
pub(crate) enum Said {
    Number(u64),
    Text(String),
    Truth(bool),
    Table(Vec<(String, Said)>),
    /// Something that no setting is.
    Other,
}

/// What a setting is made of.
pub(crate) trait Understand: Sized {
    /// The end of a sentence that begins with the setting's name.
    const EXPECTED: &'static str;

    /// `None`: that is no such thing.
    fn of(said: &Said) -> Option<Self>;
}

/// The value of the setting of that name.
pub(crate) fn understand<T: Understand>(name: &'static str, said: &Said) -> Result<T, ConfigError> {
    T::of(said).ok_or_else(|| ConfigError::setting(name, T::EXPECTED))
}

/// The environment has no numbers.
fn number(said: &Said) -> Option<u64> {
    match said {
        Said::Number(number) => Some(*number),
        Said::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
}

impl Understand for u32 {
    const EXPECTED: &'static str = "must be a whole number, from 0 to 4294967295";

    fn of(said: &Said) -> Option<Self> {
        number(said)?.try_into().ok()
    }
}

impl Understand for usize {
    const EXPECTED: &'static str = "must be a whole number, such as 65536";

    fn of(said: &Said) -> Option<Self> {
        number(said)?.try_into().ok()
    }
}

impl Understand for bool {
    const EXPECTED: &'static str = "must be true or false";

    fn of(said: &Said) -> Option<Self> {
        match said {
            Said::Truth(truth) => Some(*truth),
            Said::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

impl Understand for Duration {
    const EXPECTED: &'static str = "must be a time with its unit, such as \"500ms\" or \"2s\"";

    fn of(said: &Said) -> Option<Self> {
        match said {
            Said::Text(text) => humantime::parse_duration(text.trim()).ok(),
            _ => None,
        }
    }
}

impl Understand for Option<Duration> {
    const EXPECTED: &'static str =
        "must be a time with its unit, such as \"500ms\" or \"10m\", or \"off\"";

    fn of(said: &Said) -> Option<Self> {
        match said {
            Said::Text(text) if text.trim() == "off" => Some(None),
            said => Duration::of(said).map(Some),
        }
    }
}

impl Understand for String {
    const EXPECTED: &'static str = "must be text";

    fn of(said: &Said) -> Option<Self> {
        match said {
            Said::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Listener)
    }
}

/// Takes whatever comes.
struct Listener;

/// The name by which `serde_json` gives a number's text, where its feature `arbitrary_precision` is on.
const NUMBER: &str = "$serde_json::private::Number";

macro_rules! no_setting {
    ($($visit:ident($type:ty))+) => {$(
        fn $visit<E>(self, _: $type) -> Result<Said, E> {
            Ok(Said::Other)
        }
    )+};
}

impl<'de> Visitor<'de> for Listener {
    type Value = Said;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a configuration")
    }

    no_setting! { visit_f64(f64) visit_i128(i128) visit_u128(u128) visit_bytes(&[u8]) }

    fn visit_bool<E>(self, truth: bool) -> Result<Said, E> {
        Ok(Said::Truth(truth))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Said, E> {
        Ok(Said::Number(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Said, E> {
        Ok(u64::try_from(number).map_or(Said::Other, Said::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Said, E> {
        Ok(Said::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Said, E> {
        Ok(Said::Text(text))
    }

    fn visit_none<E>(self) -> Result<Said, E> {
        Ok(Said::Other)
    }

    fn visit_unit<E>(self) -> Result<Said, E> {
        Ok(Said::Other)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Said, D::Error> {
        Said::deserialize(from)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<Said, D::Error> {
        Said::deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Said, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Said::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Said, A::Error> {
        let mut table = Vec::new();
        while let Some((name, said)) = map.next_entry::<Said, Said>()? {
            match (name, said) {
                (Said::Text(name), text @ Said::Text(_)) if name == NUMBER => return Ok(text),
                (Said::Text(name), said) => table.push((name, said)),
                // No setting is called so either.
                (_, said) => table.push((String::new(), said)),
            }
        }
        Ok(Said::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Said {
        Said::Text(text.to_owned())
    }

    #[test]
    fn a_number_is_one_also_as_text() {
        assert_eq!(u32::of(&Said::Number(7)), Some(7));
        assert_eq!(u32::of(&text(" 7 ")), Some(7));
        assert_eq!(usize::of(&text("65536")), Some(65536));
        for none in [text("-1"), text("7.5"), text("4294967296"), text(""), Said::Other] {
            assert_eq!(u32::of(&none), None);
        }
        let precise = format!(r#"{{"{NUMBER}": "42"}}"#);
        let said: Said = serde_json::from_str(&precise).unwrap();
        assert_eq!(u32::of(&said), Some(42));
    }

    #[test]
    fn a_time_says_its_unit_and_off_is_none() {
        let time = |said| Duration::of(&text(said));
        assert_eq!(time("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(time("1h 30m"), Some(Duration::from_secs(5400)));
        assert_eq!(time(" 0s "), Some(Duration::ZERO));
        for none in ["500", "2 parsecs", "", "off", "s", "-2s", "99999999999999999999s"] {
            assert_eq!(time(none), None, "{none}");
        }
        assert_eq!(Duration::of(&Said::Number(5)), None, "five of what?");
        assert_eq!(Option::<Duration>::of(&text("off")), Some(None));
        assert_eq!(Option::<Duration>::of(&text("10m")), Some(Some(Duration::from_secs(600))));
        assert_eq!(Option::<Duration>::of(&Said::Other), None);
    }
}
