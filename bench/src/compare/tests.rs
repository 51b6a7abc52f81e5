use super::*;

/// Every workload with every engine that takes it, small and short: the answers are right, and the rows are whole.
#[test]
fn every_engine_answers_as_brute_force_does() {
    let options = Options {
        workloads: Workload::ALL.to_vec(),
        engines: EngineKind::ALL.to_vec(),
        sizes: vec![1_000],
        events: Some(300),
        seed: 5,
        seconds: 0.004,
        rounds: 2,
        checked: Some(200),
        churn: true,
        whole: true,
        talk: false,
    };
    let thread = std::thread::Builder::new().stack_size(predicate::COMPILE_STACK_BYTES);
    let rows = thread.spawn(move || run(&options, |_| {})).unwrap().join().unwrap().unwrap();
    for row in &rows {
        assert_eq!(row.wrong, 0, "{row:?}");
        assert!(row.checked > 0 || row.workload == "equality", "{row:?}");
    }
    let mut found: Vec<(&str, &str)> = rows.iter().map(|row| (row.workload, row.engine)).collect();
    found.sort_unstable();
    let mut wanted = vec![("churn", "ours-index")];
    wanted.extend(["ours-index", "ours-ledger", "ours-whole"].map(|engine| ("equality", engine)));
    for workload in Workload::ALL {
        let kinds = EngineKind::ALL.into_iter().filter(|kind| kind.takes(workload, 1_000));
        wanted.extend(kinds.map(|kind| (workload.name(), kind.name())));
    }
    wanted.sort_unstable();
    assert_eq!(found, wanted);

    let json = serde_json::to_value(&rows).unwrap();
    for row in json.as_array().unwrap() {
        for field in [
            "workload",
            "engine",
            "subscriptions",
            "events_per_s",
            "ns_per_event",
            "p99_ns",
            "instructions_per_event",
            "bytes_per_subscription",
            "build_ms",
            "matches_per_event",
            "doc_bytes",
            "seed",
            "checked",
            "wrong",
        ] {
            assert!(row.get(field).is_some(), "{field} in {row}");
        }
        if !["churn", "equality"].contains(&row["workload"].as_str().unwrap()) {
            assert!(row["ns_per_event"].as_f64().unwrap() > 0.0 && row["p99_ns"].as_f64().unwrap() > 0.0, "{row}");
        }
    }
}
