//! `streamer top`: a running node in the terminal, live.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::Args;
use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Color, Style, Stylize},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Table},
};
use tokio::sync::mpsc;

use super::{Failed, print};
use crate::control::{Live, quantile_us};

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Where the node's HTTP API is.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8083")]
    http: String,
    /// The administrator's token, where the node has Gateways configured.
    #[arg(long, env = "STREAMER_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
    /// Prints one picture, of one second, and ends. What happens where there is no terminal.
    #[arg(long)]
    once: bool,
}

/// Columns and lines of a picture that is printed.
const PRINTED: (u16, u16) = (120, 24);

pub(super) fn run(args: &TopArgs) -> Result<ExitCode, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut pictures = Pictures::open(args).await?;
        if args.once || !std::io::stdout().is_terminal() {
            let (before, now) = (pictures.next().await?, pictures.next().await?);
            let _ = print(drawn(&before, &now).trim_end());
            return Ok(ExitCode::SUCCESS);
        }
        let mut terminal = ratatui::try_init()?;
        let shown = show(&mut terminal, &mut pictures, args).await;
        ratatui::restore();
        shown.map(|()| ExitCode::SUCCESS)
    })
}

async fn show(terminal: &mut ratatui::DefaultTerminal, pictures: &mut Pictures, args: &TopArgs) -> Result<(), Failed> {
    const AGAIN_AFTER: Duration = Duration::from_secs(1);
    let mut keys = keys();
    let mut before = pictures.next().await?;
    let mut now = before.clone();
    let mut away = false;
    loop {
        terminal.draw(|frame| draw(frame, &before, &now, away))?;
        tokio::select! {
            next = pictures.next() => match next {
                // A node that was started again counts from 0.
                Ok(next) if next.at_ms < now.at_ms => (before, now, away) = (next.clone(), next, false),
                Ok(next) => (before, now, away) = (std::mem::replace(&mut now, next.clone()), next, false),
                Err(_) => {
                    away = true;
                    tokio::time::sleep(AGAIN_AFTER).await;
                    if let Ok(again) = Pictures::open(args).await {
                        *pictures = again;
                    }
                }
            },
            key = keys.recv() => if key.is_none_or(|key| key == Key::Quit) {
                return Ok(());
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Quit,
    /// The terminal has another size, or anything else that wants a new drawing.
    Other,
}

/// Read on a thread of their own, which ends with the process.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let key = match event {
                Event::Key(key) if matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) => Key::Quit,
                Event::Key(key) if key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL => {
                    Key::Quit
                }
                _ => Key::Other,
            };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    receiver
}

/// What the node tells each second.
struct Pictures {
    response: reqwest::Response,
    /// What has come of the next one.
    text: Vec<u8>,
}

impl Pictures {
    async fn open(args: &TopArgs) -> Result<Self, Failed> {
        let url = format!("http://{}/v1/live", args.http);
        // The proxy of the environment is not for the node beside us.
        let mut request = reqwest::Client::builder().no_proxy().build()?.get(&url);
        if let Some(token) = &args.admin_token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| {
            let Failed(why) = error.into();
            Failed(format!("no node answers at {url} ({why}); start one with `streamer run`, or name it with --http"))
        })?;
        match response.status().as_u16() {
            200 => Ok(Self { response, text: Vec::new() }),
            401 | 403 => Err(Failed(format!("the node at {url} wants --admin-token (or STREAMER_ADMIN_TOKEN)"))),
            status => Err(Failed(format!("the node at {url} answered with {status}"))),
        }
    }

    /// May be dropped at any time.
    async fn next(&mut self) -> Result<Live, Failed> {
        loop {
            if let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.text.drain(..end + 2).collect();
                // Anything else keeps the connection open.
                if let Some(data) = event.trim_ascii().strip_prefix(b"data:") {
                    return Ok(serde_json::from_slice(data)?);
                }
                continue;
            }
            match self.response.chunk().await? {
                Some(chunk) => self.text.extend_from_slice(&chunk),
                None => return Err(Failed("the node has ended".into())),
            }
        }
    }
}

