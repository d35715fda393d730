//! The Tower layer: how a request gets its session, and how the response leaves with it stored.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::answer::Answer;
use crate::config::{ServerErrors, SessionConfig};
use crate::cookie::{CookieHeaders, vary_on_cookie};
use crate::error::{ConfigError, SessionError};
#[cfg(feature = "flask")]
use crate::flask::FlaskCookies;
use crate::lazy::LazySession;
use crate::request::Inner;
use crate::sessions::Sessions;
use crate::shared::{Finish, Shared, Task};
#[cfg(feature = "flask")]
use crate::signing::Signer;
use crate::signing::SigningKeys;
use crate::store::SessionStore;
#[cfg(feature = "flask")]
use crate::store::flask::{Dialect, FlaskStore};

/// Gives every request a session.
///
/// Cheap to clone; clones share everything. Wrap it around the routes that use sessions:
/// `Router::layer` in axum, `ServiceBuilder::layer` elsewhere. Request bodies may be of any type,
/// response bodies of any that has a [`Default`]. Layers of the same cookie inside one another share
/// one session, which the outermost stores.
///
/// A request that does not touch its session costs two small allocations; no cookie is parsed for
/// it, nothing is verified, and the store is not asked.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use session_layer::{SessionLayer, SigningKeys, store::MemoryStore};
///
/// let keys = SigningKeys::generate()?; // in production: SigningKeys::from_env("SESSION_SECRET")?
/// let layer = SessionLayer::new(MemoryStore::new(), keys);
/// # }
/// # Ok::<(), session_layer::ConfigError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct SessionLayer<H = Unavailable> {
    shared: Arc<Shared>,
    on_error: H,
}

impl SessionLayer {
    /// A layer with the default configuration.
    ///
    /// # Panics
    ///
    /// Never: the default configuration is sound, as a test shows.
    pub fn new(store: impl SessionStore, keys: SigningKeys) -> Self {
        match Self::with_config(store, keys, SessionConfig::default()) {
            Ok(layer) => layer,
            // `validate` has no say in the defaults: `config::validate::tests::the_defaults_are_secure`.
            Err(error) => unreachable!("{error}"),
        }
    }

    /// A layer with a configuration of one's own. Everything that can be wrong with it is found here.
    ///
    /// # Errors
    ///
    /// When the configuration cannot work; the error says what to change.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the keys belong to the layer"
    )]
    pub fn with_config(
        store: impl SessionStore,
        keys: SigningKeys,
        config: SessionConfig,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            shared: Arc::new(Shared::new(store, &keys, config)?),
            on_error: Unavailable::new(),
        })
    }
}

#[cfg(feature = "flask")]
impl SessionLayer {
    /// A layer that shares its sessions with a Flask application: who is logged in there is logged in
    /// here, and the other way round. `docs/from-flask-session.md` says what that takes, and what
    /// Flask-Session can still undo.
    ///
    /// Cookies and records are Flask-Session's. **Ids are not hashed at rest**: Flask finds a record by
    /// its id, so whoever reads the store can take over every session. The cookie's name is `session`
    /// unless one is set; domain, path and name have to be those of the Flask application.
    ///
    /// # Errors
    ///
    /// When the configuration cannot work; the error says what to change.
    pub fn for_flask<S: FlaskStore>(
        store: S,
        cookies: FlaskCookies,
        config: SessionConfig,
    ) -> Result<Self, ConfigError> {
        let config = config.or_cookie_name("session");
        let store = store.with_dialect(Dialect::of(&config));
        let shared = Shared::with_signer(store, |_| Signer::of_flask(cookies), config)?;
        Ok(Self {
            shared: Arc::new(shared),
            on_error: Unavailable::new(),
        })
    }
}

#[cfg(feature = "flask")]
impl<H> SessionLayer<H> {
    /// Also accepts Flask-Session's cookies, under the name of this layer's own, and issues them again
    /// in its own form: for leaving Flask. Its sessions are found if they were copied into the store, or
    /// with a [`MigratingStore`](crate::store::MigratingStore). No effect on a layer made by
    /// [`for_flask`](SessionLayer::for_flask).
    ///
    /// Take it out again when the last of Flask's sessions has expired: until then a cookie without a
    /// signature, or with Flask's, is as good as one of ours.
    pub fn with_flask_cookies(mut self, cookies: FlaskCookies) -> Self {
        let mut shared = (*self.shared).clone();
        shared.signer.accept_flask(cookies);
        self.shared = Arc::new(shared);
        self
    }
}

impl<H> SessionLayer<H> {
    /// Builds the response for a request whose session could not be stored. Default: [`Unavailable`],
    /// an empty 503. The handler's own response is gone by then; a cookie is sent only where the
    /// browser needs it all the same.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn example(layer: session_layer::SessionLayer) {
    /// use http::Response;
    /// use session_layer::SessionError;
    ///
    /// let layer = layer.with_error_response(|error: &SessionError| {
    ///     let mut response = Response::new(String::from("Please try again in a minute."));
    ///     *response.status_mut() = error.status();
    ///     response
    /// });
    /// # let _ = layer; }
    /// ```
    pub fn with_error_response<F>(self, response: F) -> SessionLayer<F> {
        SessionLayer {
            shared: self.shared,
            on_error: response,
        }
    }

