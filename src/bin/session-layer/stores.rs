//! Which store is meant, and opening it.

use std::env;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use session_layer::AnyStore;

use crate::failure::Failure;

/// The variable that names the store where the arguments do not.
const DEFAULT: &str = "SESSION_STORE";

/// A store and the scheme of its URL.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) store: AnyStore,
    pub(crate) scheme: String,
}

/// The same for a store that is to have sessions: it is not made where none is.
pub(crate) async fn open_existing(argument: Option<&str>) -> Result<Opened, Failure> {
    let url = url(argument)?;
    if let Some(path) = path(&url)
        && !path.exists()
    {
        return Err(Failure::misuse(format!(
            "there is no store at {}",
            path.display()
        )));
    }
    open(Some(&url)).await
}

/// Where the store is, if it is in the file system.
fn path(url: &str) -> Option<PathBuf> {
    let (_, rest) = url.split_once("://")?;
    let body = rest.split('?').next()?;
    let decoded = percent_decode_str(body).decode_utf8().ok()?;
    matches!(&*scheme(url), "file" | "sqlite")
        .then(|| PathBuf::from(decoded.into_owned()))
        .filter(|path| !path.as_os_str().is_empty())
}

/// Opens the store of an argument: a URL, `env:NAME`, or nothing.
pub(crate) async fn open(argument: Option<&str>) -> Result<Opened, Failure> {
    let url = url(argument)?;
    let store = AnyStore::connect(&url)
        .await
        .map_err(|error| Failure::of_store("cannot open the store", error))?;
    Ok(Opened {
        store,
        scheme: scheme(&url),
    })
}

/// Whether the argument names a store rather than a session.
pub(crate) fn is_store(argument: &str) -> bool {
    argument.contains("://") || argument.starts_with("env:")
}

fn url(argument: Option<&str>) -> Result<String, Failure> {
    let variable = match argument {
        Some(argument) => match argument.strip_prefix("env:") {
            Some(name) => name,
            None => return Ok(argument.to_owned()),
        },
        None => DEFAULT,
    };
    match env::var(variable) {
        Ok(url) if !url.is_empty() => Ok(url),
        Ok(_) | Err(env::VarError::NotPresent) if argument.is_none() => Err(Failure::misuse(
            "which store? Give its URL, or set SESSION_STORE",
        )),
        Ok(_) | Err(env::VarError::NotPresent) => Err(Failure::misuse(format!(
            "the environment variable {variable} is not set; it is to be the store's URL"
        ))),
        Err(env::VarError::NotUnicode(_)) => Err(Failure::misuse(format!(
            "the environment variable {variable} is not UTF-8"
        ))),
    }
}

fn scheme(url: &str) -> String {
    let scheme = url.split("://").next().unwrap_or_default();
    scheme.to_ascii_lowercase()
}

/// `text` with the URLs among the arguments cut down to their schemes.
pub(crate) fn without_urls(text: &str, arguments: &[String]) -> String {
    let mut urls: Vec<_> = arguments.iter().filter(|a| a.contains("://")).collect();
    // A URL that is part of another is cut down with it.
    urls.sort_by_key(|url| std::cmp::Reverse(url.len()));
    urls.iter().fold(text.to_owned(), |text, url| {
        let value = url.split_once('=').filter(|(name, _)| !name.contains(':'));
        let short = format!("{}://…", scheme(value.map_or(url, |(_, value)| value)));
        text.replace(value.map_or(url.as_str(), |(_, value)| value), &short)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_about_arguments_shows_no_url() {
        let arguments = [
            "a://u:hunter2@x".to_owned(),
            "--batch=b://u:hunter2@x?c=d".to_owned(),
        ];
        let text = "unexpected 'a://u:hunter2@x', invalid 'b://u:hunter2@x?c=d' for --batch";
        assert_eq!(
            without_urls(text, &arguments),
            "unexpected 'a://…', invalid 'b://…' for --batch"
        );
    }

    #[test]
    fn a_store_is_told_from_a_session() {
        assert!(is_store("redis://127.0.0.1"));
        assert!(is_store("env:SESSIONS"));
        assert!(!is_store(&"k".repeat(43)));
    }
}
