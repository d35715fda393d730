//! Server-side sessions for Axum and any Tower stack.
#![forbid(unsafe_code)]

mod commit;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod cookie;
mod edits;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod id;
mod layer;
mod lazy;
mod payload;
mod queue;
mod session;
mod sessions;
mod shared;
mod signing;
mod state;
pub mod store;

// The public interface is:
pub use crate::config::{SameSite, ServerErrors, SessionConfig};
pub use crate::error::{ConfigError, SessionError, SessionErrorKind, StoreError, StoreErrorKind};
pub use crate::id::{ParseKeyError, Revision, SessionKey};
pub use crate::layer::{ErrorResponse, ResponseFuture, SessionLayer, SessionService, Unavailable};
pub use crate::lazy::LazySession;
pub use crate::payload::Format;
pub use crate::session::Session;
pub use crate::sessions::Sessions;
pub use crate::signing::SigningKeys;
pub use crate::store::{AnyStore, SessionStore};
