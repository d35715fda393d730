//! Settings that both stores have, from code or from a URL.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::pool::Pool;
use super::source::Source;
use super::{Connection, Dialect};
use crate::store::url::StoreUrl;
use crate::store::{StoreError, StoreErrorKind};

/// Either server takes at least this much in one value.
const LARGEST_PAYLOAD: usize = 500_000_000;
const MOST_CONNECTIONS: u32 = 10_000;

#[derive(Debug, Clone)]
pub(in crate::store) struct Settings {
    pub(in crate::store) table: String,
    pub(in crate::store) max_payload: usize,
    pub(in crate::store) max_connections: u32,
    pub(in crate::store) create_table: bool,
    pub(in crate::store) timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            table: "sessions".to_owned(),
            max_payload: 1024 * 1024,
            max_connections: 10,
            create_table: true,
            // Less than the layer's own limit of two seconds, so that the reason is known.
            timeout: Duration::from_millis(1500),
        }
    }
}

impl Settings {
    /// The names of the settings in a URL.
    pub(in crate::store) const NAMES: [&str; 5] = [
        "table",
        "max_payload",
        "max_connections",
        "create_table",
        "timeout",
    ];

    pub(in crate::store) fn take_from(&mut self, url: &mut StoreUrl) -> Result<(), StoreError> {
        if let Some(table) = url.take("table")? {
            self.table = table;
        }
        if let Some(bytes) = url.take_as("max_payload", "a number of bytes")? {
            self.max_payload = bytes;
        }
        if let Some(connections) = url.take_as("max_connections", "a number above zero")? {
            self.max_connections = connections;
        }
        if let Some(create) = url.take_as("create_table", "true or false")? {
            self.create_table = create;
        }
        if let Some(timeout) = url.take_as::<humantime::Duration>("timeout", "a time, as 1500ms")? {
            self.timeout = timeout.into();
        }
        Ok(())
    }

    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        let wrong = if self.max_payload > LARGEST_PAYLOAD {
            "a store on an SQL server takes payloads of at most 500,000,000 bytes"
        } else if !(1..=MOST_CONNECTIONS).contains(&self.max_connections) {
            "the number of connections is to be 1 to 10,000"
        } else if self.timeout.is_zero() {
            "the timeout is to be longer than nothing"
        } else {
            return Ok(());
        };
        Err(StoreError::new(StoreErrorKind::Config, wrong))
    }
}

/// What connections are made from.
pub(in crate::store) enum Origin<D: Dialect> {
    Given(sqlx::Pool<D::Db>),
    Url(Result<<Connection<D> as sqlx::Connection>::Options, StoreError>),
}

impl<D: Dialect> Origin<D> {
    /// What is left of a URL after the store's own settings were taken out.
    pub(in crate::store) fn new(
        url: &StoreUrl,
        is_drivers: impl Fn(&str) -> bool,
        settings: &[&str],
    ) -> Self
    where
        <Connection<D> as sqlx::Connection>::Options: FromStr<Err = sqlx::Error>,
    {
        let options = url.finish_except(is_drivers, settings).and_then(|()| {
            // Its errors quote the URL.
            url.for_driver().parse().map_err(|_| {
                StoreError::new(
                    StoreErrorKind::Config,
                    "the URL is not of the form `scheme://user:password@host:port/database`, or one \
                     of the driver's settings in it has a value that is none",
                )
            })
        });
        Self::Url(options)
    }

    pub(super) fn into_source(self, settings: &Settings) -> Result<Source<D>, StoreError> {
        settings.check()?;
        Ok(match self {
            Self::Given(pool) => Source::Given(pool),
            Self::Url(options) => {
                let connections = settings.max_connections as usize;
                Source::Own(Arc::new(Pool::new(options?, connections)))
            }
        })
    }
}
