//! Small runs against a whole node in this process, over real sockets.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use loadgen::{
    capacity, page,
    profile::Profile,
    report::Report,
    run::{Options, SourceKind, run},
};

fn options(profile: &str, source: SourceKind, rate: Option<u64>) -> Options {
    Options {
        profile_name: profile.to_owned(),
        profile: Profile::load(profile).unwrap(),
        source,
        uri: std::env::var(URI_VARIABLE).ok().filter(|_| source == SourceKind::Mongodb),
        rate,
        duration: Duration::from_millis(1_200),
        gateways: 3,
        subscriptions: 3_000,
        idle: 0,
        shards: "auto".to_owned(),
        runtime: "auto".to_owned(),
        seed: 7,
        slow: None,
        progress: false,
    }
}

fn of(profile: &str, source: SourceKind, rate: Option<u64>) -> Report {
    run(&options(profile, source, rate), &Arc::new(AtomicBool::new(false))).unwrap()
}

#[test]
fn every_delivery_of_a_rate_is_accounted_for() {
    for (profile, source) in [
        ("orders", SourceKind::Direct),
        ("cel", SourceKind::Direct),
        ("presence", SourceKind::Direct),
        ("iot", SourceKind::Embedded),
    ] {
        let report = of(profile, source, Some(1_000));
        assert!(report.is_clean(), "{profile}: {report}");
        // All that was due in that time, however late.
        assert_eq!(report.events, 1_200, "{profile}");
        assert!(report.delivered > 500, "{profile}: {report}");
        assert_eq!(report.by_gateway.iter().sum::<u64>(), report.delivered);
        assert!(report.p50_us > 0 && report.p50_us <= report.p99_us && report.p99_us <= report.max_us);
        // What it says of itself can be read back, and drawn.
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((json["lost"].as_u64(), json["events"].as_u64()), (Some(0), Some(1_200)));
        let html = page::render(&report);
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        assert!(html.contains("1200 (") && html.contains("class=\"good\""), "{html}");
    }
}

#[test]
fn gateways_that_leave_and_come_back_get_all_of_it_once() {
    let mut options = options("reconnect-storm", SourceKind::Direct, Some(1_000));
    options.profile.reconnect_every_ms = Some(300);
    let report = run(&options, &Arc::new(AtomicBool::new(false))).unwrap();
    assert!(report.is_clean(), "{report}");
    // However late they were back: each has left at least once.
    assert!(report.reconnects >= 3, "{report}");
    assert_eq!(report.events, 1_200);
}

#[test]
fn a_gateway_that_stalls_gets_all_of_it_later() {
    let mut options = options("slow-gateway", SourceKind::Direct, Some(1_000));
    (options.profile.stall_every_ms, options.profile.stall_ms) = (Some(400), Some(300));
    let report = run(&options, &Arc::new(AtomicBool::new(false))).unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(report.max_us > 200_000, "what came during a stall waited for its end: {report}");
}

/// Names a replica set; without it, this says that it was skipped.
const URI_VARIABLE: &str = "STREAMER_TEST_MONGODB_URI";

#[test]
fn writes_to_a_real_server_are_accounted_for() {
    let error = run(&options("chat", SourceKind::Mongodb, None), &Arc::new(AtomicBool::new(false)));
    if std::env::var(URI_VARIABLE).is_err() {
        assert!(error.unwrap_err().to_string().contains("needs --uri"));
        println!("skipped: writes_to_a_real_server_are_accounted_for: {URI_VARIABLE} names no server");
        return;
    }
    // Few places: a collection is made when the first document comes.
    let mut options = options("chat", SourceKind::Mongodb, Some(300));
    (options.profile.tenants, options.profile.collections) = (2, 10);
    let report = run(&options, &Arc::new(AtomicBool::new(false))).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.events, 360);
    assert!(report.delivered > 100, "{report}");
}

#[test]
#[allow(clippy::disallowed_methods, reason = "whoever presses Ctrl-C is no shard's thread")]
fn flat_out_and_told_to_end() {
    let interrupted = Arc::new(AtomicBool::new(false));
    let options = Options { duration: Duration::from_secs(600), ..options("chat", SourceKind::Direct, None) };
    let set = interrupted.clone();
    let ends = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1_500));
        set.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let report = run(&options, &interrupted).unwrap();
    ends.join().unwrap();
    assert!(report.is_clean() && report.events > 0, "{report}");
}

/// Nothing comes in no time: the lowest rate fails, and is the only one that is tried.
#[test]
fn a_bound_that_nothing_holds_is_told() {
    let options = Options { duration: Duration::from_millis(400), ..options("chat", SourceKind::Direct, None) };
    let interrupted = Arc::new(AtomicBool::new(false));
    let found = capacity::search(&options, Duration::ZERO, (2_000, 7_000), &interrupted, |_| {}).unwrap();
    assert_eq!((found.rate, found.tries.len()), (0, 1), "{found:?}");
    assert!(found.bottleneck.is_some(), "{found:?}");
}