fn draw(frame: &mut Frame<'_>, before: &Live, now: &Live, away: bool) {
    let seconds = (now.at_ms.saturating_sub(before.at_ms) as f64 / 1000.0).max(0.001);
    let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    let sum = |of: fn(&crate::control::LiveShard) -> u64, picture: &Live| picture.shards.iter().map(of).sum::<u64>();
    let both = |of: fn(&crate::control::LiveShard) -> u64| rate(sum(of, now), sum(of, before));
    let state = match (away, now.status.as_str()) {
        (true, _) => Span::from("doesn't answer").fg(Color::Red).bold(),
        (false, "ready") => Span::from("ready").fg(Color::Green).bold(),
        (false, "degraded") => Span::from(format!("degraded: {}", now.reasons.join("; "))).fg(Color::Yellow).bold(),
        (false, _) => Span::from(format!("not ready: {}", now.reasons.join("; "))).fg(Color::Red).bold(),
    };
    let age = now.checkpoint_age_ms.map_or("none".to_owned(), |ms| format!("{:.1} s old", ms as f64 / 1000.0));
    let events = rate(now.events, before.events);
    let head = vec![
        Line::from(vec!["streamer  ".bold(), state, format!("   up {}   q ends", uptime(now.at_ms)).dim()]),
        Line::from(format!(
            "events/s {}   wanted by nobody {}   deliveries/s {}   sent {}B/s   read {}B/s",
            short(events),
            if events > 0.0 {
                format!("{:.0} %", 100.0 * rate(now.filtered, before.filtered) / events)
            } else {
                "–".to_owned()
            },
            short(both(|shard| shard.deliveries)),
            short(both(|shard| shard.sent_bytes)),
            short(rate(now.read_bytes, before.read_bytes)),
        )),
        Line::from(format!(
            "sessions {}   subscriptions {}   owed {}   lag {}   checkpoint {age}   gaps {}   resyncs {}",
            sum(|shard| shard.sessions, now),
            short(sum(|shard| shard.subscriptions, now) as f64),
            short(sum(|shard| shard.unsettled, now) as f64),
            duration_us(now.shards.iter().map(|shard| shard.lag_ms).max().unwrap_or(0).saturating_mul(1_000)),
            now.gaps,
            sum(|shard| shard.resyncs, now),
        )),
        Line::from(format!("read to done: p50 {}   p99 {}", latency(before, now, 0.5), latency(before, now, 0.99))),
        Line::default(),
    ];
    let backends = now.backends.len() as u16 + 2;
    let hot = now.hot.len().min(HOT_SHOWN) as u16 + 2;
    let heights = [Constraint::Length(5), Constraint::Min(2), Constraint::Length(hot), Constraint::Length(backends)];
    let [top, middle, hottest, bottom] = Layout::vertical(heights).areas(frame.area());
    frame.render_widget(Paragraph::new(head), top);

    let shards = now.shards.iter().map(|shard| {
        let old = before.shards.iter().find(|old| old.partition == shard.partition).unwrap_or(shard);
        let events = rate(shard.events, old.events);
        let candidates = rate(shard.candidates, old.candidates);
        let is_full = shard.ring_waiting * 2 > shard.ring_capacity;
        let ring = Cell::from(format!("{}/{}", shard.ring_waiting, shard.ring_capacity));
        let cells = [
            Cell::from(shard.partition.to_string()),
            Cell::from(shard.core.to_string()),
            Cell::from(short(events)),
            Cell::from(short(rate(shard.deliveries, old.deliveries))),
            Cell::from(if events > 0.0 { format!("{:.1}", candidates / events) } else { "–".to_owned() }),
            if is_full { ring.style(Style::new().fg(Color::Red)) } else { ring },
            Cell::from(shard.sessions.to_string()),
            Cell::from(short(shard.subscriptions as f64)),
            Cell::from(short(shard.unsettled as f64)),
            Cell::from(format!("{}B", short(shard.log_bytes as f64))),
            Cell::from(shard.passes_slow.to_string()),
        ];
        let row = Row::new(cells);
        if shard.alive { row } else { row.style(Style::new().fg(Color::Red)) }
    });
    let head =
        ["shard", "core", "events/s", "deliv/s", "cand/event", "ring", "sessions", "subs", "owed", "log", "slow"];
    let widths = [5, 4, 9, 9, 10, 11, 8, 8, 8, 8, 6].map(Constraint::Length);
    frame.render_widget(Table::new(shards, widths).header(Row::new(head).style(Style::new().dim())), middle);

    let hot = now.hot.iter().take(HOT_SHOWN).map(|hot| {
        let place = format!("{} / {}", hot.tenant, hot.collection);
        Row::new([place, short(hot.changes_per_s as f64), hot.partition.to_string()])
    });
    let widths = [Constraint::Min(24), Constraint::Length(10), Constraint::Length(6)];
    let head = Row::new(["hot collections", "changes/s", "shard"]).style(Style::new().dim());
    frame.render_widget(Table::new(hot, widths).header(head), hottest);

    let backends = now.backends.iter().map(|backend| {
        let phase = Cell::from(backend.phase.clone());
        let is_read = backend.phase == "reading";
        Row::new([
            Cell::from(backend.name.clone()),
            phase.style(Style::new().fg(if is_read { Color::Green } else { Color::Red })),
            Cell::from(backend.reopenings.to_string()),
            Cell::from(backend.error.clone().or_else(|| backend.position.clone()).unwrap_or_default()),
        ])
    });
    let widths = [Constraint::Length(16), Constraint::Length(12), Constraint::Length(9), Constraint::Min(20)];
    let head = Row::new(["backend", "state", "reopened", "position or error"]).style(Style::new().dim());
    frame.render_widget(Table::new(backends, widths).header(head), bottom);
}

