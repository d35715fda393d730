//! Server-side sessions for axum and any Tower stack: a logout is final, and no concurrent update is
//! lost.
//!
//! A [`SessionLayer`] finds a signed session id in a cookie, loads the session from a
//! [`SessionStore`] when a handler asks for it, and stores what has changed before the response
//! leaves. Handlers work with a [`Session`].
//!
//! ```
//! # #[cfg(all(feature = "axum", feature = "memory"))] {
//! use axum::{Router, routing::get};
//! use session_layer::{Session, SessionError, SessionLayer, SigningKeys, store::MemoryStore};
//!
//! let keys = SigningKeys::generate()?; // in production: SigningKeys::from_env("SESSION_SECRET")?
//! let app: Router = Router::new()
//!     .route("/", get(visits))
//!     .layer(SessionLayer::new(MemoryStore::new(), keys));
//!
//! async fn visits(session: Session) -> Result<String, SessionError> {
//!     let visits = session.update("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
//!     Ok(format!("visit {visits}"))
//! }
//! # }
//! # Ok::<(), session_layer::ConfigError>(())
//! ```
//!
//! # Where things are
//!
//! | to | see |
//! | --- | --- |
//! | read and change a session | [`Session`] |
//! | load it only when needed, or without axum | [`LazySession`] |
//! | log users in and out, on one device or on all | [`Session::login`], [`Sessions::end_all_of`] |
//! | reach a session without its request | [`Sessions`] |
//! | set lifetimes, the cookie, limits | [`SessionConfig`] |
//! | read all of it from the environment or a file | [`SessionSettings`] |
//! | make and rotate signing keys | [`SigningKeys`] |
//! | see what a store holds | [`store::ScanStore`], [`SessionInfo`], `docs/command-line.md` |
//! | choose a store | [`store`] |
//! | write a store | [`SessionStore`], `conformance` |
//!
//! # Features
//!
//! | feature | adds | default |
//! | --- | --- | --- |
//! | `axum` | the extractors; `SessionError` as a response | yes |
//! | `memory`, `null`, `file`, `sqlite`, `redis`, `memcached`, `mongodb`, `postgres`, `mysql`, `dynamodb` | a store each | `memory` |
//! | `flask` | Flask-Session's cookies and, with `redis` or `memcached`, its sessions | no |
//! | `conformance` | the store contract as test cases; not covered by semver | no |
//! | `full` | all of these | no |
//! | `cli` | the program `session-layer`, for `cargo install`; libraries do not need it | no |
//!
//! # Scope
//!
//! Sessions: the cookie, its signature, the data, its lifetime, and whose they are. Not accounts,
//! passwords or permissions, and not forged requests from other sites: `SameSite` helps against those, a CSRF layer does more.
#![forbid(unsafe_code)]
#![cfg_attr(
    all(feature = "flask", not(any(feature = "memcached", feature = "redis"))),
    allow(
        dead_code,
        unused_imports,
        reason = "most of `flask` is for stores that are not built"
    )
)]

mod answer;
mod commit;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod cookie;
mod edits;
mod entropy;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod few;
#[cfg(feature = "flask")]
mod flask;
mod id;
mod info;
mod layer;
mod lazy;
mod leftover;
mod loaded;
mod payload;
mod queue;
mod request;
mod search;
mod session;
mod sessions;
mod settings;
mod shared;
mod signing;
mod state;
pub mod store;
mod user;

// The public interface is:
pub use crate::config::{SameSite, ServerErrors, SessionConfig};
pub use crate::error::{ConfigError, SessionError, SessionErrorKind, StoreError, StoreErrorKind};
#[cfg(feature = "flask")]
pub use crate::flask::FlaskCookies;
pub use crate::id::{ParseKeyError, Revision, SessionKey};
pub use crate::info::SessionInfo;
pub use crate::layer::{ErrorResponse, ResponseFuture, SessionLayer, SessionService, Unavailable};
pub use crate::lazy::LazySession;
pub use crate::payload::Format;
pub use crate::session::Session;
pub use crate::sessions::Sessions;
pub use crate::settings::SessionSettings;
pub use crate::signing::SigningKeys;
pub use crate::store::{AnyStore, SessionStore};
pub use crate::user::UserSession;

/// The examples of the guide for those who come from other crates.
#[cfg(all(doctest, feature = "axum", feature = "memory"))]
#[doc = include_str!("../docs/from-tower-sessions.md")]
struct FromTowerSessions;

/// The examples of the guide to users.
#[cfg(doctest)]
#[doc = include_str!("../docs/users.md")]
struct Users;

/// The examples of the guide to the settings.
#[cfg(doctest)]
#[doc = include_str!("../docs/configuration.md")]
struct Configuration;

/// The examples of the guide to the stores.
#[cfg(all(
    doctest,
    feature = "dynamodb",
    feature = "memcached",
    feature = "mongodb",
    feature = "mysql",
    feature = "postgres"
))]
#[doc = include_str!("../docs/stores.md")]
struct Stores;

/// The README, whose example is compiled with the documentation tests.
#[cfg(all(doctest, feature = "axum", feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
