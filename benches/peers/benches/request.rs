//! One request at a time, per layer and per kind of request.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use peers::{Column, Row, Scenario, one_thread};

fn request(criterion: &mut Criterion) {
    let runtime = one_thread();
    for column in Column::ALL {
        let mut group = criterion.benchmark_group(column.name());
        for row in Row::ALL {
            let mut scenario = runtime.block_on(Scenario::new(row, column));
            group.bench_function(BenchmarkId::from_parameter(row.name()), |bencher| {
                bencher.iter_custom(|requests| runtime.block_on(scenario.run(requests)));
            });
        }
    }
}

criterion_group!(benches, request);
criterion_main!(benches);
