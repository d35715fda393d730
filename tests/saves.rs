//! What a save, and the response after it, make of what was done to a session: before the save, while it
//! is under way, and when it fails.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use session_layer::{Session, SessionConfig, SessionErrorKind, StoreErrorKind};
use support::fixture::{Fixture, Kept, fixture_of};
use support::{Browser, Fault, Verb};
use tokio::sync::Notify;

use Verb::{Create, Load, Touch, Update};

fn fixture() -> Fixture {
    let both = |session: Session| async move {
        session.insert("a", 1).unwrap();
        session.insert("b", 2).unwrap();
    };
    let routes = Router::new().route("/set-a-and-b", get(both));
    fixture_of(routes, SessionConfig::default())
}

#[tokio::test]
async fn edits_made_while_others_are_done_again_come_on_top_of_those() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    let add = |session: &Session| {
        let add = |n: Option<u64>| n.unwrap_or(0) + 1;
        session.update("n", add).unwrap();
    };
    session.insert("first", true).unwrap();
    let somebody_else = Arc::new(support::SpyStore::rewrite_all);
    let store = &fixture.app.store;
    store.fault(Update, Fault::First(somebody_else));
    store.on_next(Update, {
        let session = session.clone();
        move || {
            add(&session);
            let (mut runs, again) = (0, session.clone());
            let count = move |_: Option<u64>| {
                runs += 1;
                if runs == 2 {
                    add(&again);
                }
                runs
            };
            session.update("runs", count).unwrap();
        }
    });
    session.save().await.unwrap();
    assert_eq!(session.get::<u64>("n").unwrap(), Some(3));
    session.save().await.unwrap();
    let stored = browser.get(&fixture.app.router, "/read").await;
    assert_eq!(stored.body, "Some(3)");
}

#[tokio::test]
async fn what_was_taken_during_a_save_may_turn_out_to_be_taken_by_another() {
    for arrives_unseen in [false, true] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        browser.get(&fixture.app.router, "/keep").await;
        let session = fixture.take_kept();
        session.insert("mine", 1).unwrap();
        let gate = Arc::new(Notify::new());
        let wait = Fault::Wait(Arc::clone(&gate));
        fixture.app.store.fault(Update, wait);
        let saving = tokio::spawn({
            let session = session.clone();
            async move { session.save().await }
        });
        fixture.until_called(Update).await;
        browser.get(&fixture.app.router, "/add").await;
        assert_eq!(session.take::<u64>("n").unwrap(), Some(1));
        gate.notify_one();
        saving.await.unwrap().unwrap();
        if arrives_unseen {
            fixture.app.store.fault(Update, Fault::ConflictAfter);
        }
        let taken = session.save().await.unwrap_err();
        assert_eq!(taken.kind(), SessionErrorKind::Taken);
        session.save().await.unwrap();
    }
}

#[tokio::test]
async fn a_new_id_that_was_saved_is_not_changed_again() {
    let fixture = fixture();
    let router = fixture.around(|session: Session| async move {
        session.cycle_id();
        session.insert("user", "ada").unwrap();
        session.save().await.unwrap();
    });
    let answer = Browser::default().get(&router, "/").await;
    answer.set_value();
    assert_eq!(fixture.app.store.calls(), [Create]);
}

#[tokio::test]
async fn what_a_store_wrote_before_it_panicked_is_not_written_again() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    let add = || {
        let add = |n: Option<u64>| n.unwrap_or(0) + 1;
        session.update("n", add).unwrap();
    };
    add();
    fixture.app.store.fault(Update, Fault::PanicAfter);
    let saving = tokio::spawn({
        let session = session.clone();
        async move { session.save().await }
    });
    assert!(saving.await.unwrap_err().is_panic());
    add();
    session.save().await.unwrap();
    let stored = browser.get(&fixture.app.router, "/read").await;
    assert_eq!(stored.body, "Some(3)");
}

