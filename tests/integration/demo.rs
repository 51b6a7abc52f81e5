//! The demo's own reckoning, and that it would find a fault.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use streamer::{
    config,
    demo::{self, DemoOptions, Fault, Report},
};

use crate::support::{Runtime, SHARDS, cores, process::BINARY};

fn run(runtime: Runtime, seconds: u64, fault: Option<Fault>) -> Report {
    let options = DemoOptions {
        duration: Duration::from_secs(seconds),
        rate: 2_000,
        subscriptions: 600,
        shards: cores(SHARDS),
        runtime: match runtime {
            Runtime::Glommio => config::Runtime::Glommio,
            Runtime::Tokio => config::Runtime::Tokio,
        },
        seed: 7,
        progress: false,
        fault,
    };
    demo::run(&options).unwrap()
}

fn is_clean_and_reaches_everything(runtime: Runtime) {
    let report = run(runtime, 3, None);
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.runtime, runtime.name());
    assert_eq!(report.events, 6_000);
    assert_eq!(report.by_shard.len(), SHARDS, "{report}");
    assert_eq!(report.by_gateway.len(), 2, "{report}");
    assert_eq!(report.by_tenant.len(), 3, "{report}");
    assert!(report.by_op.len() >= 14, "{report}");
    for group in [&report.by_shard, &report.by_gateway, &report.by_tenant, &report.by_op] {
        assert!(group.values().all(|delivered| *delivered > 0), "{report}");
        assert_eq!(group.values().sum::<u64>(), report.delivered, "{report}");
    }
}

#[test]
fn is_clean_on_glommio() {
    if Runtime::Glommio.is_available() {
        is_clean_and_reaches_everything(Runtime::Glommio);
    }
}

#[test]
fn is_clean_on_tokio() {
    is_clean_and_reaches_everything(Runtime::Tokio);
}

#[test]
fn finds_each_fault_and_no_other() {
    for (fault, expected) in
        [(Fault::Drop, [1, 0, 0, 0]), (Fault::Repeat, [0, 1, 0, 0]), (Fault::Misroute, [0, 0, 1, 0])]
    {
        let report = run(Runtime::Tokio, 1, Some(fault));
        let found = [report.lost, report.duplicates, report.misdelivered, report.out_of_order];
        assert_eq!(found, expected, "{fault:?}: {report}");
        assert!(!report.is_clean(), "{fault:?}");
    }
}

#[test]
fn prints_one_json_object() {
    let output = Command::new(BINARY)
        .args(["demo", "--seconds", "2", "--rate", "1000", "--subscriptions", "300", "--json"])
        .args(["--shards", &cores(SHARDS)])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"));
    for key in ["lost", "duplicates", "misdelivered"] {
        assert_eq!(report[key], 0, "{key} of {report}");
    }
    assert_eq!(report["delivered"], report["expected"], "{report}");
    for key in ["events", "expected", "p50_us", "p99_us", "events_per_s"] {
        assert!(report[key].as_u64().is_some_and(|value| value > 0), "{key} of {report}");
    }
    for key in ["latency_from", "runtime"] {
        assert!(report[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {report}");
    }
    for key in ["by_op", "by_gateway", "by_tenant", "by_shard"] {
        assert!(report[key].as_object().is_some_and(|groups| !groups.is_empty()), "{key} of {report}");
    }
}
