//! 64 requests at once on two threads: the time from one answer to the next.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use peers::{Contention, Row, Sessions};

fn contention(criterion: &mut Criterion) {
    for sessions in Sessions::ALL {
        let mut group = criterion.benchmark_group(format!("contention, {}", sessions.name()));
        for row in Row::ALL {
            let contention = Contention::new(row, sessions);
            group.bench_function(BenchmarkId::from_parameter(row.name()), |bencher| {
                bencher.iter_custom(|requests| contention.run(requests).mul_f64(requests as f64));
            });
        }
    }
}

criterion_group!(benches, contention);
criterion_main!(benches);
