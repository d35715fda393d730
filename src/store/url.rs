//! URLs that name a store: `scheme://whatever the backend needs?our=settings&the=driver's`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use super::{StoreError, StoreErrorKind};

/// A URL whose settings are taken out one by one; what is left over belongs to the driver, or is a
/// mistake. Its parts may hold a password, so they are in no error and no `Debug`.
pub(super) struct StoreUrl {
    scheme: String,
    body: String,
    query: Vec<(String, String)>,
}

impl StoreUrl {
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| {
            invalid("a store's URL begins with its scheme and `://`, as in `redis://127.0.0.1`")
        })?;
        if scheme.is_empty() || !scheme.bytes().all(is_scheme_byte) {
            return Err(invalid(
                "a store's URL begins with letters, digits, `+`, `-` or `.` before its `://`",
            ));
        }
        let (body, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            body: body.to_owned(),
            query,
        })
    }

    /// The scheme, in lower case.
    pub(super) fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What stands between `://` and `?`, as it was written.
    pub(super) fn body(&self) -> &str {
        &self.body
    }

    /// The same as a path of the file system: `sqlite://sessions.db`, `file:///var/lib/sessions`.
    pub(super) fn path(&self) -> Result<PathBuf, StoreError> {
        decode(&self.body)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .ok_or_else(|| invalid("the URL names no path after its `://`"))
    }

    /// Takes the setting `name` out of the query.
    pub(super) fn take(&mut self, name: &'static str) -> Result<Option<String>, StoreError> {
        let Some(at) = self.query.iter().position(|(there, _)| there == name) else {
            return Ok(None);
        };
        let (_, value) = self.query.remove(at);
        if self.query.iter().any(|(there, _)| there == name) {
            return Err(invalid(format!("the URL sets `{name}` twice")));
        }
        let value = decode(&value)
            .ok_or_else(|| invalid(format!("the URL's `{name}` is not percent-encoded UTF-8")))?;
        Ok(Some(value))
    }

    /// Takes the setting `name`, which is to be `expected`: "a number", say.
    pub(super) fn take_as<T: FromStr>(
        &mut self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let Some(value) = self.take(name)? else {
            return Ok(None);
        };
        let parsed = value.parse();
        parsed
            .map(Some)
            .map_err(|_| invalid(format!("the URL's `{name}` is to be {expected}")))
    }

    /// Refuses what no `take` has taken, for stores that hand no URL to a driver.
    pub(super) fn finish(&self, accepted: &[&str]) -> Result<(), StoreError> {
        self.finish_except(|_| false, accepted)
    }

    /// The same for a driver that passes over what it does not know: `is_drivers` says of a name
    /// whether it knows it.
    pub(super) fn finish_except(
        &self,
        is_drivers: impl Fn(&str) -> bool,
        accepted: &[&str],
    ) -> Result<(), StoreError> {
        let mut left = self.query.iter();
        let Some((name, _)) = left.find(|(name, _)| !is_drivers(name)) else {
            return Ok(());
        };
        let accepted = match accepted {
            [] => "none".to_owned(),
            names => names.join(", "),
        };
        // A secret may stand where a name belongs; what looks like a name is one.
        let named = name.len() <= 32 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        Err(invalid(format!(
            "the URL has a setting{} that a `{}` store does not know; it knows: {accepted}",
            if named {
                format!(" `{name}`")
            } else {
                String::new()
            },
            self.scheme,
        )))
    }

    /// The URL without what was taken, for the driver.
    pub(super) fn for_driver(&self) -> String {
        let query: Vec<_> = self
            .query
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}://{}{mark}{}", self.scheme, self.body, query.join("&"))
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreUrl({}://…)", self.scheme)
    }
}

fn is_scheme_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

fn decode(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> StoreError {
    StoreError::new(StoreErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_taken_and_the_rest_is_the_drivers() {
        let mut url =
            StoreUrl::parse("REDIS://app:p%40ss@h:1/2?prefix=a%3Ab&protocol=resp3").unwrap();
        assert_eq!(url.scheme(), "redis");
        assert_eq!(url.body(), "app:p%40ss@h:1/2");
        assert_eq!(url.take("prefix").unwrap().as_deref(), Some("a:b"));
        assert_eq!(url.take("prefix").unwrap(), None);
        assert_eq!(url.for_driver(), "redis://app:p%40ss@h:1/2?protocol=resp3");
        assert_eq!(url.take("protocol").unwrap().as_deref(), Some("resp3"));
        assert_eq!(url.for_driver(), "redis://app:p%40ss@h:1/2");
    }

    #[test]
    fn paths_are_decoded() {
        let path = |url: &str| StoreUrl::parse(url).unwrap().path().unwrap();
        assert_eq!(path("sqlite://my%20app.db"), PathBuf::from("my app.db"));
        assert_eq!(path("file:///var/lib/x"), PathBuf::from("/var/lib/x"));
        let error = StoreUrl::parse("file://").unwrap().path().unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config);
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not() {
        let message = |url: &str| match StoreUrl::parse(url) {
            Err(error) => error.to_string(),
            Ok(mut url) => match url.take_as::<u32>("n", "a number") {
                Err(error) => error.to_string(),
                Ok(_) => url.finish(&["n"]).unwrap_err().to_string(),
            },
        };
        for (url, says) in [
            ("redis", "`://`"),
            ("://x", "letters"),
            ("user:hunter2 at://x", "letters"),
            ("a://x?n=1&n=2", "`n` twice"),
            ("a://x?n=hunter2", "`n` is to be a number"),
            ("a://x?n=%ff", "`n` is not percent-encoded UTF-8"),
            (
                "a://x?tabel=hunter2",
                "`tabel` that a `a` store does not know; it knows: n",
            ),
            ("a://x?hunter2", "a setting that a `a` store"),
        ] {
            let message = message(url);
            assert!(message.contains(says), "{url}: {message}");
            assert!(!message.contains("hunter2"), "{url}: {message}");
        }
        let url = StoreUrl::parse("a://u:hunter2@x?b=hunter2").unwrap();
        assert_eq!(format!("{url:?}"), "StoreUrl(a://…)");
    }
}
