use std::collections::{BTreeMap, BTreeSet, HashSet};

use shards::HotPlace;

use super::*;
use crate::control::admission::Counts;
use crate::ingest::{catch_up::CatchUpCounters, status::IngestStatus};

fn backend(name: &str) -> BackendStatus {
    BackendStatus {
        name: name.into(),
        phase: Phase::Reading,
        source: None,
        position: None,
        settled: None,
        error: None,
        reopenings: 3,
        tokens: 1,
        stalled: None,
        catch_up: CatchUpStatus {
            counters: CatchUpCounters { caught_up: 2, ..CatchUpCounters::default() },
            lag: Some(Duration::from_millis(1_500)),
            ..CatchUpStatus::default()
        },
        settled_lag: vec![Duration::ZERO, Duration::MAX],
    }
}

/// All that a node renders which has two shards and has written a checkpoint.
fn rendered(backend_name: &str) -> String {
    let ingest = Arc::new(IngestStatus::default());
    let mut latency = Histogram::default();
    latency.observe(20_000);
    latency.observe(u64::MAX / 2);
    let (pauses, lags) = (vec![ShardPauses::default(); 2], vec![None; 2]);
    ingest.publish(IngestPicture {
        backends: vec![backend(backend_name)],
        latency,
        pauses,
        lags,
        ..IngestPicture::default()
    });
    ingest.checkpointed(0);
    render(&Arc::new(NodeState::silent(ingest, 2))).unwrap()
}

fn file(path: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// By name: the kind, and the labels of the values.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

fn metrics_of(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let name = match kind {
            "counter" => format!("{}_total", name.trim_end_matches("_total")),
            _ => name.to_owned(),
        };
        metrics.insert(name, (kind.to_owned(), BTreeSet::new()));
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let histogram = ["_bucket", "_sum", "_count"].into_iter().find_map(|part| name.strip_suffix(part));
        let name = histogram.filter(|name| metrics.contains_key(*name)).unwrap_or(name);
        let (_, labels) = metrics.get_mut(name).unwrap_or_else(|| panic!("{name} has no type"));
        let names = rest.split('"').step_by(2).filter_map(|part| part.trim_start_matches(['{', ',']).strip_suffix('='));
        labels.extend(names.filter(|label| *label != "le").map(String::from));
    }
    metrics
}

/// What is rendered of so many tenants, of which the one of number `n` has `n` subscriptions.
fn by_name(tenants: u64) -> String {
    let by_tenant = (0..tenants).map(|n| (format!("t{n}"), n)).collect();
    let counts = Counts { by_tenant, by_gateway: vec![("g".into(), 1)], ..Counts::default() };
    let hot = HotPlace { tenant: "t".into(), collection: "c".into(), changes_per_s: 7 };
    let stats = StatsSnapshot { hot: [hot].into(), ..StatsSnapshot::default() };
    let state = NodeState::with_stats(Arc::new(IngestStatus::default()), stats);
    names::render(&Arc::new(state), counts).unwrap()
}

#[test]
fn those_with_the_most_are_told_and_how_many_are_not() {
    let text = by_name(1_500);
    let told: Vec<&str> = text.lines().filter(|line| line.starts_with("streamer_tenant_subscriptions{")).collect();
    assert_eq!(told.len(), names::NAMES_MAX);
    assert_eq!(told[0], "streamer_tenant_subscriptions{tenant=\"t1499\"} 1499");
    for line in [
        "streamer_tenants_left_out 500",
        "streamer_gateways_left_out 0",
        "streamer_gateway_subscriptions{gateway=\"g\"} 1",
        "streamer_hot_collection_changes{tenant=\"t\",collection=\"c\"} 7",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_page_of_metrics_has_each_metric_and_no_other() {
    let page = file("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `streamer_"));
    let documented: Metrics = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            assert_eq!(cells.len(), 6, "{row}");
            assert!(cells[4].len() > 10, "{row} doesn't say what it is");
            let labels = cells[2].split(", ").filter(|label| *label != "–").map(|label| label.trim_matches('`').into());
            (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), labels.collect()))
        })
        .collect();
    let mut there = metrics_of(&rendered("main"));
    there.extend(metrics_of(&by_name(3)));
    assert_eq!(documented, there);
}

/// Each alert has a section that tells what to do, and no section is of an alert that is no more.
#[test]
fn each_alert_has_its_section_in_the_runbook() {
    let alerts = file("tuning/prometheus/alerts.yml");
    let alerts: BTreeSet<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let page = file("docs/operations.md");
    let sections = page.lines().filter_map(|line| line.strip_prefix("### "));
    let sections: BTreeSet<&str> = sections.filter(|title| title.starts_with("Streamer")).collect();
    assert!(alerts.len() > 10);
    assert_eq!(sections, alerts);
    let metrics = file("docs/metrics.md");
    for link in metrics.split("operations.md#").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        let is_there = |line: &str| {
            let title = line.trim_start_matches('#').trim();
            line.starts_with('#') && title.to_lowercase().replace(' ', "-") == link
        };
        assert!(page.lines().any(is_there), "operations.md has no section {link}");
    }
}

#[test]
fn names_follow_the_rule_and_come_once() {
    let text = rendered("main \"x\"");
    let mut types = HashSet::new();
    let mut values = HashSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(types.insert(rest.split(' ').next().unwrap().to_owned()), "{line}");
        } else if !line.starts_with('#') {
            assert!(line.starts_with("streamer_"), "{line}");
            assert!(values.insert(line.rsplit_once(' ').unwrap().0), "{line}");
        }
    }
    for line in [
        "streamer_ingest_events_total 0",
        "streamer_ingest_skipped_total{reason=\"operation\"} 0",
        r#"streamer_backend_reopenings_total{backend="main \"x\""} 3"#,
        r#"streamer_catch_up_passes_total{backend="main \"x\"",outcome="caught_up"} 2"#,
        r#"streamer_catch_up_lag_milliseconds{backend="main \"x\""} 1500"#,
        r#"streamer_backend_stalled{backend="main \"x\""} 0"#,
        "streamer_ingest_seconds_bucket{le=\"1e-05\"} 0",
        "streamer_ingest_seconds_bucket{le=\"2.5e-05\"} 1",
        "streamer_ingest_seconds_bucket{le=\"50\"} 1",
        "streamer_ingest_seconds_bucket{le=\"+Inf\"} 2",
        "streamer_ingest_seconds_count 2",
        "streamer_shard_end_to_end_seconds_count{shard=\"1\"} 0",
        r#"streamer_shard_settled_lag_milliseconds{shard="1",backend="main \"x\""} 9223372036854775807"#,
        "streamer_shard_sessions{shard=\"1\"} 0",
        "streamer_shard_alive{shard=\"0\"} 1",
        "streamer_shard_resyncs_total{shard=\"0\",reason=\"too_slow\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

/// What alerts and dashboard ask for must be there: a query of a name that isn't gives nothing, and no error.
#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let text = rendered("main");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let known: HashSet<&str> =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split([' ', '{']).next()).collect();
    for path in ["tuning/prometheus/alerts.yml", "tuning/grafana/streamer.json"] {
        let queries = file(path);
        let asked: HashSet<&str> =
            queries.split(|c| !is_name(c)).filter(|word| word.starts_with("streamer_")).collect();
        assert!(asked.len() > 5, "{path}");
        for name in asked {
            assert!(known.contains(name), "{path} asks for {name}, which isn't in\n{text}");
        }
    }
    serde_json::from_str::<serde_json::Value>(&file("tuning/grafana/streamer.json")).unwrap();
}
