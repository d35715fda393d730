//! A store that never waits is asked without a future, and a request through it is to come to the same
//! as through any other: random requests of several browsers, which overlap, on a `MemoryStore` as it
//! is, and on one that the layer cannot tell.

mod support;

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use proptest::prelude::*;
use session_layer::store::{MemoryStore, SessionStore};
use session_layer::{Format, Session, SessionConfig, SessionLayer};
use support::{Answer, Browser, Clock, keys, send};
use tokio::sync::oneshot;

const SLOTS: usize = 3;
const BROWSERS: usize = 2;
/// So few that the store is full now and then.
const RECORDS: usize = 5;

#[derive(Debug, Clone)]
enum Edit {
    Set(u8, u8),
    Long(u8),
    /// Which JSON does not know.
    NotANumber(u8),
    Update(u8),
    Remove(u8),
    Take(u8),
    Clear,
    Cycle,
    Flush,
    Lifetime(Option<u8>),
    Permanent(bool),
    Login(u8),
    Save,
}

#[derive(Debug, Clone)]
enum Step {
    /// A request comes in, and its handler has done this much.
    Begin {
        slot: usize,
        browser: usize,
        json: bool,
        edits: Vec<Edit>,
    },
    /// It does this, and answers.
    End {
        slot: usize,
        edits: Vec<Edit>,
        status: StatusCode,
        /// What is done to the session after that.
        after: Vec<Edit>,
    },
    HangUp {
        slot: usize,
    },
    Wait {
        hours: u64,
    },
}

