//! One connection of a Gateway, from its handshake to its end.
//!
//! Invariants:
//! - Nothing of a connection reaches the shard before its hello was found good.
//! - Whatever ends a connection gives it a code. A fault of the peer ends its own connection and nothing else.
//! - What the shard put out before a close is flushed first, within a bounded time.

use std::{future::pending, rc::Rc, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures::future::try_join;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt, WriteError, crypto::rustls::HandshakeData};
use tracing::debug;
use wire::{Ack, Decoder, ErrorCode, MAX_HELLO_BODY_BYTES, Reply, Request, WireError, encode_reply};

use super::{Authenticator, AuthorizedGateway, QuicConfig, close_code};
use crate::{
    Input, Refusal,
    driver::{
        core::Core,
        executor::Executor,
        hub::{Hub, Newcomer, SHUTTING_DOWN, Session},
    },
};

/// Control goes first: an answer must not wait behind a backlog of deliveries.
const CONTROL_PRIORITY: i32 = 1;
/// Most bytes taken from a stream at once.
const READ_BYTES_MAX: usize = 64 * 1024;
/// Requests after which others have their turn.
const REQUESTS_PER_TURN: usize = 64;
/// Replies are joined up to about this size before they are written.
const REPLY_BYTES_PER_WRITE: usize = 64 * 1024;
/// How long a control stream isn't read while the control thread is behind.
const CONGESTION_PAUSE: Duration = Duration::from_millis(5);

/// How a connection came to its end.
enum End {
    /// The peer has closed it, or it was lost.
    Gone,
    /// The peer has finished its control stream.
    Finished,
    Refused(ErrorCode, String),
}

pub(super) async fn serve<C: Core>(
    incoming: Incoming,
    newcomer: Newcomer<C>,
    hub: Rc<Hub<C>>,
    executor: Rc<Executor>,
    config: Rc<QuicConfig>,
    authenticator: Arc<dyn Authenticator>,
) {
    let remote = incoming.remote_address();
    let limit = Duration::from_millis(config.handshake_timeout_ms);
    let connection = match incoming.accept() {
        Ok(connecting) => executor.timeout(limit, connecting).await,
        Err(error) => Some(Err(error)),
    };
    let connection = match connection {
        Some(Ok(connection)) => connection,
        Some(Err(error)) => {
            hub.counters.handshakes_failed.add(1);
            debug!(%remote, %error, "handshake failed");
            return;
        }
        None => {
            hub.counters.handshakes_failed.add(1);
            debug!(%remote, timeout_ms = config.handshake_timeout_ms, "handshake took too long");
            return;
        }
    };
    let introduced = executor.timeout(limit, introduce(&connection, &hub, &*authenticator)).await;
    let end = match introduced {
        Some(Ok(streams)) => {
            drop(newcomer);
            run(&connection, streams, &hub, &executor, &config).await
        }
        Some(Err((end, control))) => {
            if let (End::Refused(code, message), Some(mut control)) = (&end, control) {
                let told = tell(&mut control, *code, message.clone());
                executor.timeout(Duration::from_millis(config.flush_timeout_ms), told).await;
            }
            end
        }
        None => {
            hub.counters.hellos_late.add(1);
            End::Refused(ErrorCode::ProtocolViolation, format!("no hello within {} ms", config.handshake_timeout_ms))
        }
    };
    match end {
        End::Gone => debug!(%remote, "connection gone"),
        End::Finished => connection.close(VarInt::from_u32(0), b""),
        End::Refused(code, message) => {
            debug!(%remote, ?code, message, "connection closed");
            connection.close(close_code(code), message.as_bytes());
        }
    }
}

/// A connection that is past its hello.
struct Streams {
    gateway: AuthorizedGateway,
    can_verify: bool,
    control_send: SendStream,
    control_receive: RecvStream,
    requests: Decoder<Request>,
    delivery: SendStream,
}

