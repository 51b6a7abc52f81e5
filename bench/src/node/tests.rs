use xtask::servers::URI_VARIABLE;

use super::*;

const TURNS: Turns = Turns { seconds: 0.3, rounds: 1, talk: false };

fn assert_whole(rows: &[Row]) {
    for row in rows.iter().filter(|row| row.skipped.is_none()) {
        assert_eq!(row.wrong(), 0, "{row:?}");
        assert!(row.events_per_s.unwrap() > 0.0 && row.cpu_ns_per_event.unwrap() > 0, "{row:?}");
    }
}

/// Every engine, small and short: all that was sent has arrived where it was to, once, and the rows are whole.
#[test]
fn every_engine_delivers_all() {
    let delivery = Delivery {
        turns: TURNS,
        engines: Engine::ALL.to_vec(),
        fan_outs: Delivery::FAN_OUTS.to_vec(),
        payload_bytes: 200,
        rate: 2_000,
        nats_server: None,
    };
    let rows = delivery.run(|_| {}).unwrap();
    assert_eq!(rows.len(), 4 * 3 * 2);
    assert_whole(&rows);
    // CI asks for no more than a Rust toolchain, a C compiler and Python.
    if let Some(why) = rows.iter().find_map(|row| row.skipped.as_ref()) {
        println!("skipped: every_engine_delivers_all, as far as it is about NATS ({why})");
    }
    for row in rows.iter().filter(|row| row.skipped.is_none()) {
        // A node's report rounds both.
        let difference = row.deliveries_per_s.unwrap() - row.fan_out * row.events_per_s.unwrap();
        assert!(difference.abs() <= row.fan_out, "{row:?}");
        assert!(row.p50_us.unwrap() <= row.p99_us.unwrap() && row.p99_us.unwrap() <= row.p999_us.unwrap(), "{row:?}");
    }
    let json = serde_json::to_value(&rows[0]).unwrap();
    for field in [
        "bench",
        "engine",
        "fan_out",
        "gateways",
        "payload_bytes",
        "events_per_s",
        "deliveries_per_s",
        "p50_us",
        "p99_us",
        "p999_us",
        "cpu_ns_per_event",
        "lost",
        "duplicates",
    ] {
        assert!(json.get(field).is_some(), "{field} in {json}");
    }
}

#[test]
fn a_server_that_is_not_there_is_told_of() {
    let delivery = Delivery {
        turns: TURNS,
        engines: vec![Engine::NatsCore],
        fan_outs: vec![1],
        payload_bytes: 200,
        rate: 1_000,
        nats_server: Some("/nowhere/nats-server".into()),
    };
    let rows = delivery.run(|_| {}).unwrap();
    assert!(rows.iter().all(|row| row.skipped.as_deref() == Some("/nowhere/nats-server is no file")), "{rows:?}");
}

#[test]
fn nodes_of_all_sizes_deliver_all() {
    let scale = Scale { turns: TURNS, live: 2_000, idle: vec![100, 1_000], rate: 1_000, gateways: 2 };
    let rows = scale.run(|_| {}).unwrap();
    assert_whole(&rows);
    assert!(rows.iter().any(|row| row.source == Some("embedded")) && rows.iter().any(|row| row.idle == 1_000));
}

#[test]
fn the_ingest_thread_and_the_bare_cursor_read_all() {
    if std::env::var_os(URI_VARIABLE).is_none_or(|uri| uri.is_empty()) {
        println!("skipped: the_ingest_thread_and_the_bare_cursor_read_all (no {URI_VARIABLE})");
        return;
    }
    let ingest = Ingest { turns: TURNS, events: 3_000, payload_bytes: 200, rates: vec![100], uri: None };
    let rows = ingest.run(|_| {}).unwrap();
    assert_whole(&rows);
    let engines: Vec<_> = rows.iter().map(|row| (row.engine, row.rate)).collect();
    assert_eq!(engines, [("streamer", None), ("driver", None), ("streamer", Some(100))]);
}
