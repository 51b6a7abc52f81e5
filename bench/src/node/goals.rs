//! What a node was to reach, beside what it did.

use super::Row;
use crate::figures::{self, Goal};

/// The goals of which anything was measured.
pub fn print_goals(rows: &[Row]) {
    if !figures::print(&goals(rows)) {
        return;
    }
    let wrong: u64 = rows.iter().filter(|row| row.engine == "streamer").map(Row::wrong).sum();
    println!("{:<68} {:>16} {wrong:>16}", "lost, repeated, misdelivered or out of order by a node", 0);
}

fn goals(rows: &[Row]) -> Vec<Goal> {
    let (at_least, at_most) = (Goal::at_least, Goal::at_most);
    let ratio = |one: Option<f64>, other: Option<f64>| Some(one? / other?);
    let delivery = |engine: &'static str, fan_out: f64, flat_out: bool| {
        let is_it = move |row: &&Row| {
            (row.bench, row.engine, row.fan_out) == ("delivery", engine, fan_out) && row.rate.is_none() == flat_out
        };
        rows.iter().find(is_it)
    };
    let against = |engine: &'static str, fan_out| {
        let rate = |engine| delivery(engine, fan_out, true).and_then(|row| row.deliveries_per_s);
        ratio(rate("streamer"), rate(engine))
    };
    let tail = |engine| delivery(engine, 4.0, false)?.p99_us.map(|us| us as f64);
    let mut goals = vec![
        at_least("deliveries/s against NATS core, 4 Gateways get every event", 2.0, " ×", against("nats-core", 4.0)),
        at_most("p99 at a rate against NATS core's, the same", 1.0, " ×", ratio(tail("streamer"), tail("nats-core"))),
        at_least(
            "deliveries/s against NATS core, 64 subscribers on 2 Gateways",
            10.0,
            " ×",
            against("nats-core", 64.0),
        ),
        at_least("deliveries/s against JetStream in memory, 1 to 1", 8.0, " ×", against("nats-jetstream", 1.0)),
        at_least("deliveries/s against stock quinn, the same bytes, 1 to 1", 0.8, " ×", against("quinn", 1.0)),
        at_least("the same, 4 Gateways get every event", 0.8, " ×", against("quinn", 4.0)),
    ];

    let scale: Vec<&Row> = rows.iter().filter(|row| row.bench == "scale").collect();
    let one = |is_it: &dyn Fn(&Row) -> bool| scale.iter().find(|row| row.shards == Some(1) && is_it(row)).copied();
    let line = one(&|row| row.idle == 0 && row.rate.is_none() && row.subscriptions == SUBSCRIPTIONS);
    goals.push(at_least(
        "events/s, 100k subscriptions, 3 matches, 1 shard",
        1e6,
        "/s",
        line.and_then(|row| row.events_per_s),
    ));
    goals.push(at_least("deliveries/s, the same", 3e6, "/s", line.and_then(|row| row.deliveries_per_s)));
    let idle = |idle| one(&|row| row.idle == idle && row.rate.is_none())?.events_per_s;
    goals.push(at_least(
        "events/s with 1M idle subscriptions against 10k",
        0.8,
        " ×",
        ratio(idle(1_000_000), idle(10_000)),
    ));
    let paced = |source| one(&|row| row.rate == Some(10_000) && row.source == Some(source));
    let us = |us: Option<u64>| us.map(|us| us as f64);
    let direct = paced("direct").filter(|row| row.subscriptions == SUBSCRIPTIONS);
    goals.push(at_most("p50 at 10k events/s, 100k subscriptions", 60.0, " µs", direct.and_then(|row| us(row.p50_us))));
    goals.push(at_most("p99", 150.0, " µs", direct.and_then(|row| us(row.p99_us))));
    goals.push(at_most("p99.9", 1_500.0, " µs", direct.and_then(|row| us(row.p999_us))));
    goals.push(at_most(
        "p99 of that with the durable HTTP write included",
        2_000.0,
        " µs",
        paced("embedded").and_then(|row| us(row.p99_us)),
    ));
    let ready = rows.iter().filter(|row| row.source == Some("direct")).filter_map(|row| row.ready_ms).max();
    goals.push(at_most("from start to ready, the longest", 300.0, " ms", ready.map(|ms| ms as f64)));

    let ingest = |engine| rows.iter().find(|row| row.bench == "ingest" && row.engine == engine && row.rate.is_none());
    let of =
        |figure: fn(&Row) -> Option<f64>| ratio(ingest("streamer").and_then(figure), ingest("driver").and_then(figure));
    goals.push(at_least("ingest thread against the bare cursor, events/s", 0.95, " ×", of(|row| row.events_per_s)));
    goals.push(at_most("its work an event", 1.25, " ×", of(|row| row.cpu_ns_per_event.map(|ns| ns as f64))));
    let written = |rate| rows.iter().find(|row| row.bench == "ingest" && row.rate == Some(rate) && !row.is_behind);
    for (what, rate) in [
        ("p99 from a database's ack, 1k events/s, rate held", 1_000),
        ("p99 from a database's ack, 10k events/s, rate held", 10_000),
    ] {
        goals.push(at_most(what, 20_000.0, " µs", written(rate).and_then(|row| us(row.p99_us))));
    }
    goals
}

const SUBSCRIPTIONS: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_told_by_the_rows_that_are_there() {
        let delivery = |engine, fan_out, rate: Option<u64>, deliveries: f64, p99| Row {
            fan_out,
            rate,
            deliveries_per_s: Some(deliveries),
            p99_us: Some(p99),
            ..Row::new("delivery", engine)
        };
        let scale = |idle, events| Row {
            source: Some("direct"),
            shards: Some(1),
            subscriptions: 10_000,
            idle,
            events_per_s: Some(events),
            ready_ms: Some(12),
            ..Row::new("scale", "streamer")
        };
        let rows = [
            delivery("streamer", 4.0, None, 4e6, 9_000),
            delivery("nats-core", 4.0, None, 2e6, 9_000),
            delivery("nats-jetstream", 1.0, None, 2e6, 9_000),
            delivery("streamer", 4.0, Some(50_000), 2e5, 90),
            delivery("nats-core", 4.0, Some(50_000), 2e5, 60),
            scale(10_000, 1e6),
            scale(1_000_000, 7e5),
        ];
        let expect = [
            ("deliveries/s against NATS core, 4 Gateways get every event", "2.00 ×", true),
            ("p99 at a rate against NATS core's, the same", "1.50 ×", false),
            ("events/s with 1M idle subscriptions against 10k", "0.70 ×", false),
            ("from start to ready, the longest", "12.00 ms", true),
        ];
        let expect = expect.map(|(what, found, reached)| (what, found.to_owned(), reached));
        assert_eq!(figures::found(&goals(&rows)), expect);
    }
}
