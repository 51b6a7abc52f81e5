//! What hostile expressions cost: of each family the compilation and the evaluation that took longest, and the most memory that any
//! took. First a table, from two looks at every expression, of which the quicker one counts; then criterion on the worst.

use std::{fmt, hint::black_box, thread, time::Duration};

use bench::{
    heap::{Counting, usage_of},
    measure::{criterion, work_time},
};
use bson::RawDocumentBuf;
use predicate::{
    Budget, COMPILE_STACK_BYTES, ChangeType, CompileError, Context, EVALUATION_UNITS_MAX, Mapping, Predicate, Source,
};
use workload::hostile::{Family, documents, families};

#[global_allocator]
static HEAP: Counting = Counting;

fn main() {
    // A thread that compiles has this much stack.
    let bench = thread::Builder::new().name("hostile".into()).stack_size(COMPILE_STACK_BYTES).spawn(bench);
    bench.expect("a thread can be started").join().expect("nothing here panics");
}

fn bench() {
    let documents: Vec<RawDocumentBuf> =
        documents().iter().map(|document| RawDocumentBuf::try_from(document).expect("they are BSON")).collect();
    let families = families();
    let costs: Vec<Cost<'_>> = families.iter().map(|family| Cost::of(family, &documents)).collect();
    println!(
        "family | expressions | accepted | compilation: longest, most memory | evaluation: longest, units, most memory"
    );
    for (family, cost) in families.iter().zip(&costs) {
        println!("{} | {} | {cost}", family.name, family.expressions.len());
    }
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("hostile cel");
    group.sample_size(10);
    for (family, cost) in families.iter().zip(&costs) {
        if let Some(worst) = &cost.compiling {
            group.bench_function(format!("compile {}", family.name), |bencher| {
                bencher.iter(|| compile(black_box(worst.expr)).is_ok());
            });
        }
        if let Some((worst, document)) = &cost.evaluating {
            let predicate = compile(worst.expr).expect("it compiled before");
            group.bench_function(format!("evaluate {}", family.name), |bencher| {
                bencher.iter(|| evaluate(&predicate, &documents[*document]));
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

fn compile(expr: &str) -> Result<Predicate, CompileError> {
    Predicate::compile(Source { filters: "", expr }, &Mapping::Plain)
}

/// The units that it cost.
fn evaluate(predicate: &Predicate, document: &RawDocumentBuf) -> u64 {
    let context = Context {
        tenant: "acme",
        collection: "rooms",
        change_type: ChangeType::Update,
        before: Some(document.as_ref()),
    };
    let mut budget = Budget { units: EVALUATION_UNITS_MAX };
    black_box(predicate.evaluate(document, &context, &mut budget));
    EVALUATION_UNITS_MAX - budget.units
}

fn timed<R>(work: impl FnOnce() -> R) -> (R, Duration) {
    let began = work_time();
    let result = work();
    (result, work_time().saturating_sub(began))
}

/// The one that took longest.
struct Worst<'a> {
    expr: &'a str,
    took: Duration,
}

#[derive(Default)]
struct Cost<'a> {
    accepted: usize,
    compiling: Option<Worst<'a>>,
    compiling_peak_bytes: usize,
    /// And the document.
    evaluating: Option<(Worst<'a>, usize)>,
    evaluating_units: u64,
    evaluating_peak_bytes: usize,
}

impl<'a> Cost<'a> {
    fn of(family: &'a Family, documents: &[RawDocumentBuf]) -> Self {
        let mut cost = Self::default();
        for expr in &family.expressions {
            let (_, first) = timed(|| compile(expr));
            let ((compiled, usage), second) = timed(|| usage_of(|| compile(expr)));
            let took = first.min(second);
            cost.compiling_peak_bytes = cost.compiling_peak_bytes.max(usage.peak_bytes);
            if cost.compiling.as_ref().is_none_or(|worst| worst.took < took) {
                cost.compiling = Some(Worst { expr, took });
            }
            let Ok(predicate) = compiled else { continue };
            cost.accepted += 1;
            for (i, document) in documents.iter().enumerate() {
                let (_, first) = timed(|| evaluate(&predicate, document));
                let ((units, usage), second) = timed(|| usage_of(|| evaluate(&predicate, document)));
                let took = first.min(second);
                cost.evaluating_units = cost.evaluating_units.max(units);
                cost.evaluating_peak_bytes = cost.evaluating_peak_bytes.max(usage.peak_bytes);
                if cost.evaluating.as_ref().is_none_or(|(worst, _)| worst.took < took) {
                    cost.evaluating = Some((Worst { expr, took }, i));
                }
            }
        }
        cost
    }
}

impl fmt::Display for Cost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: usize| bytes.div_ceil(1024);
        let short = |expr: &str| format!("{:.40}{}", expr, if expr.len() > 40 { "…" } else { "" }).replace('\n', " ");
        let Self { accepted, compiling, compiling_peak_bytes, evaluating, evaluating_units, evaluating_peak_bytes } =
            self;
        write!(f, "{accepted} | ")?;
        if let Some(Worst { expr, took }) = compiling {
            write!(f, "{took:.1?} ({} bytes: {}), {} KiB", expr.len(), short(expr), kib(*compiling_peak_bytes))?;
        }
        write!(f, " | ")?;
        if let Some((Worst { expr, took }, document)) = evaluating {
            let peak = kib(*evaluating_peak_bytes);
            write!(f, "{took:.1?} ({} on document {document}), {evaluating_units} units, {peak} KiB", short(expr))?;
        }
        Ok(())
    }
}