/// Reads the hello and asks whether it is good.
async fn introduce<C: Core>(
    connection: &Connection,
    hub: &Hub<C>,
    authenticator: &dyn Authenticator,
) -> Result<Streams, (End, Option<SendStream>)> {
    let alpn = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    if alpn.as_deref() != Some(wire::ALPN) {
        hub.counters.protocol_violations.add(1);
        return Err((End::Refused(ErrorCode::ProtocolViolation, "the protocol is streamer/1".into()), None));
    }
    let Ok((control_send, mut control_receive)) = connection.accept_bi().await else { return Err((End::Gone, None)) };
    let _ = control_send.set_priority(CONTROL_PRIORITY);
    let mut requests = Decoder::<Request>::new(MAX_HELLO_BODY_BYTES);
    let hello = loop {
        match requests.next() {
            Ok(Some(Request::Hello(hello))) => break hello,
            Ok(Some(_)) => {
                hub.counters.protocol_violations.add(1);
                let end = End::Refused(ErrorCode::ProtocolViolation, "the first message must be a hello".into());
                return Err((end, Some(control_send)));
            }
            Err(error) => return Err((violation(hub, "control", &error), Some(control_send))),
            Ok(None) => {}
        }
        match control_receive.read_chunk(READ_BYTES_MAX, true).await {
            Ok(Some(chunk)) => requests.push(chunk.bytes),
            Ok(None) => return Err((End::Finished, None)),
            Err(_) => return Err((End::Gone, None)),
        }
    };
    let Ok(delivery) = connection.open_uni().await else { return Err((End::Gone, None)) };
    // Last: a token that is taken away later is taken from a session that the shard knows, since nothing is waited for in between.
    let gateway = match authenticator.authenticate(&hello) {
        Ok(gateway) => gateway,
        Err(Refusal { code, message }) => {
            hub.counters.unauthorized.add(1);
            debug!(gateway = hello.gateway, agent = hello.agent, ?code, message, "hello refused");
            return Err((End::Refused(code, message), Some(control_send)));
        }
    };
    if hub.is_draining() {
        // Said on the stream, so that a Gateway knows it from a fault and comes back.
        return Err((End::Refused(ErrorCode::ShuttingDown, SHUTTING_DOWN.into()), Some(control_send)));
    }
    debug!(gateway = gateway.gateway, agent = hello.agent, remote = %connection.remote_address(), "hello");
    let can_verify = hello.capabilities.can_verify;
    Ok(Streams { gateway, can_verify, control_send, control_receive, requests, delivery })
}

/// Writes a refusal and waits until it has arrived.
async fn tell(control: &mut SendStream, code: ErrorCode, message: String) {
    let mut buffer = BytesMut::new();
    encode_reply(&Reply::Refused { code, message }, &mut buffer);
    if control.write_chunk(buffer.freeze()).await.is_ok() && control.finish().is_ok() {
        // Whether it was acked or stopped: there is nothing more to do.
        let _ = control.stopped().await;
    }
}

async fn run<C: Core>(
    connection: &Connection,
    streams: Streams,
    hub: &Rc<Hub<C>>,
    executor: &Executor,
    config: &QuicConfig,
) -> End {
    let session = hub.connect();
    let line = Rc::clone(&session.line);
    let connection_id = line.id;
    let Streams { gateway, can_verify, control_send, control_receive, requests, delivery } = streams;
    hub.input(Input::Hello { connection: connection_id, gateway: gateway.gateway, can_verify });

    let writers =
        try_join(write_control(control_send, &session, hub), write_delivery(delivery, &session, hub, executor, config));
    let flushed = async {
        line.closed.wait().await;
        executor.sleep(Duration::from_millis(config.flush_timeout_ms)).await;
    };
    let read_control = read_control(control_receive, requests, &session, hub, executor);
    let read_acks = read_acks(connection, &session, hub);
    let end = tokio::select! {
        biased;
        // Both end well only once the line is closing, and all is flushed then.
        result = writers => result.err(),
        () = flushed => None,
        end = read_control => Some(end),
        end = read_acks => Some(end),
        _ = connection.closed() => Some(End::Gone),
    };
    drop(session);
    match (end, line.closing()) {
        (Some(end), None) => end,
        (_, Some((code, message))) => End::Refused(code, message),
        (None, None) => End::Gone,
    }
}

/// Hands requests to the shard. Doesn't return for a violation: that closes the line, and the writers flush.
async fn read_control<C: Core>(
    mut stream: RecvStream,
    mut requests: Decoder<Request>,
    session: &Session<C>,
    hub: &Hub<C>,
    executor: &Executor,
) -> End {
    requests.set_max_body_bytes(hub.body_bytes_max());
    let line = &session.line;
    let mut taken = 0;
    loop {
        while hub.is_congested() && !line.is_closing() {
            executor.sleep(CONGESTION_PAUSE).await;
        }
        if line.is_closing() {
            return pending().await;
        }
        match requests.next() {
            Ok(Some(Request::Hello(_))) => {
                hub.counters.protocol_violations.add(1);
                line.refuse(ErrorCode::ProtocolViolation, "a second hello in one session".into());
            }
            Ok(Some(request)) => {
                session.request(request);
                taken += 1;
                if taken % REQUESTS_PER_TURN == 0 {
                    executor.breathe().await;
                }
            }
            Err(error) => refuse(line, violation(hub, "control", &error)),
            Ok(None) => match stream.read_chunk(READ_BYTES_MAX, true).await {
                Ok(Some(chunk)) => requests.push(chunk.bytes),
                Ok(None) if requests.is_between_messages() => return End::Finished,
                Ok(None) => {
                    hub.counters.protocol_violations.add(1);
                    line.refuse(ErrorCode::ProtocolViolation, "the control stream ended within a message".into());
                }
                Err(_) => return End::Gone,
            },
        }
    }
}

