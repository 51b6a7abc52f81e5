//! Criterion over scenarios, with the clock of the thread's own work.

use std::time::Duration;

use criterion::{
    Criterion, Throughput,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use rustix::time::{ClockId, clock_gettime};

use crate::{Named, Scenario};

/// For how long this thread has been at work: on a core, for itself or in the kernel.
pub fn work_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The clock begins with the thread, so neither part is negative.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// [`work_time`] for criterion.
pub struct WorkTime(WallTime);

impl Measurement for WorkTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        work_time()
    }

    fn end(&self, started: Duration) -> Duration {
        work_time().saturating_sub(started)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        self.0.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self.0.formatter()
    }
}

/// Few and short samples: a part that takes a microsecond shows its time within a percent in a second.
pub fn criterion() -> Criterion<WorkTime> {
    Criterion::default()
        .with_measurement(WorkTime(WallTime))
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}

/// Measures each scenario in a group of this name. Says first what each is made of.
pub fn bench(criterion: &mut Criterion<WorkTime>, group: &str, scenarios: Vec<Named>) {
    let mut group = criterion.benchmark_group(group);
    for Named { name, make } in scenarios {
        // Made when it is its turn, so that a filter on the command line spares the others.
        let mut made: Option<Box<dyn Scenario>> = None;
        group.throughput(Throughput::Elements(1));
        group.bench_function(&name, |bencher| {
            let scenario = made.get_or_insert_with(|| {
                let mut scenario = make();
                scenario.prepare();
                scenario.round();
                println!("{name}: {}", scenario.describe());
                scenario
            });
            let units = scenario.units();
            bencher.iter_custom(|iterations| {
                let rounds = iterations.div_ceil(units);
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    scenario.prepare();
                    let began = work_time();
                    scenario.round();
                    took += work_time().saturating_sub(began);
                }
                // What as many units took as were asked for.
                took.mul_f64(iterations as f64 / (rounds * units) as f64)
            });
        });
    }
    group.finish();
}
