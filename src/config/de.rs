//! Durations as people write them in configuration files.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};

pub(crate) fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    input.deserialize_any(Text)
}

pub(super) fn optional_duration<'de, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<Duration>, D::Error> {
    input.deserialize_option(Optional)
}

struct Text;

impl Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration: seconds, or text such as \"31days\" or \"1h 30m\"")
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<Duration, E> {
        Ok(Duration::from_secs(seconds))
    }

    fn visit_i64<E: Error>(self, seconds: i64) -> Result<Duration, E> {
        let seconds =
            u64::try_from(seconds).map_err(|_| E::custom("a duration is not negative"))?;
        self.visit_u64(seconds)
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<Duration, E> {
        Duration::try_from_secs_f64(seconds).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        let number = text.trim();
        match (number.parse(), number.parse()) {
            (Ok(seconds), _) => self.visit_u64(seconds),
            (_, Ok(seconds)) => self.visit_f64(seconds),
            _ => humantime::parse_duration(text).map_err(|error| {
                E::custom(format!(
                    "{error}; a duration is a number of seconds, or text such as \"31days\""
                ))
            }),
        }
    }
}

struct Optional;

impl<'de> Visitor<'de> for Optional {
    type Value = Option<Duration>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Text.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        duration(input).map(Some)
    }
}
