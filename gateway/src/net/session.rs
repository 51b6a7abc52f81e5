//! One connection to one shard: four tasks, none of which waits for another.
//!
//! - requests out and replies in, on the control stream; neither ever waits for the application;
//! - acks out: the latest ones, not each;
//! - deliveries in: read only while the core has room, so that a slow application is felt by the shard through QUIC's flow
//!   control and nowhere else.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use bytes::BytesMut;
use quinn::{Connection, ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use wire::{Ack, Decoder, Delivery, ErrorCode, Reply, Request, WireError};

use super::{Closing, Job, Shared, endpoint::reason_of};
use crate::core::{DisconnectReason, Input, SessionId};

/// Why a task of a session stopped.
#[derive(Debug)]
enum Stop {
    Wire(WireError),
    Ended(String),
    /// The core has ended the session and everything that it wanted to say has been said.
    Flushed,
}

pub(super) async fn run(shared: &Arc<Shared>, job: Job) {
    let Job { id, address, after, requests, ack, resume, mut close } = job;
    let connect = async {
        sleep(after).await;
        shared.endpoints.connect(&address, shared.server_name.as_deref()).await
    };
    let connection = tokio::select! {
        _ = &mut close => return,
        connected = connect => match connected {
            Ok(connection) => connection,
            Err(reason) => return shared.disconnected(id, reason),
        },
    };
    match open(&connection).await {
        Ok(streams) => {
            shared.input(Input::Connected { session: id });
            serve(shared, id, &connection, streams, Work { requests, ack, resume, close }).await;
        }
        Err(reason) => shared.disconnected(id, reason),
    }
}

struct Streams {
    requests: SendStream,
    replies: RecvStream,
    acks: SendStream,
}

struct Work {
    requests: mpsc::UnboundedReceiver<Request>,
    ack: watch::Receiver<Ack>,
    resume: Arc<Notify>,
    close: oneshot::Receiver<Closing>,
}

async fn open(connection: &Connection) -> Result<Streams, DisconnectReason> {
    let lost = |error| reason_of(&error, true);
    let (requests, replies) = connection.open_bi().await.map_err(lost)?;
    let acks = connection.open_uni().await.map_err(lost)?;
    // A stream that is closed has no priority to set, and is found out at its first write.
    let _ = requests.set_priority(2);
    let _ = acks.set_priority(1);
    Ok(Streams { requests, replies, acks })
}

async fn serve(shared: &Arc<Shared>, id: SessionId, connection: &Connection, streams: Streams, work: Work) {
    let Work { requests, ack, resume, mut close } = work;
    let (requests_flushed, acks_flushed) = (oneshot::channel(), oneshot::channel());
    let mut tasks = JoinSet::new();
    tasks.spawn(send_requests(streams.requests, requests, requests_flushed.0));
    tasks.spawn(send_acks(streams.acks, ack, acks_flushed.0));
    tasks.spawn(receive_replies(Arc::clone(shared), id, streams.replies));
    tasks.spawn(receive_deliveries(Arc::clone(shared), id, connection.clone(), resume));
    let flushed = async { tokio::join!(requests_flushed.1, acks_flushed.1) };

    let stop = tokio::select! {
        // First, so that an end which the core wanted is not taken for one that it must be told.
        biased;
        closing = &mut close => return end(connection, closing.ok(), flushed).await,
        Some(stopped) = tasks.join_next() => stopped.unwrap_or_else(|error| Stop::Ended(error.to_string())),
        error = connection.closed() => Stop::Ended(error.to_string()),
    };
    // A write that failed because the connection ended says less than the connection's own reason.
    let reason = match (&stop, connection.close_reason()) {
        (Stop::Wire(error), _) => {
            connection.close(VarInt::from_u32(error.code().quic_code()), error.to_string().as_bytes());
            DisconnectReason::Violation(error.to_string())
        }
        (_, Some(error)) => reason_of(&error, true),
        (Stop::Ended(what), None) => ended(connection, what).await,
        (Stop::Flushed, None) => return end(connection, close.await.ok(), flushed).await,
    };
    shared.disconnected(id, reason);
}

/// A stream has ended; the reason for that, if there is one, is the connection's, and may still be on its way.
async fn ended(connection: &Connection, what: &str) -> DisconnectReason {
    match timeout(REASON_WITHIN, connection.closed()).await {
        Ok(error) => reason_of(&error, true),
        Err(_) => {
            connection.close(VarInt::from_u32(ErrorCode::ProtocolViolation.quic_code()), what.as_bytes());
            DisconnectReason::Lost(what.to_owned())
        }
    }
}

/// Ends a connection for the core: once what was to be said is out, where nothing is wrong.
async fn end(connection: &Connection, closing: Option<Closing>, flushed: impl Future) {
    let Closing { code, message } =
        closing.unwrap_or_else(|| Closing { code: None, message: "the Gateway is gone".into() });
    if code.is_none() {
        // Nobody can add to it any more: the senders' other ends went with the session.
        let _ = timeout(FLUSH_WITHIN, flushed).await;
    }
    connection.close(VarInt::from_u32(code.map_or(0, ErrorCode::quic_code)), message.as_bytes());
}

/// `flushed` is dropped, and so tells, when everything has arrived or can't.
async fn send_requests(
    mut stream: SendStream,
    mut requests: mpsc::UnboundedReceiver<Request>,
    flushed: oneshot::Sender<()>,
) -> Stop {
    let mut buffer = BytesMut::new();
    while let Some(request) = requests.recv().await {
        wire::encode_request(&request, &mut buffer);
        while buffer.len() < WRITE_BYTES
            && let Ok(more) = requests.try_recv()
        {
            wire::encode_request(&more, &mut buffer);
        }
        if let Err(error) = stream.write_chunk(buffer.split().freeze()).await {
            return write_failed("control", &error);
        }
    }
    flush(stream).await;
    drop(flushed);
    Stop::Flushed
}

async fn send_acks(mut stream: SendStream, mut ack: watch::Receiver<Ack>, flushed: oneshot::Sender<()>) -> Stop {
    let mut buffer = BytesMut::new();
    // An error only once the core's end is gone and its last value has been seen.
    while ack.changed().await.is_ok() {
        let latest = *ack.borrow_and_update();
        wire::encode_ack(&latest, &mut buffer);
        if let Err(error) = stream.write_chunk(buffer.split().freeze()).await {
            return write_failed("ack", &error);
        }
        // An application acks far more often than a shard needs to know.
        sleep(ACK_EVERY).await;
    }
    flush(stream).await;
    drop(flushed);
    Stop::Flushed
}

async fn flush(mut stream: SendStream) {
    // An error of either means that there is nobody to flush to.
    if stream.finish().is_ok() {
        let _ = stream.stopped().await;
    }
}

async fn receive_replies(shared: Arc<Shared>, id: SessionId, mut stream: RecvStream) -> Stop {
    let mut decoder = Decoder::<Reply>::new(wire::MAX_BODY_BYTES);
    loop {
        match stream.read_chunk(READ_BYTES, true).await {
            Ok(Some(chunk)) => decoder.push(chunk.bytes),
            Ok(None) => return Stop::Ended("the shard ended the control stream".into()),
            Err(error) => return read_failed("control", &error),
        }
        loop {
            match decoder.next() {
                Ok(Some(reply)) => {
                    shared.input(Input::Reply { session: id, reply });
                    shared.changed.notify_waiters();
                }
                Ok(None) => break,
                Err(error) => return Stop::Wire(error),
            }
        }
    }
}

async fn receive_deliveries(shared: Arc<Shared>, id: SessionId, connection: Connection, resume: Arc<Notify>) -> Stop {
    let mut stream = match connection.accept_uni().await {
        Ok(stream) => stream,
        Err(error) => return Stop::Ended(error.to_string()),
    };
    let mut decoder = Decoder::<Delivery>::new(wire::MAX_BODY_BYTES);
    let mut deliveries = Vec::new();
    let mut is_wanted = shared.with(|core| core.wants_delivery(id));
    loop {
        while !is_wanted {
            resume.notified().await;
            is_wanted = shared.with(|core| core.wants_delivery(id));
        }
        let read = read_deliveries(&mut stream, &mut decoder, &mut deliveries).await;
        // Once for all that was read: what they bring is less work than to ask for the core.
        let now = shared.now();
        is_wanted = shared.with(|core| {
            if deliveries.is_empty() && read.is_ok() {
                core.handle(Input::Heard { session: id }, now);
            }
            for delivery in deliveries.drain(..) {
                core.handle(Input::Delivery { session: id, delivery }, now);
            }
            core.wants_delivery(id)
        });
        if let Err(stop) = read {
            return stop;
        }
    }
}

/// Waits for bytes, takes what there is of them, and decodes as far as it goes.
async fn read_deliveries(
    stream: &mut RecvStream,
    decoder: &mut Decoder<Delivery>,
    deliveries: &mut Vec<Delivery>,
) -> Result<(), Stop> {
    let mut left = READ_BYTES;
    let mut read = stream.read_chunk(left, true).await;
    loop {
        let bytes = match read {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) => return Err(Stop::Ended("the shard ended the delivery stream".into())),
            Err(error) => return Err(read_failed("delivery", &error)),
        };
        left = left.saturating_sub(bytes.len());
        decoder.push(bytes);
        while let Some(delivery) = decoder.next().map_err(Stop::Wire)? {
            deliveries.push(delivery);
        }
        if left == 0 {
            return Ok(());
        }
        // Only what is there.
        let mut reading = pin!(stream.read_chunk(left, true));
        match poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await {
            Poll::Ready(more) => read = more,
            Poll::Pending => return Ok(()),
        }
    }
}

fn write_failed(stream: &str, error: &WriteError) -> Stop {
    Stop::Ended(format!("the {stream} stream can't be written: {error}"))
}

fn read_failed(stream: &str, error: &ReadError) -> Stop {
    Stop::Ended(format!("the {stream} stream can't be read: {error}"))
}

/// Of what is read before it is given to the core. What is decoded from it may exceed the queue's bound by as much.
const READ_BYTES: usize = 256 << 10;

/// Requests are put together up to this length.
const WRITE_BYTES: usize = 64 << 10;

const ACK_EVERY: Duration = Duration::from_millis(1);

/// For the last acks to arrive before the connection is closed.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// For a connection's own reason to follow the end of one of its streams.
const REASON_WITHIN: Duration = Duration::from_secs(1);
