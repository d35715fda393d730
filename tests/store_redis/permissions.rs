//! Users and passwords.

use std::num::NonZeroUsize;

use session_layer::store::{RedisStore, ScanStore, SessionStore, StoreError, StoreErrorKind};

use crate::servers::{self, Cluster, Watched, Wire, url};
use crate::{HOUR, key, kind, new};

/// As in docs/stores.md.
const COMMANDS: &str = "+get +set +del +getrange +setrange +pexpire +evalsha +eval +time";
const PASSWORD: &str = "hunter2 &+%";
const ENCODED: &str = "hunter2%20%26%2B%25";

/// Every verb, each time with scripts that the server has forgotten.
async fn use_all(store: &RedisStore, admin: &mut Wire) -> Result<(), StoreError> {
    for forget in [true, false] {
        store.delete(&key(0)).await?;
        store.create(&key(0), &new(b"0")).await?;
        let seen = store.load(&key(0)).await?.expect("a record");
        if forget {
            let () = admin.ask("SCRIPT FLUSH");
        }
        store.touch(&key(0), &seen, HOUR).await?;
        store.update(&key(0), &seen, &new(b"1")).await?;
        let seen = store.load(&key(0)).await?.expect("a record");
        store
            .update(&key(0), &seen, &new(b"2").with_ending(true))
            .await?;
        store.delete(&key(0)).await?;
    }
    Ok(())
}

