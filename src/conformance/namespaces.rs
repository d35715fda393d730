//! Two stores on one backend.

use super::{
    Fixture, LONG, Purge, SHORT, assert_same, create, load, load_live, new_key, nonzero, outlive,
    touch, try_touch, try_update, update,
};
use crate::store::{SessionStore, TouchOutcome, UpdateOutcome};

/// The same key in two namespaces is two records.
pub async fn namespaces_do_not_see_each_other<F: Fixture>(fixture: &F) {
    let (ours, theirs) = (fixture.store(), fixture.other_namespace());
    let key = new_key();
    let mine = create(&ours, &key, b"ours", LONG).await;
    assert!(load(&theirs, &key).await.is_none());
    let (outcome, _) = try_update(&theirs, &key, &mine, b"x", LONG).await;
    assert_eq!(outcome, UpdateOutcome::Gone);
    let outcome = try_touch(&theirs, &key, &mine, LONG).await;
    assert_eq!(outcome, TouchOutcome::Gone);

    let other = create(&theirs, &key, b"theirs", LONG).await;
    assert_same(&load_live(&ours, &key).await, &mine);
    assert_same(&load_live(&theirs, &key).await, &other);

    let mine = update(&ours, &key, &mine, b"ours, newer", LONG).await;
    assert_same(&load_live(&theirs, &key).await, &other);
    let other = touch(&theirs, &key, &other, LONG).await;
    theirs.delete(&key).await.expect("delete");
    assert_same(&load_live(&ours, &key).await, &mine);
    assert!(load(&theirs, &key).await.is_none());

    let other = create(&theirs, &key, other.payload(), LONG).await;
    ours.delete(&key).await.expect("delete");
    assert_same(&load_live(&theirs, &key).await, &other);
}

/// `delete_expired` purges its own namespace only.
pub async fn purging_leaves_other_namespaces_alone<F: Fixture>(fixture: &F) {
    let (ours, theirs) = (fixture.store(), fixture.other_namespace());
    let (brief, lasting) = (new_key(), new_key());
    create(&theirs, &brief, b"brief", SHORT).await;
    let kept = create(&theirs, &lasting, b"lasting", LONG).await;
    outlive(SHORT, ours.limits()).await;
    if let Purge::OnDemand { margin } = fixture.purge() {
        tokio::time::sleep(margin).await;
        let ours = ours.delete_expired(nonzero(100)).await.expect("purge");
        assert_eq!(ours, 0, "another namespace's records were purged");
        let theirs = theirs.delete_expired(nonzero(100)).await.expect("purge");
        assert_eq!(
            theirs, 1,
            "the record of the other namespace is not there to be purged"
        );
    } else {
        assert_eq!(ours.delete_expired(nonzero(100)).await.expect("purge"), 0);
    }
    assert_same(&load_live(&theirs, &lasting).await, &kept);
    assert!(load(&theirs, &brief).await.is_none());
}
