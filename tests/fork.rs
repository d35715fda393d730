//! A process that forks leaves its child everything that it has in memory, random bytes included.
#![cfg(unix)]

use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use fork::{Fork, fork, waitpid};
use http::Request;
use http::header::SET_COOKIE;
use session_layer::store::MemoryStore;
use session_layer::{Session, SessionLayer, SigningKeys};
use tower::ServiceExt;

/// More than are drawn at a time.
const MANY: usize = 40;

/// Behind the version, before what is also of the time of issue.
const ID: std::ops::Range<usize> = 1..43;

fn application() -> Router {
    let visit = async |session: Session| session.insert("visits", 1);
    let layer = SessionLayer::new(MemoryStore::new(), SigningKeys::generate().unwrap());
    Router::new().route("/", get(visit)).layer(layer)
}

/// The ids of that many new sessions.
fn ids(application: &Router, count: usize) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().build().unwrap();
    let mut ids = Vec::new();
    for _ in 0..count {
        let request = Request::new(Body::empty());
        let response = runtime.block_on(application.clone().oneshot(request));
        let set_cookie = response.unwrap().headers()[SET_COOKIE].clone();
        let (_, value) = set_cookie.to_str().unwrap().split_once('=').unwrap();
        ids.push(value[ID].to_owned());
    }
    ids
}

#[test]
fn a_child_never_hands_out_the_ids_of_its_parent() {
    let application = application();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids");
    // From here on, this thread has drawn more than it has handed out.
    let mut all: HashSet<String> = ids(&application, 1).into_iter().collect();
    match fork().unwrap() {
        Fork::Child => {
            let wrote = catch_unwind(AssertUnwindSafe(|| {
                let children = ids(&application, MANY).join("\n");
                fs::write(&file, children).unwrap();
            }));
            std::process::exit(i32::from(wrote.is_err()));
        }
        Fork::Parent(child) => {
            all.extend(ids(&application, MANY));
            assert_eq!(waitpid(child).unwrap(), 0);
        }
    }
    let children = fs::read_to_string(&file).unwrap();
    all.extend(children.lines().map(str::to_owned));
    assert_eq!(all.len(), 1 + 2 * MANY);
}
