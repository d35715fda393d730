//! Server-side sessions for Axum and any Tower stack.
#![forbid(unsafe_code)]

mod config;
mod cookie;
mod error;
mod id;
mod payload;
mod signing;
pub mod store;

pub use crate::config::{SameSite, ServerErrors, SessionConfig};
pub use crate::error::{ConfigError, SessionError, SessionErrorKind, StoreError, StoreErrorKind};
pub use crate::id::{ParseKeyError, Revision, SessionKey};
pub use crate::payload::Format;
pub use crate::signing::SigningKeys;
pub use crate::store::{AnyStore, SessionStore};
