//! Values as they come in: text from the environment, anything from a file.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::{F64Deserializer, I64Deserializer, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer, SeqAccess, Visitor};

use super::names::{self, Setting};
use crate::config::de;
use crate::error::ConfigError;

/// A value whose meaning its setting decides. It may be a secret, so it has no `Debug`.
pub(super) enum Value {
    Flag(bool),
    Integer(i64),
    List(Vec<String>),
    /// Python's `None`, JSON's `null`: as if the setting were not there.
    None,
    Number(f64),
    Text(String),
}

/// The settings that were given. Each is taken out by whoever it is for.
pub(super) struct Entries(Vec<(&'static Setting, Value)>);

impl Entries {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn add(
        &mut self,
        setting: &'static Setting,
        value: Value,
    ) -> Result<(), ConfigError> {
        if self.0.iter().any(|(there, _)| there.name == setting.name) {
            return Err(ConfigError::new(format!("{} is set twice", setting.name)));
        }
        if !matches!(value, Value::None) {
            self.0.push((setting, value));
        }
        Ok(())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(setting, _)| setting.name == name)
    }

    /// Refuses both of two settings.
    pub(super) fn exclude(&self, one: &str, other: &str) -> Result<(), ConfigError> {
        if self.has(one) && self.has(other) {
            return Err(ConfigError::new(format!(
                "{one} and {other} say the same thing; leave one out"
            )));
        }
        Ok(())
    }

    /// Whether a setting is this text, which has a meaning of its own there.
    pub(super) fn is_text(&self, name: &str, text: &str) -> bool {
        self.0.iter().any(|(setting, value)| {
            setting.name == name && matches!(value, Value::Text(there) if there == text)
        })
    }

    /// The names of what nobody has taken.
    pub(super) fn left(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(setting, _)| setting.name)
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self
            .0
            .iter()
            .position(|(setting, _)| setting.name == name)?;
        Some(self.0.remove(at).1)
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ConfigError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Text(text)) if text.is_empty() => Err(ConfigError::new(format!(
                "{name} is empty; leave it out to have its default"
            ))),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name)),
        }
    }

    /// One of several words, in upper or lower case.
    pub(super) fn word(&mut self, name: &str) -> Result<Option<String>, ConfigError> {
        let text = self.text(name)?;
        Ok(text.map(|text| text.trim().to_ascii_lowercase()))
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, ConfigError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(flag)),
            Some(Value::Text(text)) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Ok(Some(true)),
                "false" | "0" | "no" | "off" => Ok(Some(false)),
                _ => Err(wrong(name)),
            },
            Some(_) => Err(wrong(name)),
        }
    }

    pub(super) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, ConfigError> {
        let text = match self.take(name) {
            None => return Ok(None),
            Some(Value::Text(text)) => text.trim().to_owned(),
            Some(Value::Integer(number)) => number.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Flag(_) | Value::List(_) | Value::None) => return Err(wrong(name)),
        };
        text.parse().map(Some).map_err(|_| wrong(name))
    }

    /// The mode of a file: text is octal, as people write it; a number is a number.
    pub(super) fn mode(&mut self, name: &str) -> Result<Option<u32>, ConfigError> {
        let mode = match self.take(name) {
            None => return Ok(None),
            Some(Value::Integer(mode)) => u32::try_from(mode).ok(),
            Some(Value::Text(text)) => {
                let digits = text.trim();
                u32::from_str_radix(digits.strip_prefix("0o").unwrap_or(digits), 8).ok()
            }
            Some(Value::Flag(_) | Value::List(_) | Value::None | Value::Number(_)) => None,
        };
        mode.map(Some).ok_or_else(|| wrong(name))
    }

    pub(super) fn duration(&mut self, name: &str) -> Result<Option<Duration>, ConfigError> {
        // The error's own text would repeat the value.
        type Result<T> = std::result::Result<T, serde::de::value::Error>;
        let read: Result<Duration> = match &self.take(name) {
            None => return Ok(None),
            Some(Value::Integer(seconds)) => {
                let seconds: I64Deserializer<_> = seconds.into_deserializer();
                de::duration(seconds)
            }
            Some(Value::Number(seconds)) => {
                let seconds: F64Deserializer<_> = seconds.into_deserializer();
                de::duration(seconds)
            }
            Some(Value::Text(text)) => {
                let text: StrDeserializer<'_, _> = text.as_str().into_deserializer();
                de::duration(text)
            }
            Some(Value::Flag(_) | Value::List(_) | Value::None) => return Err(wrong(name)),
        };
        read.map(Some).map_err(|_| wrong(name))
    }

    /// A list, or text that stands for one: separated by commas, or a JSON array of texts.
    pub(super) fn list(&mut self, name: &str) -> Result<Option<Vec<String>>, ConfigError> {
        let items = match self.take(name) {
            None => return Ok(None),
            Some(Value::List(items)) => items,
            Some(Value::Text(text)) if is_json_array(&text) => {
                serde_json::from_str(&text).map_err(|_| wrong(name))?
            }
            Some(Value::Text(text)) => text.split(',').map(|item| item.trim().to_owned()).collect(),
            Some(_) => return Err(wrong(name)),
        };
        if items.iter().any(String::is_empty) {
            return Err(ConfigError::new(format!("{name} has an empty item")));
        }
        Ok(Some(items))
    }
}

/// An address may begin with a bracket too.
fn is_json_array(text: &str) -> bool {
    let inside = text.trim_start().strip_prefix('[').map(str::trim_start);
    inside.is_some_and(|inside| inside.starts_with(['"', ']']))
}

/// The error for a value that its setting does not take. It does not repeat the value.
pub(super) fn wrong(name: &str) -> ConfigError {
    let accepts = names::find(name).map_or("something else", |setting| setting.accepts);
    ConfigError::new(format!("{name} is to be {accepts}"))
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true, false, or a list of texts")
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        let number = i64::try_from(number);
        number
            .map(Value::Integer)
            .map_err(|_| E::custom("the number is too large"))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_some<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        Value::deserialize(input)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }
}
