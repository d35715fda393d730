//! Allocations per request, one line per cell: `row<TAB>column<TAB>count`. A program of its own,
//! because an allocator that counts would also be timed.
#![forbid(unsafe_code)]

use std::alloc::System;

use peers::{Column, Row, Scenario, one_thread};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const REQUESTS: u64 = 1000;

fn main() {
    let runtime = one_thread();
    for row in Row::ALL {
        for column in Column::ALL {
            let count = runtime.block_on(async {
                let mut scenario = Scenario::new(row, column).await;
                scenario.run(REQUESTS).await;
                let region = Region::new(ALLOCATOR);
                scenario.run(REQUESTS).await;
                let change = region.change();
                change.allocations + change.reallocations
            });
            println!("{row:?}\t{column:?}\t{:.2}", count as f64 / REQUESTS as f64);
        }
    }
}
