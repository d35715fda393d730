//! Server-side sessions for Axum and any Tower stack.
#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod id;
pub mod store;

pub use crate::error::{ConfigError, SessionError, SessionErrorKind, StoreError, StoreErrorKind};
pub use crate::id::{ParseKeyError, Revision, SessionKey};
pub use crate::store::{AnyStore, SessionStore};