fn edit() -> impl Strategy<Value = Edit> {
    let key = 0..3_u8;
    prop_oneof![
        6 => (key.clone(), 0..3_u8).prop_map(|(key, value)| Edit::Set(key, value)),
        1 => key.clone().prop_map(Edit::Long),
        1 => key.clone().prop_map(Edit::NotANumber),
        4 => key.clone().prop_map(Edit::Update),
        2 => key.clone().prop_map(Edit::Remove),
        2 => key.prop_map(Edit::Take),
        1 => Just(Edit::Clear),
        2 => Just(Edit::Cycle),
        1 => Just(Edit::Flush),
        1 => prop::option::of(1..100_u8).prop_map(Edit::Lifetime),
        1 => any::<bool>().prop_map(Edit::Permanent),
        1 => (0..2_u8).prop_map(Edit::Login),
        2 => Just(Edit::Save),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let edits = || prop::collection::vec(edit(), 0..4);
    let status = prop_oneof![
        6 => Just(StatusCode::OK),
        1 => Just(StatusCode::INTERNAL_SERVER_ERROR),
    ];
    prop_oneof![
        6 => (0..SLOTS, 0..BROWSERS, any::<bool>(), edits()).prop_map(
            |(slot, browser, json, edits)| Step::Begin { slot, browser, json, edits }
        ),
        6 => (0..SLOTS, edits(), status, edits()).prop_map(
            |(slot, edits, status, after)| Step::End { slot, edits, status, after }
        ),
        1 => (0..SLOTS).prop_map(|slot| Step::HangUp { slot }),
        1 => (1..400_u64).prop_map(|hours| Step::Wait { hours }),
    ]
}

/// What a handler is told: what to do at once, and later what to do and to answer.
struct Order {
    edits: Vec<Edit>,
    rest: oneshot::Receiver<(Vec<Edit>, StatusCode)>,
}

type Orders = Arc<Mutex<HashMap<usize, Order>>>;

/// The session of the last handler, which something may have kept.
type Kept = Arc<Mutex<Option<Session>>>;

async fn handle(
    State((orders, kept)): State<(Orders, Kept)>,
    Path(slot): Path<usize>,
    session: Session,
) -> (StatusCode, String) {
    let order = orders.lock().unwrap().remove(&slot).expect("an order");
    let mut said = String::new();
    carry_out(&session, order.edits, &mut said).await;
    let (edits, status) = order.rest.await.expect("the rest");
    carry_out(&session, edits, &mut said).await;
    said.push_str(&tell(&session));
    *kept.lock().unwrap() = Some(session);
    (status, said)
}

async fn carry_out(session: &Session, edits: Vec<Edit>, said: &mut String) {
    for edit in edits {
        let name = |key: u8| format!("key {key}");
        let outcome = match edit {
            Edit::Set(key, value) => format!("{:?}", session.insert(&name(key), value)),
            Edit::Long(key) => format!("{:?}", session.insert(&name(key), "long ".repeat(40))),
            Edit::NotANumber(key) => match session.insert(&name(key), f64::NAN) {
                Ok(()) => "stored".to_owned(),
                Err(error) => format!("{:?}", error.kind()),
            },
            Edit::Update(key) => {
                let add = |n: Option<u64>| n.unwrap_or(0) + 1;
                match session.update(&name(key), add) {
                    Ok(n) => n.to_string(),
                    Err(error) => format!("{:?}", error.kind()),
                }
            }
            Edit::Remove(key) => session.remove(&name(key)).to_string(),
            Edit::Take(key) => match session.take::<u64>(&name(key)) {
                Ok(taken) => format!("{taken:?}"),
                Err(error) => format!("{:?}", error.kind()),
            },
            Edit::Clear => format!("{:?}", session.clear()),
            Edit::Cycle => format!("{:?}", session.cycle_id()),
            Edit::Flush => format!("{:?}", session.flush()),
            Edit::Lifetime(hours) => {
                let lifetime = hours.map(|hours| Duration::from_secs(3600 * u64::from(hours)));
                format!("{:?}", session.set_lifetime(lifetime))
            }
            Edit::Permanent(permanent) => format!("{:?}", session.set_permanent(permanent)),
            Edit::Login(user) => format!("{:?}", session.login(&format!("user {user}"))),
            Edit::Save => match session.save().await {
                Ok(()) => "saved".to_owned(),
                Err(error) => format!("{:?}", error.kind()),
            },
        };
        said.push_str(&outcome);
        said.push_str("; ");
    }
}

fn tell(session: &Session) -> String {
    let mut keys = session.keys();
    keys.sort();
    let values: Vec<_> = keys
        .iter()
        .map(|key| match session.get::<String>(key) {
            Ok(text) => format!("{text:?}"),
            Err(_) => format!("{:?}", session.get::<f64>(key).map_err(|e| e.kind())),
        })
        .collect();
    format!(
        "{keys:?} {values:?} new: {}, modified: {}, since {:?}, of {:?}",
        session.is_new(),
        session.is_modified(),
        session.created_at(),
        session.user(),
    )
}

/// What can be seen of an answer, apart from ids.
fn seen(answer: &Answer) -> String {
    let cookies = answer.cookies();
    let cookies: Vec<_> = cookies
        .iter()
        .map(|cookie| (cookie.value().is_empty(), cookie.max_age()))
        .collect();
    let cache = answer.headers.get("cache-control");
    format!(
        "{} {cookies:?} {:?} {cache:?} {}",
        answer.status,
        answer.vary(),
        answer.body
    )
}

struct Application {
    /// One layer for each format, on the same store.
    routers: [Router; 2],
    orders: Orders,
    kept: Kept,
    clock: Clock,
    memory: MemoryStore,
}

impl Application {
    fn on<S: SessionStore + Clone>(memory: MemoryStore, store: S) -> Self {
        let (orders, kept, clock) = (Orders::default(), Kept::default(), Clock::default());
        let routers = [Format::MessagePack, Format::Json].map(|format| {
            let config = SessionConfig::default().with_format(format);
            let now = clock.clone();
            let layer = SessionLayer::with_config(store.clone(), keys(), config)
                .unwrap()
                .with_clock(move || now.now());
            Router::new()
                .route("/{slot}", get(handle))
                .with_state((Arc::clone(&orders), Arc::clone(&kept)))
                .layer(layer)
        });
        Self {
            routers,
            orders,
            kept,
            clock,
            memory,
        }
    }

    /// All that can be seen while `steps` are gone through.
    async fn run(&self, steps: &[Step]) -> Vec<String> {
        type Request = Pin<Box<dyn Future<Output = Answer>>>;
        type Rest = oneshot::Sender<(Vec<Edit>, StatusCode)>;
        let mut browsers = [const {
            Browser {
                jar: std::collections::BTreeMap::new(),
            }
        }; BROWSERS];
        let mut slots: [Option<(usize, Request, Rest)>; SLOTS] = [const { None }; SLOTS];
        let mut all = Vec::new();
        let end = |slot| Step::End {
            slot,
            edits: Vec::new(),
            status: StatusCode::OK,
            after: Vec::new(),
        };
        let last = (0..SLOTS).map(end);
        let look = (0..BROWSERS).flat_map(|browser| {
            let begin = Step::Begin {
                slot: 0,
                browser,
                json: false,
                edits: Vec::new(),
            };
            [begin, end(0)]
        });
        for step in steps.iter().cloned().chain(last).chain(look) {
            match step {
                Step::Begin {
                    slot,
                    browser,
                    json,
                    edits,
                } if slots[slot].is_none() => {
                    let (rest, receiver) = oneshot::channel();
                    let order = Order {
                        edits,
                        rest: receiver,
                    };
                    self.orders.lock().unwrap().insert(slot, order);
                    let request = browsers[browser].request(&format!("/{slot}"));
                    let mut answer: Request =
                        Box::pin(send(&self.routers[usize::from(json)], request));
                    // Until the handler waits for the rest.
                    while self.orders.lock().unwrap().contains_key(&slot) {
                        assert!(futures_util::poll!(&mut answer).is_pending());
                    }
                    slots[slot] = Some((browser, answer, rest));
                }
                Step::End {
                    slot,
                    edits,
                    status,
                    after,
                } => {
                    if let Some((browser, answer, rest)) = slots[slot].take() {
                        rest.send((edits, status)).unwrap();
                        let answer = answer.await;
                        browsers[browser].take(&answer);
                        all.push(seen(&answer));
                        let kept = self.kept.lock().unwrap().take().expect("a session");
                        let mut said = String::new();
                        carry_out(&kept, after, &mut said).await;
                        all.push(said + &tell(&kept));
                    }
                }
                Step::HangUp { slot } => drop(slots[slot].take()),
                Step::Wait { hours } => {
                    let time = Duration::from_secs(3600 * hours);
                    self.clock.advance(time);
                    tokio::time::advance(time).await;
                }
                Step::Begin { .. } => {}
            }
            // When else they are freed depends on where they are.
            self.memory.delete_expired(NonZeroUsize::MAX).await.unwrap();
            all.push(format!(
                "{} records of {} bytes",
                self.memory.len(),
                self.memory.payload_bytes()
            ));
        }
        all
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_store_that_never_waits_answers_as_any_other(
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let memory = || MemoryStore::new().with_max_records(RECORDS);
            let plain = memory();
            let plain = Application::on(plain.clone(), plain);
            let hidden = memory();
            let hidden = Application::on(hidden.clone(), Arc::new(hidden));
            let (plain, hidden) = (plain.run(&steps).await, hidden.run(&steps).await);
            for (plain, hidden) in plain.iter().zip(&hidden) {
                prop_assert_eq!(plain, hidden);
            }
            prop_assert_eq!(plain.len(), hidden.len());
            Ok(())
        })?;
    }
}
