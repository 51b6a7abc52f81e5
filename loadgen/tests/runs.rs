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
        rate,
        duration: Duration::from_millis(1_200),
        gateways: 3,
        subscriptions: 3_000,
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
    for (profile, source) in
        [("orders", SourceKind::Direct), ("cel", SourceKind::Direct), ("iot", SourceKind::Embedded)]
    {
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

#[test]
fn the_highest_rate_is_looked_for_between_bounds() {
    let options = Options { duration: Duration::from_millis(400), ..options("chat", SourceKind::Direct, None) };
    let mut tried = Vec::new();
    // A bound that anything holds: the highest rate asked for is found.
    let found =
        capacity::search(&options, Duration::from_secs(60), (200, 700), &Arc::new(AtomicBool::new(false)), |one| {
            tried.push(one.rate)
        });
    let found = found.unwrap();
    assert_eq!((found.rate, tried), (700, vec![200, 400, 700]), "{found:?}");
    // One that nothing holds.
    let never = capacity::search(&options, Duration::ZERO, (200, 700), &Arc::new(AtomicBool::new(false)), |_| {});
    assert_eq!(never.unwrap().rate, 0);
}