/// A picture as text.
fn drawn(before: &Live, now: &Live) -> String {
    let (columns, lines) = PRINTED;
    let lines = lines.max(now.shards.len() as u16 + now.backends.len() as u16 + HOT_SHOWN as u16 + 11);
    let backend = ratatui::backend::TestBackend::new(columns, lines);
    let Ok(mut terminal) = ratatui::Terminal::new(backend);
    let Ok(_) = terminal.draw(|frame| draw(frame, before, now, false));
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(columns));
    let rows = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned());
    let rows: Vec<String> = rows.collect();
    // What lies between the tables is empty where there are few shards.
    let mut shown: Vec<String> = Vec::new();
    for row in rows {
        if !row.is_empty() || shown.last().is_some_and(|last| !last.is_empty()) {
            shown.push(row);
        }
    }
    shown.join("\n")
}

/// Hot collections that there is room for.
const HOT_SHOWN: usize = 5;

/// The bound that this share of the sampled changes stayed within.
fn latency(before: &Live, now: &Live, share: f64) -> String {
    match quantile_us(before, now, share) {
        None => "–".to_owned(),
        Some(u64::MAX) => "beyond measure".to_owned(),
        Some(us) => format!("≤ {}", duration_us(us)),
    }
}

fn duration_us(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn uptime(ms: u64) -> String {
    let seconds = ms / 1000;
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

fn short(value: f64) -> String {
    for (size, unit) in [(1e9, " G"), (1e6, " M"), (1e3, " k")] {
        if value >= size * 10.0 {
            return format!("{:.1}{unit}", value / size);
        }
    }
    format!("{value:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{LiveBackend, LiveHot, LiveShard};

    #[test]
    fn a_picture_shows_rates_of_the_time_between() {
        let shard = LiveShard { partition: 3, core: 5, alive: true, ring_capacity: 8_192, ..LiveShard::default() };
        let backend = LiveBackend { name: "main".into(), phase: "reading".into(), ..LiveBackend::default() };
        let before = Live {
            at_ms: 61_000,
            status: "ready".into(),
            shards: vec![shard.clone()],
            backends: vec![backend.clone()],
            ..Live::default()
        };
        let hot = LiveHot { tenant: "acme".into(), collection: "rooms".into(), changes_per_s: 123, partition: 3 };
        let shards = vec![LiveShard { lag_ms: 2_500, events: 4_000, candidates: 6_000, deliveries: 50_000, ..shard }];
        let now = Live {
            at_ms: 63_000,
            events: 40_000,
            filtered: 10_000,
            shards,
            hot: vec![hot],
            latency_counts: vec![0, 98, 2, 0],
            latency_bounds_us: vec![10, 250, 2_000],
            ..before.clone()
        };
        let text = drawn(&before, &now);
        for expect in [
            "ready",
            "up 1 min 3 s",
            "events/s 20.0 k",
            "wanted by nobody 25 %",
            "deliveries/s 25.0 k",
            "main",
            "lag 2.5 s",
            "p50 ≤ 250 µs   p99 ≤ 2 ms",
            "acme / rooms",
        ] {
            assert!(text.contains(expect), "{expect} is not in:\n{text}");
        }
        let row = text.lines().find(|line| line.starts_with("3 ")).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[..6], ["3", "5", "2000", "25.0", "k", "1.5"], "{text}");
        // Nothing has come: no division by it.
        assert!(drawn(&before, &before).contains("wanted by nobody –"));
        let halted = LiveBackend { phase: "halted".into(), error: Some("history lost".into()), ..backend };
        let text = drawn(
            &before,
            &Live { backends: vec![halted], status: "not_ready".into(), reasons: vec!["why".into()], ..now },
        );
        assert!(text.contains("not ready: why") && text.contains("history lost"), "{text}");
    }
}
