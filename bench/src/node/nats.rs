//! NATS: its own server in a process of its own, its own client.
//!
//! JetStream is spoken to by its subjects (`$JS.API…`, `$JS.ACK…`), as its documentation has them: each subscription is a push consumer
//! with explicit acks, and every publication is acknowledged.

use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, Event, Subscriber};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, future::join_all};
use loadgen::{
    alarm::Alarm,
    gateways::{Clock, Gateways, LOOK_EVERY, Received, Receiver},
    pinned::Pinned,
    run::{Begun, all_live},
    source::direct::{Template, number_of},
};
use serde_json::json;
use tokio::time::timeout;

use super::{BATCH_MAX, Cores, Failed, Figures, ROOM_POLL, Turns, WINDOW, delivery::Case, has_room, runtime};

const PROGRAM: &str = "nats-server";

/// What is published.
const SUBJECT: &str = "events";

/// Where the server acknowledges it.
const PUBLISHED: &str = "published";

/// Publications that may wait for their acks.
const UNACKED_MAX: u64 = 8_192;

/// Deliveries to one consumer that may wait for their acks: as many as make no difference any more.
const ACK_PENDING_MAX: u64 = 16_384;

/// The server is up in some milliseconds; a busy machine may take longer.
const START_TIME: Duration = Duration::from_secs(30);

/// The program, by its path or on the PATH. The error says what to do.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(given) = given {
        return given.is_file().then(|| given.to_owned()).ok_or_else(|| format!("{} is no file", given.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian has it where users other than root don't look.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.map(|folder| folder.join(PROGRAM)).find(|file| file.is_file()).ok_or_else(|| {
        format!("{PROGRAM} isn't on the PATH: `apt-get install {PROGRAM}`, or name it by --nats-server PATH")
    })
}

/// A server that runs until this is dropped, or this process is gone.
struct Server {
    keeper: Child,
    id: u32,
    url: String,
    _folder: tempfile::TempDir,
}

/// `cat` ends when the pipe does, which only this process holds open.
const KEEPER: &str = "\"$@\" </dev/null >/dev/null & server=$!; echo \"$server\"; cat >/dev/null; kill -9 \"$server\"; \
                      wait \"$server\" 2>/dev/null";

impl Server {
    fn start(program: &Path, cores: &Cores, jetstream: bool) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", program.display());
        let folder = tempfile::Builder::new().prefix("compare-nats-").tempdir().map_err(failed)?;
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).map_err(failed)?.port();
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(program);
        command.args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--log"]).arg(&log);
        if jetstream {
            command.args(["--jetstream", "--store_dir"]).arg(folder.path().join("store"));
        }
        let mut keeper = {
            // The server inherits the core.
            let _pinned = Pinned::to(&[cores.serve]);
            let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
            command.spawn().map_err(failed)?
        };
        let mut said = String::new();
        let told = keeper.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut said));
        told.transpose().map_err(failed)?;
        let id = said.trim().parse().map_err(|_| format!("{}: no process id in {said:?}", program.display()))?;
        let server = Self { keeper, id, url: format!("nats://127.0.0.1:{port}"), _folder: folder };
        let started = Instant::now();
        while !is_up(port) {
            if started.elapsed() > START_TIME || !Path::new("/proc").join(id.to_string()).exists() {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("{} doesn't answer on port {port}; it said:\n{log}", program.display()));
            }
            pause(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// For how long its threads have been at work, to a hundredth of a second.
    fn work_ns(&self) -> u64 {
        const TICK_NS: u64 = 10_000_000;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id)).unwrap_or_default();
        // After the program's name in parentheses: 12th and 13th are the time in user mode and in the kernel.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ').skip(11).take(2);
        fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * TICK_NS
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // It can't be helped if that fails: the keeper is gone then.
        let _ = self.keeper.wait();
    }
}

/// Whether someone greets as NATS does.
fn is_up(port: u16) -> bool {
    let greeted = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting)?;
        Ok(&greeting == b"INFO")
    };
    greeted().unwrap_or(false)
}

#[expect(clippy::disallowed_methods, reason = "no shard runs here, and there is nothing to wait on")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

pub(super) fn carry(
    case: &Case,
    rate: Option<u64>,
    cores: &Cores,
    turns: &Turns,
    program: &Path,
    jetstream: bool,
) -> Result<Figures, String> {
    let server = Server::start(program, cores, jetstream)?;
    let _pinned = Pinned::to(&cores.load);
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(drive(case, rate, cores, turns, &server, jetstream)).map_err(|error| error.to_string())
}