    /// Tells the time instead of the system's clock: for tests of timeouts. Default: the system's.
    pub fn with_clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.shared = Arc::new(Shared {
            clock: Some(Arc::new(now)),
            ..(*self.shared).clone()
        });
        self
    }

    /// The same sessions, without a request.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        Sessions::new(Arc::clone(&self.shared))
    }

    /// Waits until every commit that goes on in the background, because its client has hung up, is
    /// done: for a shutdown, after the server has stopped to accept requests.
    pub async fn drain(&self) {
        // Closing is what makes `wait` end; it keeps no later commit out. Opening again would leave
        // another `drain` waiting.
        self.shared.background.close();
        self.shared.background.wait().await;
    }
}

impl<H> fmt::Debug for SessionLayer<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl<S, H: Clone> Layer<S> for SessionLayer<H> {
    type Service = SessionService<S, H>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService {
            inner,
            shared: Arc::clone(&self.shared),
            on_error: self.on_error.clone(),
        }
    }
}

/// Builds the response for a failed commit. Closures `Fn(&SessionError) -> Response<B>` do.
pub trait ErrorResponse<B> {
    /// The response in the place of the handler's.
    fn response(&self, error: &SessionError) -> Response<B>;
}

impl<B, F: Fn(&SessionError) -> Response<B>> ErrorResponse<B> for F {
    fn response(&self, error: &SessionError) -> Response<B> {
        self(error)
    }
}

/// Answers a failed commit with the error's status (503 when the store failed) and an empty body.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Unavailable;

impl Unavailable {
    /// The default.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl<B: Default> ErrorResponse<B> for Unavailable {
    fn response(&self, error: &SessionError) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = error.status();
        response
    }
}

/// A service whose requests have sessions. See [`SessionLayer`].
#[derive(Clone)]
pub struct SessionService<S, H = Unavailable> {
    inner: S,
    shared: Arc<Shared>,
    on_error: H,
}

impl<S: fmt::Debug, H> fmt::Debug for SessionService<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionService")
            .field("inner", &self.inner)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl<S, H, A, B> Service<Request<A>> for SessionService<S, H>
where
    S: Service<Request<A>, Response = Response<B>>,
    H: ErrorResponse<B> + Clone,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, H, B, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let session = match request.extensions().get::<LazySession>() {
            // A layer of the same cookie further out will commit.
            Some(outer) if outer.inner().shared.cookie.name() == self.shared.cookie.name() => None,
            Some(_) | None => {
                let cookies = CookieHeaders::of(request.headers());
                let session = LazySession::new(Arc::clone(&self.shared), cookies);
                request.extensions_mut().insert(session.clone());
                Some(session)
            }
        };
        ResponseFuture {
            on_error: self.on_error.clone(),
            session,
            stage: Stage::Handling {
                handler: self.inner.call(request),
            },
        }
    }
}

pin_project! {
    /// The response of a [`SessionService`]: the inner service's, once the session is stored.
    pub struct ResponseFuture<F, H, B, E> {
        on_error: H,
        // `None` once the response is on its way, or if a layer further out commits.
        session: Option<LazySession>,
        #[pin]
        stage: Stage<F, B, E>,
    }

    impl<F, H, B, E> PinnedDrop for ResponseFuture<F, H, B, E> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(session) = this.project().session.take() {
                session.inner().abandon();
            }
        }
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F, B, E> {
        Handling {
            #[pin]
            handler: F,
        },
        Committing {
            session: LazySession,
            answer: Finish<Answer>,
            result: Option<Result<Response<B>, E>>,
        },
    }
}

impl<F, H, B, E> Future for ResponseFuture<F, H, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
    H: ErrorResponse<B>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        match this.stage.as_mut().project() {
            StageProjection::Handling { handler } => {
                let result = ready!(handler.poll(cx));
                let Some(session) = this.session.take() else {
                    return Poll::Ready(result);
                };
                let inner = session.inner();
                let server_error = !matches!(&result, Ok(r) if !r.status().is_server_error());
                let edits =
                    !server_error || inner.shared.policy.server_errors == ServerErrors::Commit;
                if let Some(answer) = inner.answer_now(edits) {
                    return Poll::Ready(finish(inner, answer, result, this.on_error));
                }
                let mut commit: Task<Answer> = Box::pin(Arc::clone(inner).answer(edits));
                // Most stores that answer at once leave nothing to wait for.
                if let Poll::Ready(answer) = commit.as_mut().poll(cx) {
                    return Poll::Ready(finish(inner, answer, result, this.on_error));
                }
                let answer = Finish::new(&inner.shared.background, commit);
                this.stage.set(Stage::Committing {
                    session,
                    answer,
                    result: Some(result),
                });
                Poll::Pending
            }
            StageProjection::Committing {
                session,
                answer,
                result,
            } => {
                let answer = ready!(Pin::new(answer).poll(cx));
                match result.take() {
                    Some(result) => {
                        Poll::Ready(finish(session.inner(), answer, result, this.on_error))
                    }
                    // Polled again after it was done.
                    None => Poll::Pending,
                }
            }
        }
    }
}

/// Tells the browser, and the caches on the way, what they need to know.
fn finish<B, E>(
    session: &Inner,
    answer: Answer,
    result: Result<Response<B>, E>,
    on_error: &impl ErrorResponse<B>,
) -> Result<Response<B>, E> {
    let mut response = result?;
    if let Some(error) = &answer.error {
        response = on_error.response(error);
    }
    if let Some(set_cookie) = answer.set_cookie {
        session
            .shared
            .cookie
            .apply(response.headers_mut(), set_cookie);
    }
    if session.loaded().is_some() {
        vary_on_cookie(response.headers_mut());
    }
    Ok(response)
}

impl<F, H, B, E> fmt::Debug for ResponseFuture<F, H, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}