fn user(admin: &mut Wire, commands: &str) {
    let () = admin.ask(&format!("ACL SETUSER app reset on ~session:* {commands}"));
    let () = admin.ask_with("ACL SETUSER app", &format!(">{PASSWORD}"));
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn a_user_needs_these_permissions_and_no_others() {
    let documented = include_str!("../../docs/stores.md");
    assert!(documented.contains(&format!(" ~session:* {COMMANDS}\n")));
    let server = servers::start(&[]);
    let mut admin = Wire::to(&server);
    let address = server.address();
    let url = format!("redis://app:{ENCODED}@{address}");
    user(&mut admin, COMMANDS);
    let store = RedisStore::connect(&url).await.unwrap();
    use_all(&store, &mut admin).await.unwrap();
    let denied: Vec<redis::Value> = admin.ask("ACL LOG");
    assert!(denied.is_empty(), "{denied:?}");
    let scan = store.scan(None, NonZeroUsize::MIN).await;
    assert_eq!(kind(scan), StoreErrorKind::Config);
    user(&mut admin, &format!("{COMMANDS} +scan"));
    store.scan(None, NonZeroUsize::MIN).await.unwrap();

    for missing in COMMANDS.split(' ') {
        let rest = COMMANDS.split(' ').filter(|command| command != &missing);
        let rest: Vec<_> = rest.collect();
        user(&mut admin, &rest.join(" "));
        let store = RedisStore::connect(&url).await.unwrap();
        let used = use_all(&store, &mut admin).await;
        if missing == "+time" {
            // The host's clock does as well.
            used.unwrap();
        } else {
            let error = used.expect_err(missing);
            assert_eq!(error.kind(), StoreErrorKind::Config, "{missing}: {error}");
            assert!(!format!("{error:?}").contains("00000"), "{error:?}");
        }
    }

    user(&mut admin, COMMANDS);
    let other = RedisStore::builder(&url)
        .with_prefix("other:")
        .build()
        .unwrap();
    assert_eq!(kind(other.load(&key(0)).await), StoreErrorKind::Config);
    assert_eq!(
        kind(other.create(&key(0), &new(b"")).await),
        StoreErrorKind::Config
    );
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn a_cluster_asks_for_one_permission_more() {
    let server = Cluster::node(&[]);
    let mut admin = Wire::to(&server);
    let () = admin.ask("CLUSTER ADDSLOTSRANGE 0 16383");
    servers::until("the cluster", || {
        let info: String = admin.ask("CLUSTER INFO");
        info.contains("cluster_state:ok")
    });
    let url = format!("redis+cluster://app:{ENCODED}@{}", server.address());
    user(&mut admin, &format!("{COMMANDS} +cluster|slots"));
    let store = RedisStore::connect(&url).await.unwrap();
    use_all(&store, &mut admin).await.unwrap();
    user(&mut admin, COMMANDS);
    let store = RedisStore::connect(&url).await.unwrap();
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn sentinels_ask_for_one_permission_more_and_have_passwords_of_their_own() {
    let watched = Watched::with_password("canary+word");
    let mut admin = Wire::to(&watched.servers[0]);
    user(&mut admin, &format!("{COMMANDS} +role"));
    let address = watched.sentinel.address();
    let url = format!("redis+sentinel://app:{ENCODED}@{address}/mymaster");
    let full = format!("{url}?sentinel_password=canary%2Bword");
    let store = RedisStore::connect(&full).await.unwrap();
    use_all(&store, &mut admin).await.unwrap();
    let without = RedisStore::connect(&url).await.unwrap();
    assert_eq!(kind(without.load(&key(0)).await), StoreErrorKind::Config);
    let unknown = full.replace("mymaster", "another");
    let unknown = RedisStore::connect(&unknown).await.unwrap();
    assert_eq!(
        kind(unknown.load(&key(0)).await),
        StoreErrorKind::Unavailable
    );
    user(&mut admin, COMMANDS);
    let store = RedisStore::connect(&full).await.unwrap();
    assert_eq!(kind(store.load(&key(0)).await), StoreErrorKind::Config);
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn wrong_passwords_are_a_matter_of_configuration_and_are_not_shown() {
    let server = servers::start(&["--requirepass", "hunter2"]);
    let address = server.address();
    let good = RedisStore::connect(&format!("redis://:hunter2@{address}"))
        .await
        .unwrap();
    good.create(&key(0), &new(b"canary")).await.unwrap();
    for protocol in ["resp3", "resp2"] {
        for login in ["", ":hunter3@", "default:hunter3@", "nobody:hunter2@"] {
            let url = format!("redis://{login}{address}?protocol={protocol}");
            let store = RedisStore::connect(&url).await.unwrap();
            for error in [
                store.load(&key(0)).await.unwrap_err(),
                store.create(&key(1), &new(b"canary")).await.unwrap_err(),
                store.delete(&key(0)).await.unwrap_err(),
            ] {
                assert_eq!(error.kind(), StoreErrorKind::Config, "{url}: {error:?}");
                let shown = format!("{error} {error:?} {store:?}");
                for secret in ["hunter", "canary", key(0).as_str()] {
                    assert!(!shown.contains(secret), "{shown}");
                }
            }
        }
    }
    // One that is changed while the connection is open counts from the next connection on.
    let mut admin = Wire::at(&format!("redis://:hunter2@{address}"));
    let () = admin.ask("CONFIG SET requirepass hunter4");
    assert!(good.load(&key(0)).await.unwrap().is_some());
    let () = admin.ask("CLIENT KILL TYPE normal SKIPME yes");
    servers::until("the end of the connection", || {
        let clients: String = admin.ask("CLIENT LIST TYPE normal");
        clients.lines().count() == 1
    });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(kind(good.load(&key(0)).await), StoreErrorKind::Config);
}

#[tokio::test]
#[ignore = "needs Redis: run tests/run"]
async fn a_command_that_the_server_does_not_have_is_a_matter_of_configuration() {
    let server = servers::start(&["--rename-command", "GET", "", "--rename-command", "SET", ""]);
    let store = RedisStore::connect(&url(&server)).await.unwrap();
    let error = store.load(&key(0)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    let create = store.create(&key(0), &new(b"canary")).await.unwrap_err();
    let shown = format!("{error:?}");
    assert!(shown.contains("GET"), "{shown}");
    // Servers quote the arguments.
    for shown in [shown, format!("{create:?}")] {
        for secret in ["canary", key(0).as_str()] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
