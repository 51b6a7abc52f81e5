//! What a decoder, and what came out of it, keep of what came in.

use super::*;

#[test]
fn a_decoder_keeps_neither_room_nor_packets() {
    let keys = vec![SubscriptionKey { tenant: "t".repeat(1 << 20), id: "i".into() }];
    let bytes = bytes_of(&[Request::Unsubscribe { request: RequestId(1), keys }]).freeze();
    for cut in [0, 3, HEADER_BYTES, 1_000, bytes.len()] {
        let mut decoder = Decoder::<Request>::new(MAX_BODY_BYTES);
        let packet = Bytes::copy_from_slice(&bytes[..cut]);
        decoder.push(packet.clone());
        if cut < bytes.len() {
            assert_eq!(decoder.next(), Ok(None));
            assert!(packet.is_empty() || packet.is_unique(), "a packet is kept, cut at {cut}");
            decoder.push(bytes.slice(cut..));
        }
        assert!(decoder.next().unwrap().is_some());
        assert_eq!(decoder.next(), Ok(None));
        assert!(decoder.is_between_messages());
        assert_eq!(decoder.body.capacity(), 0);
    }
}

/// What is kept of a message is the message: neither the packet that it came in, nor room for more.
#[test]
fn events_hold_their_own_bytes_only() {
    let id = Position { backend: BackendId(1), lineage: Lineage(2), time: 3, k: 4 };
    let entry = |seq| EventEntry {
        seq,
        id,
        operation: Operation::Insert,
        tenant: "t".into(),
        collection: "c".into(),
        document_id: vec![2, 0],
        targets: vec![Target { handle: Handle(5), transition: Transition::Enter, certainty: Certainty::Matched }; 3],
        document: vec![7; 1_000],
    };
    let message = Delivery::Events((1..=100).map(entry).collect());
    let bytes = bytes_of(&[message.clone(), message.clone(), message.clone()]).freeze();
    for cut in [bytes.len() / 3, bytes.len() / 2, bytes.len()] {
        let mut decoder = Decoder::<Delivery>::new(MAX_BODY_BYTES);
        let packet = Bytes::copy_from_slice(&bytes[..cut]);
        decoder.push(packet.clone());
        let mut all_of_them = all(&mut decoder).unwrap();
        decoder.push(bytes.slice(cut..));
        all_of_them.extend(all(&mut decoder).unwrap());
        assert_eq!(all_of_them, [message.clone(), message.clone(), message.clone()]);
        assert!(packet.is_unique() && decoder.piece.is_empty());
        for message in &all_of_them {
            let Delivery::Events(events) = message else { panic!("{message:?}") };
            assert_eq!((events.len(), events.seq(99), events.targets(99).len()), (100, 100, 3));
            assert!(events.bytes() < 100 * (1_000 + 200), "{} bytes", events.bytes());
        }
    }
}
