//! Settings from a file, in any format that `serde` reads.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::SessionSettings;
use super::names::{self, Setting};
use super::values::{Entries, Value};

impl<'de> Deserialize<'de> for SessionSettings {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(Settings)
    }
}

struct Settings;

impl<'de> Visitor<'de> for Settings {
    type Value = SessionSettings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings of sessions")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SessionSettings, A::Error> {
        let mut entries = Entries::new();
        while let Some(name) = map.next_key::<String>()? {
            let setting = find(&name).ok_or_else(|| A::Error::custom(names::unknown(&name)))?;
            let value: Value = map.next_value()?;
            entries.add(setting, value).map_err(A::Error::custom)?;
        }
        SessionSettings::from_entries(entries).map_err(A::Error::custom)
    }
}

/// In a file that is about sessions, a name need not say so.
fn find(name: &str) -> Option<&'static Setting> {
    names::find(name).or_else(|| names::find(&format!("SESSION_{name}")))
}