#[tokio::test]
async fn a_save_is_remembered_with_all_that_it_stored() {
    let fixture = fixture();
    let minute = Duration::from_secs(60);
    let router = fixture.around(move |session: Session| async move {
        session.insert("n", 1).unwrap();
        session.set_lifetime(minute).unwrap();
        session.set_permanent(false);
        session.save().await.unwrap();
        assert!(session.created_at().is_some());
        session.insert("more", 2).unwrap();
    });
    let answer = Browser::default().get(&router, "/").await;
    assert_eq!(fixture.app.store.calls(), [Create, Update]);
    assert_eq!(answer.cookies()[0].max_age(), None);
    let expires: Vec<_> = (fixture.app.store.records().values())
        .map(|entry| entry.expires)
        .collect();
    assert_eq!(expires, [fixture.app.clock.now() + minute]);
}

#[tokio::test]
async fn a_closure_runs_again_only_on_what_others_have_changed() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    let runs = Arc::new(Mutex::new(0));
    let count = |session: &Session| {
        let runs = Arc::clone(&runs);
        let run = move |n: Option<u64>| {
            *runs.lock().unwrap() += 1;
            n.unwrap_or(0) + 1
        };
        session.update("n", run).unwrap();
    };
    count(&session);
    let gate = Arc::new(Notify::new());
    let wait = Fault::Wait(Arc::clone(&gate));
    fixture.app.store.fault(Update, wait);
    let saving = tokio::spawn({
        let session = session.clone();
        async move { session.save().await }
    });
    fixture.until_called(Update).await;
    count(&session);
    gate.notify_one();
    saving.await.unwrap().unwrap();
    session.save().await.unwrap();
    assert_eq!(*runs.lock().unwrap(), 2);
    browser.get(&fixture.app.router, "/add").await;
    count(&session);
    session.save().await.unwrap();
    assert_eq!(*runs.lock().unwrap(), 4);
    assert_eq!(session.get::<u64>("n").unwrap(), Some(5));
}

#[tokio::test]
async fn a_flush_of_a_session_that_has_ended_removes_its_cookie() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let store = fixture.app.store.clone();
    let router = fixture.around(move |session: Session| async move {
        store.records().clear();
        session.insert("n", 9).unwrap();
        let ended = session.save().await.unwrap_err();
        assert_eq!(ended.kind(), SessionErrorKind::Ended);
        assert!(session.is_empty());
        session.flush();
    });
    assert!(browser.clone().get(&router, "/").await.removes_cookie());
}

#[tokio::test]
async fn what_follows_a_flush_stands_though_the_save_before_it_found_no_session() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let store = fixture.app.store.clone();
    let router = fixture.around(move |session: Session| async move {
        session.insert("n", 9).unwrap();
        store.on_next(Update, {
            let (session, store) = (session.clone(), store.clone());
            move || {
                store.records().clear();
                session.flush();
                session.insert("n", 10).unwrap();
            }
        });
        session.save().await.unwrap();
    });
    browser.get(&router, "/").await.set_value();
    let stored = browser.get(&fixture.app.router, "/read").await;
    assert_eq!(stored.body, "Some(10)");
}

#[tokio::test]
async fn a_login_with_a_dead_cookie_is_made_up_for_when_its_save_fails() {
    for draws in [1, 2] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        let logout = fixture.around(|session: Session| async move { session.flush() });
        browser.clone().get(&logout, "/").await;
        let router = fixture.around(|session: Session| async move {
            session.cycle_id();
            session.insert("n", 5).unwrap();
            session.save().await.unwrap_err();
        });
        for _ in 1..draws {
            fixture.app.store.fault(Create, Fault::Taken);
        }
        let failure = Fault::Fail(StoreErrorKind::Unavailable);
        fixture.app.store.fault(Create, failure);
        browser.get(&router, "/").await.set_value();
        let stored = browser.get(&fixture.app.router, "/read").await;
        assert_eq!(stored.body, "Some(5)");
    }
}

#[tokio::test]
async fn what_the_response_could_not_store_is_gone_from_the_session() {
    for begins in [true, false] {
        let fixture = fixture();
        let mut browser = match begins {
            true => Browser::default(),
            false => fixture.browser().await,
        };
        let kept = Kept::<Session>::default();
        let router = fixture.around({
            let kept = Arc::clone(&kept);
            move |session: Session| async move {
                session.insert("more", 2).unwrap();
                *kept.lock().unwrap() = Some(session);
            }
        });
        for verb in [Create, Update] {
            let failure = Fault::Fail(StoreErrorKind::Unavailable);
            fixture.app.store.fault(verb, failure);
        }
        assert_eq!(browser.get(&router, "/").await.status, 503);
        let session = kept.lock().unwrap().take().unwrap();
        assert_eq!(session.len(), usize::from(!begins));
        assert_eq!(session.keys().len(), session.len());
        assert!(!session.is_modified());
    }
}

