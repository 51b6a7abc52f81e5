//! The report as one page that needs nothing else: plots are drawn here, as SVG.

use std::fmt::Write;

use crate::report::Report;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 220.0;
/// Room for labels at the left and below.
const LEFT: f64 = 70.0;
const BELOW: f64 = 30.0;

const COLOURS: [&str; 8] = ["#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f"];

/// Lines of a plot share their x values.
struct Line<'a> {
    name: String,
    points: Vec<(f64, f64)>,
    colour: &'a str,
}

/// The page's HTML.
pub fn render(report: &Report) -> String {
    let mut page = String::new();
    let title = format!("loadgen: {}", report.profile);
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>\
         body{{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#111;background:#fff}}\
         table{{border-collapse:collapse}}td{{padding:.1em 1em .1em 0;vertical-align:top}}td:first-child{{color:#555}}\
         h2{{margin-top:2em;font-size:1.1em}}svg{{width:100%;height:auto}}svg text{{font:12px system-ui,sans-serif;fill:#444}}\
         .bad{{color:#b91c1c;font-weight:bold}}.good{{color:#047857}}\
         @media(prefers-color-scheme:dark){{body{{color:#ddd;background:#111}}svg text{{fill:#bbb}}td:first-child{{color:#aaa}}}}\
         </style></head><body><h1>{}</h1><p>{}</p>",
        escaped(&title),
        escaped(&report.description)
    );
    page.push_str(&figures(report));
    let seconds = |of: &dyn Fn(&crate::report::Moment) -> f64| -> Vec<(f64, f64)> {
        report.moments.iter().map(|moment| (moment.second, of(moment))).collect()
    };
    let line = |name: &str, colour: usize, points| Line { name: name.to_owned(), points, colour: COLOURS[colour] };
    let deliveries = |moment: &crate::report::Moment| moment.deliveries_by_gateway.iter().sum::<u64>() as f64;
    plot(
        &mut page,
        "Throughput",
        "a second",
        &[line("events", 0, seconds(&|moment| moment.events as f64)), line("deliveries", 1, seconds(&deliveries))],
        Axis::Seconds,
    );
    plot(
        &mut page,
        "Latency over time",
        "µs",
        &[
            line("p50", 0, seconds(&|moment| moment.p50_us as f64)),
            line("p99", 1, seconds(&|moment| moment.p99_us as f64)),
        ],
        Axis::Seconds,
    );
    // Each nine is as wide as any other.
    let nines = |percent: f64| -(1.0 - percent.min(99.9999) / 100.0).log10();
    let curve = report.percentiles.iter().map(|at| (nines(at.percent), at.us as f64)).collect();
    plot(&mut page, "Percentiles of latency", "µs", &[line("latency", 0, curve)], Axis::Nines);
    let many = |count: usize, name: &str, of: &dyn Fn(&crate::report::Moment, usize) -> u64| -> Vec<Line<'static>> {
        (0..count)
            .map(|index| Line {
                name: format!("{name}-{index}"),
                points: report.moments.iter().map(|moment| (moment.second, of(moment, index) as f64)).collect(),
                colour: COLOURS[index % COLOURS.len()],
            })
            .collect()
    };
    let gateways = many(report.gateways, "gateway", &|moment, index| moment.deliveries_by_gateway[index]);
    plot(&mut page, "Deliveries by Gateway", "a second", &gateways, Axis::Seconds);
    let shards = many(report.shards, "shard", &|moment, index| moment.events_by_shard[index]);
    plot(&mut page, "Events by shard", "a second", &shards, Axis::Seconds);
    page.push_str("</body></html>\n");
    page
}

fn figures(report: &Report) -> String {
    let faults = report.lost + report.duplicates + report.misdelivered + report.out_of_order;
    let rate = report.rate.map_or("flat out".to_owned(), |rate| format!("{rate} events a second"));
    let mut rows = vec![
        ("load", format!("{rate}, {} source, documents of {} bytes", report.source, report.document_bytes)),
        (
            "subscriptions",
            format!(
                "{} of {} Gateways, {:.2} matches an event",
                report.subscriptions, report.gateways, report.matches_per_event
            ),
        ),
        ("node", format!("{} shards on {}; {}", report.shards, report.runtime, report.cores)),
        ("events", format!("{} ({} a second)", report.events, report.events_per_s)),
        (
            "deliveries",
            format!("{} ({} a second), {} expected", report.delivered, report.deliveries_per_s, report.expected),
        ),
        (
            "latency",
            format!(
                "p50 {} µs, p99 {} µs, p99.9 {} µs, max {} µs; from {}",
                report.p50_us, report.p99_us, report.p999_us, report.max_us, report.latency_from
            ),
        ),
        ("seed", report.seed.to_string()),
    ];
    if report.behind {
        rows.push(("note", "the source was behind: this rate is more than can be had here".to_owned()));
    }
    let mut table = String::from("<table>");
    for (name, value) in rows {
        let _ = write!(table, "<tr><td>{name}</td><td>{}</td></tr>", escaped(&value));
    }
    let class = if report.is_clean() { "good" } else { "bad" };
    let _ = write!(
        table,
        "<tr><td>faults</td><td class=\"{class}\">{faults}: lost {}, duplicates {}, misdelivered {}, out of order {}</td></tr></table>",
        report.lost, report.duplicates, report.misdelivered, report.out_of_order
    );
    for fault in &report.faults {
        let _ = write!(table, "<p class=\"bad\">{}</p>", escaped(fault));
    }
    table
}

#[derive(Clone, Copy)]
enum Axis {
    Seconds,
    /// 0, 90, 99, 99.9 … percent at equal distances.
    Nines,
}

fn plot(page: &mut String, title: &str, unit: &str, lines: &[Line<'_>], axis: Axis) {
    let points = || lines.iter().flat_map(|line| &line.points);
    let _ = write!(page, "<h2>{title}</h2>");
    if points().count() == 0 {
        page.push_str("<p>The run was shorter than a second.</p>");
        return;
    }
    let x_max = points().map(|(x, _)| *x).fold(1.0, f64::max);
    let y_max = nice(points().map(|(_, y)| *y).fold(1.0, f64::max));
    let x_at = |x: f64| LEFT + x / x_max * (WIDTH - LEFT - 10.0);
    let y_at = |y: f64| HEIGHT - BELOW - y / y_max * (HEIGHT - BELOW - 10.0);
    let _ = write!(page, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">");
    for step in 0..=4 {
        let y = y_max * f64::from(step) / 4.0;
        let at = y_at(y);
        let _ = write!(
            page,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{WIDTH}\" y2=\"{at:.1}\" stroke=\"#8884\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            short(y)
        );
    }
    let ticks: Vec<(f64, String)> = match axis {
        Axis::Seconds => {
            let decimals = usize::from(x_max < 12.0);
            (0..=6).map(|step| x_max * f64::from(step) / 6.0).map(|x| (x, format!("{x:.decimals$} s"))).collect()
        }
        Axis::Nines => [(0.0, "0"), (1.0, "90"), (2.0, "99"), (3.0, "99.9"), (4.0, "99.99"), (5.0, "99.999")]
            .into_iter()
            .filter(|(x, _)| *x <= x_max)
            .map(|(x, text)| (x, format!("{text} %")))
            .collect(),
    };
    for (x, text) in ticks {
        let _ = write!(
            page,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            x_at(x).min(WIDTH - 20.0),
            HEIGHT - 8.0
        );
    }
    for Line { points, colour, .. } in lines {
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        let _ = write!(
            page,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>",
            path.join(" ")
        );
    }
    page.push_str("</svg><p>");
    for Line { name, colour, .. } in lines {
        let _ = write!(page, "<span style=\"color:{colour}\">■</span> {} &nbsp; ", escaped(name));
    }
    let _ = write!(page, "({unit})</p>");
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", (value / 1e4).round() / 100.0),
        value if value >= 1e4 => format!("{} k", (value / 1e2).round() / 10.0),
        value => format!("{}", (value * 10.0).round() / 10.0),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, expect) in [(1.0, 1.0), (1_234.0, 2_000.0), (2_100_000.0, 2_500_000.0), (0.7, 1.0), (99.0, 100.0)] {
            assert_eq!(nice(value), expect, "{value}");
        }
        assert_eq!(
            (short(2_500_000.0), short(12_340.0), short(250.0)),
            ("2.5 M".into(), "12.3 k".into(), "250".into())
        );
        assert_eq!(escaped("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }
}
