//! memcached: `mg`, `ms` with the CAS unique that was read, and `ms` that only adds.

use ::memcache::exp::{AsyncMetaClient, Get, GetStatus, Meta, MutationStatus, Set};

use super::{Floor, MONTH, millis, now, revision, subject};
use crate::Place;
use crate::server::{Folder, Server, free_port, is_root, program};
use crate::subject::Subject;

/// A version, a revision, an expiry.
const HEAD: usize = 25;

pub async fn open() -> Place {
    let (folder, port) = (Folder::new("bench-memcached"), free_port());
    let mut command = vec![program("MEMCACHED", "memcached", &[])];
    let port_text = port.to_string();
    // Nothing is to be dropped to make room.
    command
        .extend(["-l", "127.0.0.1", "-p", &port_text, "-U", "0", "-m", "1024"].map(str::to_owned));
    if is_root() {
        command.extend(["-u", "nobody"].map(str::to_owned));
    }
    let server = Server::start("memcached", folder, port, command);
    let bare = Bare::connect(&server.address().to_string()).await;
    let url = format!("memcached://{}", server.address());
    Place {
        name: "memcached",
        note: "One server; a connection for each request in flight, of which 32 are kept.",
        subjects: vec![subject(bare).await, Subject::session_layer(&url).await],
        empty: None,
        _keeps: Box::new(server),
    }
}

#[derive(Clone)]
struct Bare {
    client: std::sync::Arc<AsyncMetaClient>,
}

struct Seen {
    cas: u64,
    value: Vec<u8>,
}

impl Bare {
    async fn connect(address: &str) -> Self {
        let builder = AsyncMetaClient::builder()
            .connect_timeout(None)
            .io_timeout(None)
            .max_idle(32);
        let client = builder.connect_async(address).await.expect("a client");
        Self {
            client: client.into(),
        }
    }

    async fn set(&self, mut set: Set, value: Vec<u8>) -> MutationStatus {
        set.value = value;
        // A date, for it is longer than memcached's longest lifetime.
        let date = u32::try_from((now() + MONTH).as_secs()).expect("a date");
        let set = set.ttl_raw(date).return_cas();
        self.client.run(set).await.expect("ms").status
    }
}

impl Floor for Bare {
    type Seen = Seen;

    async fn load(&self, key: &str) -> Option<Seen> {
        let get = Get::new(key).meta(Meta::NONE.cas());
        let got = self.client.run(get).await.expect("mg");
        if got.status == GetStatus::Miss {
            return None;
        }
        let cas = got.item.cas.expect("a CAS unique");
        let value = got.value.expect("a value");
        let expiry = value[17..].first_chunk().expect("an expiry");
        (i64::from_be_bytes(*expiry) > millis(now())).then_some(Seen { cas, value })
    }

    async fn update(&self, key: &str, seen: Seen) -> bool {
        let value = value_of(&seen.value[HEAD..]);
        let set = Set::new(key, []).compare_cas(seen.cas);
        match self.set(set, value).await {
            MutationStatus::Applied => true,
            MutationStatus::CasMismatch | MutationStatus::NotFound => false,
            other => panic!("{other:?}"),
        }
    }

    async fn create(&self, key: &str, payload: usize) -> bool {
        let add = Set::new(key, []).add();
        match self.set(add, value_of(&vec![b'x'; payload])).await {
            MutationStatus::Applied => true,
            MutationStatus::AlreadyExists => false,
            other => panic!("{other:?}"),
        }
    }
}

fn value_of(payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEAD + payload.len());
    value.push(1);
    value.extend_from_slice(&revision());
    value.extend_from_slice(&millis(now() + MONTH).to_be_bytes());
    value.extend_from_slice(payload);
    value
}
