use super::*;
use crate::RequestId;

#[test]
fn a_message_comes_back() {
    let mut buffer = BytesMut::new();
    encode_request(&Request::SyncDone { request: RequestId(7) }, &mut buffer);
    let mut decoder = Decoder::<Request>::new(MAX_BODY_BYTES);
    decoder.push(buffer.freeze());
    assert_eq!(decoder.next(), Ok(Some(Request::SyncDone { request: RequestId(7) })));
    assert_eq!(decoder.next(), Ok(None));
}
