//! The layer in any Tower stack: other bodies, other errors, no axum.

mod support;

use std::convert::Infallible;

use http::{Request, Response};
use session_layer::store::MemoryStore;
use session_layer::{LazySession, SessionError, SessionLayer, SessionService};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

/// A body that is neither `Clone` nor anything else.
#[derive(Debug, PartialEq)]
struct Opaque(std::cell::Cell<u8>);

#[derive(Debug, Default, PartialEq)]
struct Reply(String);

async fn count(request: Request<Opaque>) -> Result<Response<Reply>, SessionError> {
    let session = LazySession::of(request.extensions())?.load().await?;
    let n = session.update("n", |n: Option<u32>| n.unwrap_or(0) + 1)?;
    Ok(Response::new(Reply(n.to_string())))
}

fn request(cookie: Option<&http::HeaderValue>) -> Request<Opaque> {
    let mut request = Request::new(Opaque(0.into()));
    if let Some(cookie) = cookie {
        let pair = cookie.to_str().unwrap().split(';').next().unwrap();
        request
            .headers_mut()
            .insert("cookie", pair.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn bodies_and_errors_are_the_services_own() {
    let layer = SessionLayer::new(MemoryStore::new(), support::keys());
    let mut service = layer.layer(service_fn(count));
    let first = service
        .ready()
        .await
        .unwrap()
        .call(request(None))
        .await
        .unwrap();
    let cookie = first.headers().get("set-cookie").unwrap();
    assert_eq!(first.body().0, "1");
    let second = service.call(request(Some(cookie))).await.unwrap();
    assert_eq!(second.body().0, "2");
}

#[tokio::test]
async fn the_inner_service_need_not_be_clone_and_its_error_passes() {
    struct Once(Option<&'static str>);
    impl Service<Request<Opaque>> for Once {
        type Response = Response<Reply>;
        type Error = &'static str;
        type Future = std::future::Ready<Result<Response<Reply>, &'static str>>;
        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), Self::Error>> {
            std::task::Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Request<Opaque>) -> Self::Future {
            std::future::ready(Err(self.0.take().unwrap()))
        }
    }
    let layer = SessionLayer::new(MemoryStore::new(), support::keys());
    let mut service: SessionService<Once> = layer.layer(Once(Some("broken")));
    assert_eq!(service.call(request(None)).await.unwrap_err(), "broken");
}

#[tokio::test]
async fn an_inner_error_ends_a_flushed_session_all_the_same() {
    let clock = support::Clock::default();
    let store = support::SpyStore::new(clock);
    let layer = SessionLayer::new(store.clone(), support::keys());
    let mut count = layer.layer(service_fn(count));
    let first = count.call(request(None)).await.unwrap();
    let cookie = first.headers().get("set-cookie").unwrap();
    assert_eq!(store.live().len(), 1);
    let mut fail = layer.layer(service_fn(|request: Request<Opaque>| async move {
        let session = LazySession::of(request.extensions())
            .unwrap()
            .load()
            .await
            .unwrap();
        session.flush();
        Err::<Response<Reply>, _>("broken")
    }));
    assert_eq!(
        fail.call(request(Some(cookie))).await.unwrap_err(),
        "broken"
    );
    assert_eq!(store.live(), []);
}

#[tokio::test]
async fn an_inner_error_rolls_back() {
    let store = support::SpyStore::new(support::Clock::default());
    let layer = SessionLayer::new(store.clone(), support::keys());
    let mut fail = layer.layer(service_fn(|request: Request<Opaque>| async move {
        count(request).await.unwrap();
        Err::<Response<Reply>, _>("broken")
    }));
    assert_eq!(fail.call(request(None)).await.unwrap_err(), "broken");
    assert_eq!(store.calls(), []);
}

#[tokio::test]
async fn a_retried_request_keeps_one_session() {
    #[derive(Clone)]
    struct Twice;
    impl<E> tower::retry::Policy<Request<()>, Response<Reply>, E> for Twice {
        type Future = std::future::Ready<()>;
        fn retry(
            &mut self,
            _: &mut Request<()>,
            result: &mut Result<Response<Reply>, E>,
        ) -> Option<Self::Future> {
            matches!(result, Ok(response) if response.body().0 == "1")
                .then(|| std::future::ready(()))
        }
        fn clone_request(&mut self, request: &Request<()>) -> Option<Request<()>> {
            Some(request.clone())
        }
    }
    let clock = support::Clock::default();
    let store = support::SpyStore::new(clock);
    let mut service = ServiceBuilder::new()
        .layer(SessionLayer::new(store.clone(), support::keys()))
        .retry(Twice)
        .service_fn(|request: Request<()>| async move {
            let session = LazySession::of(request.extensions())
                .unwrap()
                .load()
                .await
                .unwrap();
            let n = session
                .update("n", |n: Option<u32>| n.unwrap_or(0) + 1)
                .unwrap();
            Ok::<_, Infallible>(Response::new(Reply(n.to_string())))
        });
    let answer = service
        .ready()
        .await
        .unwrap()
        .call(Request::new(()))
        .await
        .unwrap();
    assert_eq!(answer.body().0, "2");
    assert_eq!(store.calls(), [support::Verb::Create]);
    assert_eq!(answer.headers().get_all("set-cookie").iter().count(), 1);
}

#[test]
fn what_should_be_is_send_and_sync() {
    fn check<T: Send + Sync>() {}
    fn future<T: Send>(_: T) {}
    check::<SessionLayer>();
    check::<SessionService<()>>();
    check::<session_layer::Session>();
    check::<LazySession>();
    check::<session_layer::Sessions>();
    check::<session_layer::SigningKeys>();
    check::<session_layer::SessionConfig>();
    check::<SessionError>();
    check::<session_layer::StoreError>();
    check::<session_layer::AnyStore>();
    check::<MemoryStore>();
    let layer = SessionLayer::new(MemoryStore::new(), support::keys());
    future(
        layer
            .layer(service_fn(|_: Request<()>| async {
                Ok::<_, Infallible>(Response::new(()))
            }))
            .call(Request::new(())),
    );
}
