//! Server-side sessions for Axum and any Tower stack.
#![forbid(unsafe_code)]

mod error;
mod id;
mod payload;
pub mod store;

pub use crate::error::{ConfigError, SessionError, SessionErrorKind, StoreError, StoreErrorKind};
pub use crate::id::{ParseKeyError, Revision, SessionKey};
pub use crate::payload::Format;
pub use crate::store::{AnyStore, SessionStore};