/// Hands acks to the shard: of those that came together, the last, since they are cumulative.
async fn read_acks<C: Core>(connection: &Connection, session: &Session<C>, hub: &Hub<C>) -> End {
    let line = &session.line;
    let Ok(mut stream) = connection.accept_uni().await else { return End::Gone };
    let mut acks = Decoder::<Ack>::new(MAX_HELLO_BODY_BYTES);
    loop {
        let mut last = None;
        loop {
            match acks.next() {
                Ok(Some(ack)) => last = Some(ack),
                Ok(None) => break,
                Err(error) => {
                    refuse(line, violation(hub, "acks", &error));
                    break;
                }
            }
        }
        if line.is_closing() {
            return pending().await;
        }
        if let Some(ack) = last {
            hub.counters.acks.add(1);
            hub.ack(line.id, ack);
        }
        match stream.read_chunk(READ_BYTES_MAX, true).await {
            Ok(Some(chunk)) => acks.push(chunk.bytes),
            // A Gateway that has finished its acks is about to leave; if it doesn't, the deadline of `received` sees to it.
            Ok(None) => return pending().await,
            Err(_) => return End::Gone,
        }
    }
}

async fn write_control<C: Core>(mut stream: SendStream, session: &Session<C>, hub: &Hub<C>) -> Result<(), End> {
    let line = &session.line;
    let mut buffer = BytesMut::new();
    loop {
        while buffer.len() < REPLY_BYTES_PER_WRITE {
            let Some(reply) = line.next_reply() else { break };
            hub.counters.replies.add(1);
            encode_reply(&reply, &mut buffer);
        }
        if !buffer.is_empty() {
            match stream.write_chunk(buffer.split().freeze()).await {
                Ok(()) => {}
                Err(WriteError::Stopped(_)) => {
                    hub.counters.protocol_violations.add(1);
                    let message = "the control stream was stopped".into();
                    return Err(End::Refused(ErrorCode::ProtocolViolation, message));
                }
                Err(_) => return Err(End::Gone),
            }
        } else if line.is_closing() {
            finish(stream).await;
            return Ok(());
        } else {
            line.control.wait().await;
        }
    }
}

async fn write_delivery<C: Core>(
    mut stream: SendStream,
    session: &Session<C>,
    hub: &Hub<C>,
    executor: &Executor,
    config: &QuicConfig,
) -> Result<(), End> {
    let line = &session.line;
    let mut buffer = BytesMut::new();
    loop {
        if line.ready.get() {
            if hub.fill(line.id, config.write_bytes_max, &mut buffer) == 0 {
                line.ready.set(false);
                continue;
            }
            hub.counters.delivery_writes.add(1);
            hub.counters.delivery_bytes.add(buffer.len() as u64);
            match stream.write_chunk(buffer.split().freeze()).await {
                Ok(()) => {}
                Err(WriteError::Stopped(_)) => {
                    hub.counters.protocol_violations.add(1);
                    line.refuse(ErrorCode::ProtocolViolation, "the delivery stream was stopped".into());
                    return Ok(());
                }
                Err(_) => return Err(End::Gone),
            }
            // A write that fits into the window doesn't wait, and the connection must get to send it.
            executor.breathe().await;
        } else if line.is_closing() {
            finish(stream).await;
            return Ok(());
        } else {
            line.delivery.wait().await;
        }
    }
}

/// Waits until all that was written has arrived.
async fn finish(mut stream: SendStream) {
    if stream.finish().is_ok() {
        let _ = stream.stopped().await;
    }
}

fn violation<C: Core>(hub: &Hub<C>, stream: &str, error: &WireError) -> End {
    hub.counters.protocol_violations.add(1);
    End::Refused(error.code(), format!("{stream} stream: {error}"))
}

fn refuse(line: &crate::driver::hub::Line, end: End) {
    if let End::Refused(code, message) = end {
        line.refuse(code, message);
    }
}
