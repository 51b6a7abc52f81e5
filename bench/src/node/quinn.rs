//! QUIC alone: stock quinn on tokio, as many bytes as a node's frames take, each event told by its number.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use futures::{FutureExt, future::try_join_all};
use loadgen::{
    alarm::Alarm,
    gateways::{Clock, Common, Gateways, LOOK_EVERY, Received, Receiver},
    pinned::Pinned,
    run::{Begun, all_live},
};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
use rustls::{RootCertStore, pki_types::PrivatePkcs8KeyDer};
use tokio::sync::Notify;
use wire::{
    BackendId, Certainty, EventEntryRef, Handle, Lineage, Operation, Position, Target, Transition, begin_events,
};

use super::{BATCH_MAX, Cores, Failed, Figures, ROOM_POLL, Turns, delivery::Case, has_room, runtime};

/// Bytes of one write, as a shard's.
const WRITE_BYTES_MAX: usize = 64 * 1024;

const NAME: &str = "localhost";

pub(super) fn carry(case: &Case, rate: Option<u64>, cores: &Cores, turns: &Turns) -> Result<Figures, String> {
    run(case, rate, cores, Arc::new(case.common(rate, turns))).map_err(|error| error.to_string())
}

fn run(case: &Case, rate: Option<u64>, cores: &Cores, common: Arc<Common>) -> Result<Figures, Failed> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let certificate = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let client = ClientConfig::with_root_certificates(Arc::new(roots))?;
    let bytes = bytes_of_an_event(case);

    let (to_main, addresses) = std::sync::mpsc::channel();
    let (serving, core) = (common.clone(), cores.serve);
    let sender = thread::Builder::new().name("quinn-server".to_owned()).spawn(move || {
        let _pinned = Pinned::to(&[core]);
        runtime()?.block_on(async {
            let endpoint = Endpoint::server(server, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            to_main.send(endpoint.local_addr()?)?;
            send(&endpoint, &serving, bytes).await
        })
    })?;
    let Ok(address) = addresses.recv() else {
        return Err(ended(sender).err().unwrap_or_else(|| "the sending end has ended".into()));
    };
    let _pinned = Pinned::to(&cores.load);
    let gateways = Gateways::start(common.clone(), &cores.load, move |receiver| {
        let client = client.clone();
        async move { receive(receiver, client, address, bytes).await.map_err(|error| error.to_string()) }
    })?;
    let outcome = runtime()?.block_on(async {
        all_live(&gateways).await?;
        let begun = Begun::now(&common.schedule);
        while common.schedule.ended().is_none() {
            if gateways.any_ended() {
                common.schedule.end();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.finish(gateways).await
    })?;
    ended(sender)?;
    Ok(Figures::of(&outcome, rate, 0))
}

fn ended(thread: thread::JoinHandle<Result<(), Failed>>) -> Result<(), Failed> {
    thread.join().unwrap_or_else(|_| Err("the sending end panicked".into()))
}

/// What an event takes in a node's frames to one Gateway, its share of the frame's head included.
fn bytes_of_an_event(case: &Case) -> usize {
    const EVENTS: u64 = 100;
    let mut buffer = bytes::BytesMut::new();
    let (document, document_id) = (vec![0; case.payload_bytes], [0x12, 0, 0, 0, 0, 0, 0, 0, 0]);
    let target =
        |handle| Target { handle: Handle(handle), transition: Transition::Enter, certainty: Certainty::Matched };
    let targets: Vec<Target> = (0..case.fan_out / case.gateways as u32).map(target).collect();
    let mut frame = begin_events(&mut buffer);
    for n in 0..EVENTS {
        // Numbers as far on as those of a long run.
        let id =
            Position { backend: BackendId::of_name("direct"), lineage: Lineage(u64::MAX), time: 1_000_000 + n, k: 1 };
        frame.push(&EventEntryRef {
            seq: 1_000_000 + n,
            id,
            operation: Operation::Insert,
            tenant: "tenant-0",
            collection: "c0",
            document_id: &document_id,
            targets: &targets,
            document: &document,
        });
    }
    frame.finish();
    buffer.len().div_ceil(EVENTS as usize)
}

/// The sending end: all that is due to everybody, until the load is over and all has been read.
async fn send(endpoint: &Endpoint, common: &Common, bytes: usize) -> Result<(), Failed> {
    let mut connections = Vec::new();
    while connections.len() < common.delivered.len() {
        connections.push(endpoint.accept().await.ok_or("the endpoint was closed")?.await?);
    }
    let more: Vec<Notify> = connections.iter().map(|_| Notify::new()).collect();
    let mut alarm = Alarm::new()?;
    let make = async {
        let schedule = &common.schedule;
        let due = schedule.drive::<Failed>(BATCH_MAX, async |_| {
            more.iter().for_each(Notify::notify_one);
            // Whoever writes runs while this waits.
            tokio::task::yield_now().await;
            while !has_room(common) && !common.is_over() {
                alarm.wait(ROOM_POLL).await?;
            }
            Ok(())
        });
        due.await?;
        more.iter().for_each(Notify::notify_one);
        Ok(())
    };
    let write =
        try_join_all(connections.iter().zip(&more).map(|(connection, more)| write(connection, more, common, bytes)));
    tokio::try_join!(make, write)?;
    Ok(())
}

async fn write(connection: &Connection, more: &Notify, common: &Common, bytes: usize) -> Result<(), Failed> {
    let mut stream = connection.open_uni().await?;
    let mut buffer = Vec::with_capacity(WRITE_BYTES_MAX);
    let mut written = 0;
    loop {
        let at_once = (WRITE_BYTES_MAX / bytes).max(1) as u64;
        let upto = common.schedule.sent().min(written + at_once);
        if upto > written {
            buffer.resize((upto - written) as usize * bytes, 0);
            let each = buffer.chunks_exact_mut(bytes).zip(written + 1..);
            each.for_each(|(event, n)| event[..8].copy_from_slice(&n.to_le_bytes()));
            stream.write_all(&buffer).await?;
            written = upto;
        } else if common.schedule.ended() == Some(written) {
            break;
        } else {
            more.notified().await;
        }
    }
    stream.finish()?;
    // Closed by the reader once it has read all: any reason will do.
    connection.closed().await;
    Ok(())
}

/// Reads what comes, each event for all subscriptions of this Gateway.
async fn receive(
    mut receiver: Receiver,
    client: ClientConfig,
    address: SocketAddr,
    bytes: usize,
) -> Result<Received, Failed> {
    let mut endpoint = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    endpoint.set_default_client_config(client);
    let connection = endpoint.connect(address, NAME)?.await?;
    let own = receiver.own();
    receiver.common.live.fetch_add(own.len() as u64, std::sync::atomic::Ordering::Relaxed);
    let mut stream = connection.accept_uni().await?;
    // An event that has come in part.
    let mut part: Vec<u8> = Vec::with_capacity(bytes);
    let mut clock = Clock::new();
    let mut take = |event: &[u8], now| {
        let n = event[..8].try_into().map_or(0, u64::from_le_bytes);
        own.iter().for_each(|number| receiver.take(*number, n, now));
    };
    loop {
        let ready = stream.read_chunk(WRITE_BYTES_MAX, true).now_or_never();
        let chunk = clock.take(ready, async || stream.read_chunk(WRITE_BYTES_MAX, true).await).await?;
        let Some(chunk) = chunk else { break };
        let now = clock.now;
        let mut rest = &chunk.bytes[..];
        if !part.is_empty() {
            let (missing, after) = rest.split_at(rest.len().min(bytes - part.len()));
            part.extend_from_slice(missing);
            rest = after;
            if part.len() == bytes {
                take(&part, now);
                part.clear();
            }
        }
        let whole = rest.chunks_exact(bytes);
        part.extend_from_slice(whole.remainder());
        whole.for_each(|event| take(event, now));
    }
    connection.close(0_u32.into(), b"all read");
    endpoint.wait_idle().await;
    while !receiver.common.is_over() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(receiver.received)
}
