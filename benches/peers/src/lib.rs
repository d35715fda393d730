//! The same application with four session layers (or none), driven in process: what the benchmarks,
//! the allocation counts and the report have in common.
#![forbid(unsafe_code)]

mod app;
mod by_hand;
mod contention;
mod identity;
mod scenario;

pub use crate::app::Row;
pub use crate::contention::{Contention, Sessions};
pub use crate::scenario::{Column, Scenario};

/// The runtime of everything that is measured on one thread.
pub fn one_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}
