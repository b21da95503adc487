//! Times the hot paths of this crate: the list is in `workloads`.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

mod workloads;

use criterion::{Criterion, criterion_group, criterion_main};

fn all(criterion: &mut Criterion) {
    tch::set_num_threads(1);
    for &(name, make) in workloads::WORKLOADS.iter().chain(&workloads::TIMED) {
        let mut work = make();
        criterion.bench_function(name, |bencher| bencher.iter(&mut work));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = all
}
criterion_main!(benches);
