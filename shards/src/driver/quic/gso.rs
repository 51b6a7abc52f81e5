//! Whether segmentation offload does what the kernel says that it can: found out by sending, before anybody relies on it.
//!
//! A kernel says yes as soon as it knows the socket option. A sandbox that passes the option on, or an old driver, then fails with
//! `EINVAL`, or sends nothing, or sends one datagram where there should be several. A network card's own faults can't be found here, since
//! what a machine sends to itself doesn't pass it: an error of the card at run time makes `quinn` go on without, and what a card drops
//! without a word is what `quic.gso = "off"` is for.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use quinn::udp::{Transmit, UdpSocketState};

/// As large as packets of QUIC are at least.
const SEGMENT_BYTES: usize = 1_200;
const SEGMENTS: usize = 8;
/// On one machine it takes microseconds; a busy one may be late.
const ARRIVE_WITHIN: Duration = Duration::from_secs(2);

/// Sends segments from a socket on this address to another one, and looks at what arrives. The error says what went wrong.
pub fn gso_self_test(ip: IpAddr) -> Result<(), String> {
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let bind = || UdpSocket::bind((ip, 0)).and_then(|socket| Ok((socket.local_addr()?, socket)));
    let open = || -> io::Result<_> {
        let ((_, sender), (to, receiver)) = (bind()?, bind()?);
        let state = UdpSocketState::new((&sender).into())?;
        Ok((sender, state, receiver, to))
    };
    let (sender, state, receiver, to) = open().map_err(|error| format!("no socket to try it on: {error}"))?;
    if state.max_gso_segments() < SEGMENTS {
        return Err("the kernel doesn't offer it".into());
    }
    // Errors are told by `try_send` only; `send` takes most of them for packets that were lost.
    try_out(to, &receiver, |transmit| state.try_send((&sender).into(), transmit))
}

fn try_out(
    to: SocketAddr,
    receiver: &UdpSocket,
    send: impl FnOnce(&Transmit<'_>) -> io::Result<()>,
) -> Result<(), String> {
    let contents: Vec<u8> = (0..SEGMENTS).flat_map(|segment| [segment as u8; SEGMENT_BYTES]).collect();
    let transmit =
        Transmit { destination: to, ecn: None, contents: &contents, segment_size: Some(SEGMENT_BYTES), src_ip: None };
    send(&transmit).map_err(|error| format!("sending {SEGMENTS} segments fails: {error}"))?;
    let mut buffer = vec![0; contents.len() + 1];
    let deadline = Instant::now() + ARRIVE_WITHIN;
    for segment in 0..SEGMENTS {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let received = receiver.set_read_timeout(Some(left)).and_then(|()| receiver.recv(&mut buffer));
        let length = received.map_err(|_| format!("of {SEGMENTS} segments only {segment} arrive"))?;
        if buffer[..length] != contents[segment * SEGMENT_BYTES..][..SEGMENT_BYTES] {
            return Err(format!(
                "segments arrive as something else: {length} bytes where segment {segment} of {SEGMENT_BYTES} was sent"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found with a sender that does this instead.
    fn found(send: impl FnOnce(&UdpSocket, &Transmit<'_>) -> io::Result<()>) -> Result<(), String> {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        try_out(receiver.local_addr().unwrap(), &receiver, |transmit| send(&sender, transmit))
    }

    fn segments<'t>(transmit: &'t Transmit<'_>) -> std::slice::Chunks<'t, u8> {
        transmit.contents.chunks(transmit.segment_size.unwrap())
    }

    #[test]
    fn segments_that_arrive_as_sent_are_good() {
        found(|socket, transmit| {
            segments(transmit).try_for_each(|part| socket.send_to(part, transmit.destination).map(drop))
        })
        .unwrap();
    }

    #[test]
    fn each_way_of_not_working_is_found_and_named() {
        let refused = found(|_, _| Err(io::Error::from_raw_os_error(22))).unwrap_err();
        assert!(refused.contains("Invalid argument"), "{refused}");
        let whole = found(|socket, transmit| socket.send_to(transmit.contents, transmit.destination).map(drop));
        assert!(whole.unwrap_err().contains("9600 bytes where segment 0 of 1200 was sent"));
        let some = found(|socket, transmit| {
            segments(transmit).take(3).try_for_each(|part| socket.send_to(part, transmit.destination).map(drop))
        });
        assert_eq!(some.unwrap_err(), "of 8 segments only 3 arrive");
        assert_eq!(found(|_, _| Ok(())).unwrap_err(), "of 8 segments only 0 arrive");
    }

    #[test]
    fn the_kernel_is_asked_on_every_kind_of_address() {
        // Whatever it finds: it ends, and says so for both the same.
        let one = gso_self_test(Ipv4Addr::LOCALHOST.into());
        assert_eq!(gso_self_test(Ipv4Addr::UNSPECIFIED.into()), one);
        println!("segmentation offload: {one:?}");
    }
}
