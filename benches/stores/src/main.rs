//! Sessions on every store, beside a handler that sends the same commands to the bare driver: requests
//! per second and latency, as Markdown.
//!
//! `stores [STORE…]` measures the named stores only. Rows take turns in short rounds, and what is
//! printed is the median of the rounds, so that whatever else the machine does meets all rows alike.
//! A server that is not installed ends the program.
#![forbid(unsafe_code)]

mod drive;
mod floor;
mod subject;

#[path = "../../../tests/support/mongod.rs"]
mod mongod;
#[path = "../../../tests/support/mysql.rs"]
mod mysql;
#[path = "../../../tests/support/postgres.rs"]
mod postgres;
#[path = "../../../tests/support/server.rs"]
mod server;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::drive::{Round, Transport, drive};
use crate::subject::{Operation, Subject};

const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(400);

/// The place of session-layer and, where there is one, of a peer, among the subjects.
const OURS: usize = 1;
const PEER: usize = 2;

type Empty = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// One store, its server, and what is measured on it. The first subject is the floor.
struct Place {
    name: &'static str,
    /// What the numbers depend on.
    note: &'static str,
    subjects: Vec<Subject>,
    /// Where creations are to begin with an empty store in each round.
    empty: Option<Empty>,
    /// The server, or the files, for as long as they are needed.
    _keeps: Box<dyn std::any::Any>,
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for name in &wanted {
        if !floor::PLACES.iter().any(|(known, _)| known == name) {
            let known: Vec<_> = floor::PLACES.iter().map(|(known, _)| *known).collect();
            eprintln!("there is no store {name}, but {}", known.join(", "));
            std::process::exit(2);
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    for (name, open) in floor::PLACES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            let place = runtime.block_on(open());
            runtime.block_on(report(&place));
        }
    }
}

async fn report(place: &Place) {
    println!("\n## {}\n\n{}\n", place.name, place.note);
    println!("| | in flight | | requests/s | share of floor | half of the rounds | p50 | p99 |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut multiples = Vec::new();
    for operation in Operation::ALL {
        for (transport, in_flight) in [
            (Transport::InProcess, 1),
            (Transport::InProcess, 64),
            (Transport::Sockets, 64),
        ] {
            if transport == Transport::Sockets && operation != Operation::Read {
                continue;
            }
            let rounds = measure(place, operation, transport, in_flight).await;
            for (at, subject) in place.subjects.iter().enumerate() {
                print_row(operation, transport, in_flight, subject, &rounds, at);
            }
            if place.subjects.len() > PEER {
                let multiple = |round: &Vec<Round>| round[OURS].rate / round[PEER].rate;
                let [low, multiple, high] = quartiles(rounds.iter().map(multiple));
                let (what, where_) = (operation.name(), transport.name());
                multiples.push(format!(
                    "{what}, {where_}, {in_flight} in flight: {multiple:.2} ({low:.2} to {high:.2})"
                ));
            }
        }
    }
    if let Some(peer) = place.subjects.get(PEER) {
        println!(
            "\nTimes the rate of {}, round by round (half of the rounds):\n",
            peer.name
        );
        for multiple in multiples {
            println!("- {multiple}");
        }
    }
}

async fn measure(
    place: &Place,
    operation: Operation,
    transport: Transport,
    in_flight: usize,
) -> Vec<Vec<Round>> {
    // One round to warm up.
    for subject in &place.subjects {
        drive(subject, operation, transport, in_flight, ROUND / 4).await;
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut round = Vec::new();
        for subject in &place.subjects {
            if let (Operation::Create, Some(empty)) = (operation, &place.empty) {
                empty().await;
            }
            round.push(drive(subject, operation, transport, in_flight, ROUND).await);
        }
        rounds.push(round);
    }
    rounds
}

fn print_row(
    operation: Operation,
    transport: Transport,
    in_flight: usize,
    subject: &Subject,
    rounds: &[Vec<Round>],
    at: usize,
) {
    let [_, rate, _] = quartiles(rounds.iter().map(|round| round[at].rate));
    let [low, share, high] = quartiles(rounds.iter().map(|round| round[at].rate / round[0].rate));
    let [_, p50, _] = quartiles(rounds.iter().map(|round| round[at].p50));
    let [_, p99, _] = quartiles(rounds.iter().map(|round| round[at].p99));
    let (what, where_) = (operation.name(), transport.name());
    let share = match at {
        0 => "| |".to_owned(),
        _ => format!("| {share:.2} | {low:.2} to {high:.2}"),
    };
    println!(
        "| {what}, {where_} | {in_flight} | {} | {rate:.0} {share} | {p50:.0} µs | {p99:.0} µs |",
        subject.name
    );
}

fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}