#[tokio::test]
async fn what_the_response_could_not_store_after_a_conflict_is_gone_as_well() {
    for begins in [true, false] {
        let fixture = fixture();
        let mut browser = match begins {
            true => Browser::default(),
            false => fixture.browser().await,
        };
        let kept = Kept::<Session>::default();
        let router = fixture.around({
            let kept = Arc::clone(&kept);
            move |session: Session| async move {
                session.insert("more", 2).unwrap();
                *kept.lock().unwrap() = Some(session);
            }
        });
        // What comes after a conflict fails.
        fixture.app.store.fault(Create, Fault::Taken);
        let somebody_else = Arc::new(support::SpyStore::rewrite_all);
        fixture.app.store.fault(Update, Fault::First(somebody_else));
        for verb in [Create, Update] {
            let failure = Fault::Fail(StoreErrorKind::Unavailable);
            fixture.app.store.fault(verb, failure);
        }
        assert_eq!(browser.get(&router, "/").await.status, 503);
        let session = kept.lock().unwrap().take().unwrap();
        assert_eq!(session.len(), usize::from(!begins));
        assert_eq!(session.keys().len(), session.len());
        assert!(!session.is_modified());
    }
}

#[tokio::test]
async fn what_could_not_be_created_can_be_taken_back() {
    for draws in [1, 2] {
        let fixture = fixture();
        for _ in 1..draws {
            fixture.app.store.fault(Create, Fault::Taken);
        }
        let router = fixture.around(|session: Session| async move {
            session.insert("n", 5).unwrap();
            session.save().await.unwrap_err();
            assert!(session.remove("n"));
        });
        let failure = Fault::Fail(StoreErrorKind::Unavailable);
        fixture.app.store.fault(Create, failure);
        let answer = Browser::default().get(&router, "/").await;
        assert_eq!(answer.status, 200);
        assert!(answer.sets_no_cookie(), "{answer:?}");
        assert_eq!(fixture.app.store.calls(), vec![Create; draws]);
    }
}

#[tokio::test]
async fn what_a_save_has_found_counts_among_the_keys() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let session = fixture.take_kept();
    session.insert("mine", 1).unwrap();
    session.insert("a", 9).unwrap();
    assert!(session.remove("a"));
    browser.get(&fixture.app.router, "/set-a-and-b").await;
    session.save().await.unwrap();
    let mut keys = session.keys();
    keys.sort();
    assert_eq!(keys, ["a", "b", "mine", "n"]);
    assert_eq!(session.len(), 4);
}

#[tokio::test]
async fn what_is_inserted_after_a_clear_is_there_though_it_was_there_before() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    let router = fixture.around(|session: Session| async move {
        session.clear();
        session.insert("n", 1).unwrap();
        assert_eq!(session.get::<u64>("n").unwrap(), Some(1));
    });
    browser.get(&router, "/").await;
    let stored = browser.get(&fixture.app.router, "/read").await;
    assert_eq!(stored.body, "Some(1)");
}

#[tokio::test]
async fn every_kind_of_change_is_one() {
    let fixture = fixture();
    let mut browser = fixture.browser().await;
    browser.get(&fixture.app.router, "/keep").await;
    let key = fixture.take_kept().key().unwrap();
    let by_key = fixture.app.layer.sessions().load(&key).await.unwrap();
    let by_key = by_key.unwrap();
    assert!(!by_key.is_modified());
    by_key.flush();
    assert!(by_key.is_modified(), "a session is to be ended");
    by_key.save().await.unwrap();
    assert!(!by_key.is_modified());
    let flush = fixture.around(|session: Session| async move {
        session.flush();
        assert!(session.is_modified(), "a cookie is to be removed");
    });
    let mut forger = Browser::with_cookie("garbage");
    assert!(forger.get(&flush, "/").await.removes_cookie());
    let rotate = fixture.around(|session: Session| async move {
        session.cycle_id();
        assert!(session.is_modified(), "an id is to be changed");
    });
    let browser = fixture.browser().await;
    browser.clone().get(&rotate, "/").await.set_value();
}

