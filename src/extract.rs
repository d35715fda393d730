//! Extractors and responses for axum.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use crate::error::{SessionError, SessionErrorKind};
use crate::lazy::LazySession;
use crate::session::Session;

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = SessionError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, SessionError> {
        LazySession::of(&parts.extensions)?.into_session().await
    }
}

/// `None` when the request has no session: no cookie, or one that means nothing (any more). A store
/// that fails is still a 503.
impl<S: Sync> OptionalFromRequestParts<S> for Session {
    type Rejection = SessionError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, SessionError> {
        let session = LazySession::of(&parts.extensions)?.into_session().await?;
        Ok(session.exists().then_some(session))
    }
}

impl<S: Sync> FromRequestParts<S> for LazySession {
    type Rejection = SessionError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, SessionError> {
        Self::of(&parts.extensions)
    }
}

impl IntoResponse for SessionError {
    fn into_response(self) -> Response {
        let body = match self.kind() {
            SessionErrorKind::Store => "The session store is unavailable. Try again later.\n",
            SessionErrorKind::Ended => "The session has ended.\n",
            SessionErrorKind::Taken => "Another request was faster.\n",
            SessionErrorKind::MissingLayer => {
                "No session: this route is not wrapped in a SessionLayer.\n"
            }
            SessionErrorKind::CookieTooLate
            | SessionErrorKind::Decode
            | SessionErrorKind::Encode
            | SessionErrorKind::Unsupported => "The session could not be used.\n",
        };
        if self.status().is_server_error() {
            tracing::error!(error = %self, "session error answered");
        }
        (self.status(), body).into_response()
    }
}