async fn drive(
    case: &Case,
    rate: Option<u64>,
    cores: &Cores,
    turns: &Turns,
    server: &Server,
    jetstream: bool,
) -> Result<Figures, Failed> {
    let common = Arc::new(case.common(rate, turns));
    let (plan, schedule) = (&common.plan, &common.schedule);
    let client = async_nats::connect(&server.url).await?;
    // Acks of what was published, counted.
    let acked = Arc::new(AtomicU64::new(0));
    if jetstream {
        let stream = json!({ "name": "EVENTS", "subjects": [SUBJECT], "storage": "memory", "retention": "limits",
            "discard": "old", "max_bytes": 1_u64 << 30, "num_replicas": 1 });
        ask(&client, "$JS.API.STREAM.CREATE.EVENTS", &stream).await?;
        tokio::spawn(count_acks(client.subscribe(PUBLISHED).await?, acked.clone()));
    }
    let url = server.url.clone();
    let gateways = Gateways::start(common.clone(), &cores.load, move |receiver| {
        let url = url.clone();
        async move { receive(receiver, &url, jetstream).await.map_err(|error| error.to_string()) }
    })?;
    all_live(&gateways).await?;

    let templates: Vec<Template> =
        plan.events.iter().map(|event| Template::document(event, case.payload_bytes)).collect();
    let mut alarm = Alarm::new()?;
    let before = server.work_ns();
    let begun = Begun::now(schedule);
    schedule
        .drive::<Failed>(BATCH_MAX, async |numbers| {
            for n in numbers.clone() {
                let mut document = BytesMut::with_capacity(2 * case.payload_bytes);
                templates[(n - 1) as usize % templates.len()].fill(n, &mut document);
                match jetstream {
                    true => client.publish_with_reply(SUBJECT, PUBLISHED, document.freeze()).await?,
                    false => client.publish(SUBJECT, document.freeze()).await?,
                }
            }
            let all = numbers.end - 1;
            while !has_room(&common) || jetstream && all.saturating_sub(acked.load(Relaxed)) > UNACKED_MAX {
                if gateways.any_ended() {
                    schedule.end();
                    break;
                }
                alarm.wait(ROOM_POLL).await?;
            }
            Ok(())
        })
        .await?;
    client.flush().await?;
    let outcome = begun.finish(gateways).await?;
    let work_ns = server.work_ns() - before;
    Ok(Figures::of(&outcome, rate, work_ns))
}

async fn count_acks(mut acks: Subscriber, acked: Arc<AtomicU64>) {
    while let Some(ack) = acks.next().await {
        // A refusal is not counted: publishing then stands still, and what is missing is counted as lost.
        if !ack.payload.windows(7).any(|part| part == b"\"error\"") {
            acked.fetch_add(1, Relaxed);
        }
    }
}

/// A request of JetStream's; its refusal is an error.
async fn ask(client: &Client, subject: &'static str, what: &serde_json::Value) -> Result<(), Failed> {
    ask_at(client, subject.to_owned(), what).await
}

async fn ask_at(client: &Client, subject: String, what: &serde_json::Value) -> Result<(), Failed> {
    let answer = client.request(subject.clone(), what.to_string().into()).await?;
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload)?;
    match answer.get("error") {
        None => Ok(()),
        Some(error) => Err(format!("{subject}: {error}").into()),
    }
}

/// One connection with the subscriptions of a Gateway.
async fn receive(receiver: Receiver, url: &str, jetstream: bool) -> Result<Received, Failed> {
    // Why something is lost, if something is: a connection that was cut, or a subscription that was too slow for its queue.
    let (tell, told) = std::sync::mpsc::channel();
    // Room for all that may be on its way: what doesn't fit, the client drops.
    let options = ConnectOptions::new().subscription_capacity(8 * WINDOW as usize).event_callback(move |event| {
        // Nobody may listen any more.
        let _ = tell.send(event);
        std::future::ready(())
    });
    let client = options.connect(url).await?;
    let mut subscribers = Vec::new();
    for number in receiver.own() {
        let subject = if jetstream { format!("deliver.{number}") } else { SUBJECT.to_owned() };
        subscribers.push((number, client.subscribe(subject.clone()).await?));
        if jetstream {
            let config = json!({ "durable_name": format!("c{number}"), "deliver_subject": subject,
                "ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant",
                "ack_wait": 60_000_000_000_u64, "max_ack_pending": ACK_PENDING_MAX });
            let what = json!({ "stream_name": "EVENTS", "config": config });
            ask_at(&client, format!("$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.c{number}"), &what).await?;
        }
    }
    client.flush().await?;
    receiver.common.live.fetch_add(subscribers.len() as u64, Relaxed);
    let receiver = RefCell::new(receiver);
    let ended: Vec<Result<(), Failed>> =
        join_all(subscribers.into_iter().map(|(number, subscriber)| take(&receiver, number, subscriber, &client)))
            .await;
    ended.into_iter().collect::<Result<(), Failed>>()?;
    client.flush().await?;
    let mut received = receiver.into_inner().received;
    let events = told.try_iter().filter(|event| !matches!(event, Event::Connected));
    received.breaks.extend(events.map(|event| format!("nats: {event}")));
    Ok(received)
}

/// What one subscription is given, until the end.
async fn take(
    receiver: &RefCell<Receiver>,
    number: u32,
    mut subscriber: Subscriber,
    client: &Client,
) -> Result<(), Failed> {
    let mut clock = Clock::new();
    loop {
        let ready = subscriber.next().now_or_never().map(Ok);
        let message = match clock.take(ready, async || timeout(LOOK_EVERY, subscriber.next()).await).await {
            Ok(message) => message,
            Err(_) if receiver.borrow().common.is_over() => return Ok(()),
            Err(_) => continue,
        };
        let message = message.ok_or("the connection has ended")?;
        receiver.borrow_mut().take(number, number_of(&message.payload).unwrap_or(0), clock.now);
        if let Some(reply) = message.reply {
            client.publish(reply, Bytes::from_static(b"+ACK")).await?;
        }
    }
}