#[tokio::test]
async fn an_insert_counts_over_an_update_and_what_was_undone_does_not() {
    for (undoes, n) in [(true, "Some(2)"), (false, "Some(7)")] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        browser.get(&fixture.app.router, "/keep").await;
        let session = fixture.take_kept();
        session.insert("mine", true).unwrap();
        if undoes {
            session.insert("n", 7).unwrap();
            session.insert("n", 1).unwrap();
        } else {
            let add = |n: Option<u64>| n.unwrap_or(0) + 6;
            session.update("n", add).unwrap();
            session.insert("n", 7).unwrap();
        }
        browser.get(&fixture.app.router, "/add").await;
        session.save().await.unwrap();
        let stored = browser.get(&fixture.app.router, "/read").await;
        assert_eq!(stored.body, n);
    }
}

#[tokio::test]
async fn what_a_save_may_have_stored_is_undone_by_the_next() {
    for arrived in [true, false] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        browser.get(&fixture.app.router, "/keep").await;
        let session = fixture.take_kept();
        session.insert("n", 5).unwrap();
        session.insert("mine", true).unwrap();
        let kind = StoreErrorKind::Timeout;
        let fault = match arrived {
            true => Fault::FailAfter(kind),
            false => Fault::Fail(kind),
        };
        fixture.app.store.fault(Update, fault);
        session.save().await.unwrap_err();
        session.insert("n", 1).unwrap();
        assert!(session.remove("mine"));
        assert_eq!(session.get::<u64>("n").unwrap(), Some(1));
        session.save().await.unwrap();
        browser.get(&fixture.app.router, "/keep").await;
        let stored = fixture.take_kept();
        assert_eq!(stored.keys(), ["n"], "arrived: {arrived}");
        assert_eq!(stored.get::<u64>("n").unwrap(), Some(1));
    }
}

#[tokio::test]
async fn whichever_of_several_saves_has_arrived_each_edit_counts_once() {
    for arrived in [None, Some(0), Some(1), Some(2)] {
        let fixture = fixture();
        let mut browser = fixture.browser().await;
        browser.get(&fixture.app.router, "/keep").await;
        let session = fixture.take_kept();
        let add = || {
            let add = |n: Option<u64>| n.unwrap_or(0) + 1;
            session.update("n", add).unwrap();
        };
        let kind = StoreErrorKind::Timeout;
        for save in 0..3 {
            add();
            let fault = match arrived {
                Some(arrived) if arrived == save => Fault::FailAfter(kind),
                _ => Fault::Fail(kind),
            };
            fixture.app.store.fault(Update, fault);
            session.save().await.unwrap_err();
            if arrived == Some(save) {
                break;
            }
        }
        add();
        let expected = session.get::<u64>("n").unwrap();
        session.save().await.unwrap();
        let stored = browser.get(&fixture.app.router, "/read").await;
        assert_eq!(stored.body, format!("{expected:?}"), "{arrived:?}");
    }
}

#[tokio::test]
async fn a_logout_after_a_failed_save_begins_no_session() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let router = fixture.around(|session: Session| async move {
        session.insert("n", 5).unwrap();
        session.save().await.unwrap_err();
        session.flush();
    });
    let failure = Fault::Fail(StoreErrorKind::Unavailable);
    fixture.app.store.fault(Update, failure);
    assert!(browser.clone().get(&router, "/").await.removes_cookie());
    assert_eq!(fixture.app.store.calls(), [Load, Update, Update]);
    assert_eq!(fixture.app.store.live(), []);
}

#[tokio::test]
async fn a_new_session_after_a_flush_inherits_nothing() {
    let fixture = fixture();
    let mut browser = Browser::default();
    let login = fixture.around(|session: Session| async move {
        session.login("ada").unwrap();
        session.set_permanent(false);
        session.set_lifetime(Duration::from_secs(60)).unwrap();
    });
    browser.get(&login, "/").await.set_value();
    let begin_anew = fixture.around(|session: Session| async move {
        assert!(session.user().is_some());
        session.flush();
        assert!(session.user().is_none());
        session.insert("n", 5).unwrap();
    });
    let answer = browser.get(&begin_anew, "/").await;
    let month = cookie::time::Duration::days(31);
    assert_eq!(answer.cookies()[0].max_age(), Some(month));
    let look = fixture.around(|session: Session| async move {
        assert!(session.user().is_none());
        session.get::<u64>("n").map(|n| format!("{n:?}"))
    });
    assert_eq!(browser.get(&look, "/").await.body, "Some(5)");
}

