//! MongoDB: a `find` of one document, and updates by a pipeline that compares. Writes wait for a
//! majority's journals.

use ::mongodb::bson::spec::BinarySubtype;
use ::mongodb::bson::{Binary, Bson, Document, doc};
use ::mongodb::options::{ClientOptions, CollectionOptions, WriteConcern};
use ::mongodb::{Client, Collection, IndexModel};

use super::{Floor, MONTH, revision, subject};
use crate::Place;
use crate::mongod::ReplicaSet;
use crate::subject::Subject;

pub async fn open() -> Place {
    let set = ReplicaSet::start(1).await;
    let url = set.url("bench");
    let bare = Bare::connect(&url).await;
    Place {
        name: "mongodb",
        note: "A replica set of one member; a write waits for its journal, and thereby for the disk.",
        subjects: vec![subject(bare).await, Subject::session_layer(&url).await],
        empty: None,
        _keeps: Box::new(set),
    }
}

#[derive(Clone)]
struct Bare {
    collection: Collection<Document>,
}

struct Seen {
    revision: Vec<u8>,
    payload: Vec<u8>,
}

impl Bare {
    async fn connect(url: &str) -> Self {
        let mut options = ClientOptions::parse(url).await.expect("a URL");
        options.max_pool_size = Some(100);
        let client = Client::with_options(options).expect("a client");
        let concern = WriteConcern::builder()
            .w(::mongodb::options::Acknowledgment::Majority)
            .w_timeout(std::time::Duration::from_millis(1500))
            .journal(true)
            .build();
        let options = CollectionOptions::builder().write_concern(concern).build();
        let collection: Collection<Document> = client
            .database("bench")
            .collection_with_options("floor", options);
        let index = IndexModel::builder().keys(doc! { "expires_at": 1 }).build();
        collection.create_index(index).await.expect("an index");
        Self { collection }
    }
}

impl Floor for Bare {
    type Seen = Seen;

    async fn load(&self, key: &str) -> Option<Seen> {
        let found = self
            .collection
            .find(doc! { "_id": key })
            .projection(doc! {
                "_id": 0, "revision": 1, "payload": 1, "expires_at": 1, "now": "$$NOW",
            })
            .limit(-1);
        let mut found = found.await.expect("find");
        if !found.advance().await.expect("find") {
            return None;
        }
        let document = found.current();
        let date = |name| document.get_datetime(name).expect("a date");
        let bytes = |name| document.get_binary(name).expect("bytes").bytes.to_vec();
        (date("expires_at") > date("now")).then(|| Seen {
            revision: bytes("revision"),
            payload: bytes("payload"),
        })
    }

    async fn update(&self, key: &str, seen: Seen) -> bool {
        let then = doc! { "$add": ["$$NOW", millis(), 1] };
        let more = doc! { "$cond": [{ "$eq": ["$expires_at", then] }, 0, 1] };
        let made = record(seen.payload, doc! { "$add": ["$$NOW", millis(), more] });
        let is_seen = doc! { "$eq": ["$revision", binary(seen.revision)] };
        let alive = doc! { "_id": key, "$expr": { "$gt": ["$expires_at", "$$NOW"] } };
        let change = vec![doc! { "$replaceWith": { "$cond": [is_seen, made, "$$ROOT"] } }];
        let done = self.collection.update_one(alive, change).await;
        done.expect("update").modified_count == 1
    }

    async fn create(&self, key: &str, payload: usize) -> bool {
        let taken = doc! { "$and": [
            { "$eq": [{ "$type": "$expires_at" }, "date"] },
            { "$gt": ["$expires_at", "$$NOW"] },
            { "$eq": [{ "$type": "$payload" }, "binData"] },
            { "$eq": [{ "$type": "$revision" }, "binData"] },
            { "$eq": [{ "$binarySize": "$revision" }, 16] },
        ] };
        let made = record(vec![b'x'; payload], doc! { "$add": ["$$NOW", millis(), 1] });
        let change = vec![doc! { "$replaceWith": { "$cond": [taken, "$$ROOT", made] } }];
        let upsert = self.collection.update_one(doc! { "_id": key }, change);
        let done = upsert.upsert(true).await.expect("upsert");
        done.upserted_id.is_some()
    }
}

fn record(payload: Vec<u8>, expires_at: Document) -> Document {
    doc! {
        "_id": "$_id",
        "revision": binary(revision().to_vec()),
        "payload": binary(payload),
        "expires_at": expires_at,
    }
}

fn binary(bytes: Vec<u8>) -> Bson {
    Bson::Binary(Binary {
        subtype: BinarySubtype::Generic,
        bytes,
    })
}

fn millis() -> i64 {
    MONTH.as_millis() as i64
}
