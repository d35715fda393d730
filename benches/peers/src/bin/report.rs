//! The whole table in Markdown. Rows take turns in many short rounds, and what is printed is the
//! median of the rounds, so that whatever else the machine does meets all rows alike.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::process::Command;

use peers::{Column, Contention, Row, Scenario, Sessions, one_thread};

const ROUNDS: usize = 101;
const REQUESTS: u64 = 1000;
const CONTENTION_ROUNDS: usize = 31;
const CONTENTION_REQUESTS: u64 = 64 * 256;

/// At most this share of what signed tower-sessions adds: in time, and in allocations.
fn targets(column: Column) -> (f64, f64) {
    match column {
        Column::Untouched => (0.35, 1.0 / 2.0),
        Column::UntouchedWithCookie => (0.20, 1.0 / 2.0),
        Column::UntouchedAmongFive => (0.15, 1.0 / 2.0),
        Column::Read => (0.30, 1.0 / 3.0),
        Column::ReadWrite => (0.40, 1.0 / 3.0),
        Column::Create => (0.55, 1.0 / 2.0),
    }
}

/// At least this share of the bare router's throughput.
const CONTENTION_TARGET: f64 = 0.5;

/// Nanoseconds per request, by round and row.
type Rounds = Vec<[f64; Row::ALL.len()]>;

fn main() -> Result<(), Box<dyn Error>> {
    let allocations = allocations()?;
    let times: Vec<Rounds> = Column::ALL.into_iter().map(request_rounds).collect();

    println!("Nanoseconds per request added to the identity layer (allocations added):\n");
    print!("| |");
    for column in Column::ALL {
        print!(" {} |", column.name());
    }
    print!("\n| --- |");
    for _ in Column::ALL {
        print!(" --- |");
    }
    println!();
    for row in Row::ALL {
        print!("| {} |", row.name());
        for (column, rounds) in Column::ALL.into_iter().zip(&times) {
            let added = median(rounds.iter().map(|round| added(round, row)));
            print!(
                " {added:.0} ({:.0}) |",
                allocations.added(row, column)?.round() + 0.0
            );
        }
        println!();
    }

    println!(
        "\nsession-layer's share of what signed tower-sessions adds, and that of the layer by hand:\n"
    );
    println!("| | time | half of the rounds | target | by hand | allocations | target |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (column, rounds) in Column::ALL.into_iter().zip(&times) {
        let share = |row| {
            let share = move |round| added(round, row) / added(round, Row::TowerSessionsSigned);
            quartiles(rounds.iter().map(share))
        };
        let [low, time, high] = share(Row::SessionLayer);
        let [_, by_hand, _] = share(Row::ByHand);
        let count = allocations.added(Row::SessionLayer, column)?
            / allocations.added(Row::TowerSessionsSigned, column)?;
        let (time_target, count_target) = targets(column);
        println!(
            "| {} | {time:.2}{} | {low:.2} to {high:.2} | ≤ {time_target:.2} | {by_hand:.2} | {count:.2}{} | ≤ {count_target:.2} |",
            column.name(),
            missed(time > time_target),
            missed(count > count_target),
        );
    }

    println!("\nReads with 64 requests at once on two threads, as a share of the bare router's:\n");
    println!(
        "| | {} | {} | target |",
        Sessions::ALL[0].name(),
        Sessions::ALL[1].name()
    );
    println!("| --- | --- | --- | --- |");
    let shares = Sessions::ALL.map(|sessions| {
        let rounds = contention_rounds(sessions);
        Row::ALL.map(|row| median(rounds.iter().map(|round| round[0] / round[row as usize])))
    });
    for row in Row::ALL {
        let [different, shared] = shares.map(|shares| shares[row as usize]);
        let target = match row {
            Row::SessionLayer => format!(
                "≥ {CONTENTION_TARGET:.2}{}",
                missed(different.min(shared) < CONTENTION_TARGET)
            ),
            _ => String::new(),
        };
        println!(
            "| {} | {different:.2} | {shared:.2} | {target} |",
            row.name()
        );
    }
    Ok(())
}

fn missed(missed: bool) -> &'static str {
    if missed { " (missed)" } else { "" }
}

fn added(round: &[f64; Row::ALL.len()], row: Row) -> f64 {
    round[row as usize] - round[Row::Identity as usize]
}

fn request_rounds(column: Column) -> Rounds {
    let runtime = one_thread();
    runtime.block_on(async {
        let mut scenarios = Vec::new();
        for row in Row::ALL {
            let mut scenario = Scenario::new(row, column).await;
            scenario.run(REQUESTS).await;
            scenarios.push(scenario);
        }
        let mut rounds = Rounds::new();
        for _ in 0..ROUNDS {
            let mut round = [0.0; Row::ALL.len()];
            for (nanos, scenario) in round.iter_mut().zip(&mut scenarios) {
                *nanos = scenario.run(REQUESTS).await.as_nanos() as f64 / REQUESTS as f64;
            }
            rounds.push(round);
        }
        rounds
    })
}

fn contention_rounds(sessions: Sessions) -> Rounds {
    let contentions = Row::ALL.map(|row| Contention::new(row, sessions));
    (0..CONTENTION_ROUNDS)
        .map(|_| {
            contentions
                .each_ref()
                .map(|contention| contention.run(CONTENTION_REQUESTS).as_secs_f64() * 1e9)
        })
        .collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let [_, median, _] = quartiles(values);
    median
}

fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

/// Allocations per request, by the `Debug` names of row and column.
struct Allocations(HashMap<(String, String), f64>);

impl Allocations {
    fn added(&self, row: Row, column: Column) -> Result<f64, Box<dyn Error>> {
        let count = |row: Row| {
            self.0
                .get(&(format!("{row:?}"), format!("{column:?}")))
                .copied()
                .ok_or("a cell without a count")
        };
        Ok(count(row)? - count(Row::Identity)?)
    }
}

fn allocations() -> Result<Allocations, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").ok_or("start this with `cargo run --release --bin report`")?;
    let package = env::var("CARGO_MANIFEST_DIR")?;
    let output = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--bin", "allocations"])
        .arg("--manifest-path")
        .arg(format!("{package}/Cargo.toml"))
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr)?.into());
    }
    let mut counts = HashMap::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let [row, column, count] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(format!("not a count: {line:?}").into());
        };
        counts.insert((row.to_owned(), column.to_owned()), count.parse()?);
    }
    Ok(Allocations(counts))
}