#[tokio::test]
async fn a_new_id_asked_for_during_a_save_is_forgotten_if_the_session_has_ended() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    let store = fixture.app.store.clone();
    let router = fixture.around(move |session: Session| async move {
        session.insert("n", 5).unwrap();
        store.on_next(Update, {
            let (session, store) = (session.clone(), store.clone());
            move || {
                store.records().clear();
                session.cycle_id();
            }
        });
        session.save().await.unwrap_err();
        session.insert("n", 6).unwrap();
    });
    let answer = browser.clone().get(&router, "/").await;
    assert!(answer.sets_no_cookie(), "{answer:?}");
    assert_eq!(fixture.app.store.live(), []);
}

#[tokio::test]
async fn what_is_on_its_way_counts_as_stored() {
    let fixture = fixture();
    let store = fixture.app.store.clone();
    let router = fixture.around(move |session: Session| async move {
        let minute = Duration::from_secs(60);
        session.insert("n", 5).unwrap();
        let during = session.clone();
        store.on_next(Create, move || assert!(!during.is_modified()));
        session.save().await.unwrap();
        session.set_lifetime(minute).unwrap();
        let during = session.clone();
        store.on_next(Update, move || {
            assert!(!during.is_modified());
            // As it was, but not as it is going to be.
            during.set_lifetime(None).unwrap();
            assert!(during.is_modified());
        });
        session.save().await.unwrap();
        assert!(session.is_modified());
    });
    Browser::default().get(&router, "/").await.set_value();
    assert_eq!(fixture.app.store.calls(), [Create, Update, Update]);
}

#[tokio::test]
async fn a_save_leaves_the_response_nothing_to_do() {
    let fixture = fixture();
    let browser = fixture.browser().await;
    // So that it is due to be renewed.
    let days = |days: u64| Duration::from_secs(days * 86_400);
    fixture.app.clock.advance(days(4));
    let save = |edit: fn(&Session)| {
        fixture.around(move |session: Session| async move {
            edit(&session);
            session.save().await.unwrap();
            assert!(!session.is_modified());
        })
    };
    let change = save(|session| session.insert("n", 5).unwrap());
    browser.clone().get(&change, "/").await.set_value();
    assert_eq!(fixture.app.store.calls(), [Load, Update]);
    fixture.app.clock.advance(days(4));
    browser.clone().get(&save(|_| ()), "/").await.set_value();
    assert_eq!(fixture.app.store.calls(), [Load, Touch]);
    let begin_anew = save(|session| {
        session.flush();
        session.insert("n", 5).unwrap();
    });
    browser.clone().get(&begin_anew, "/").await.set_value();
    assert_eq!(fixture.app.store.calls(), [Load, Update, Create]);
}

#[tokio::test]
async fn what_a_server_error_drops_leaves_nothing_for_a_later_save() {
    let fixture = fixture();
    for rotates in [true, false] {
        let browser = fixture.browser().await;
        let kept = Kept::<Session>::default();
        let router = fixture.around({
            let kept = Arc::clone(&kept);
            move |session: Session| async move {
                if rotates {
                    session.cycle_id();
                } else {
                    session.insert("n", 5).unwrap();
                    session.save().await.unwrap_err();
                }
                *kept.lock().unwrap() = Some(session);
                StatusCode::INTERNAL_SERVER_ERROR
            }
        });
        let failure = Fault::Fail(StoreErrorKind::Unavailable);
        fixture.app.store.fault(Update, failure);
        assert_eq!(browser.clone().get(&router, "/").await.status, 500);
        fixture.app.store.clear_faults();
        fixture.app.store.calls();
        let session = kept.lock().unwrap().take().unwrap();
        assert!(!session.is_modified());
        session.save().await.unwrap();
        assert_eq!(fixture.app.store.calls(), [], "rotates: {rotates}");
    }
}
