//! The bare drivers: for each store a server, and a handler that sends the commands which the store
//! sends, without a session around them.

mod redis;

use std::pin::Pin;

use crate::Place;

type Opening = fn() -> Pin<Box<dyn Future<Output = Place>>>;

/// Every store that is measured.
pub const PLACES: &[(&str, Opening)] = &[("redis", || Box::pin(redis::open()))];
