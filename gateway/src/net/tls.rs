//! Whom a Gateway trusts: one certificate by its fingerprint, or whoever has one of given authorities.

use std::{sync::Arc, time::Duration};

use quinn::{ClientConfig, IdleTimeout, TransportConfig, VarInt, crypto::rustls::QuicClientConfig};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};

use crate::Error;

/// What makes a node's certificate good.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// SHA-256 of the certificate. The node prints it.
    Fingerprint([u8; 32]),
    /// PEM of the authorities that may have signed it.
    Roots(Vec<u8>),
}

impl Trust {
    /// 64 hexadecimal digits; colons, spaces and the prefix `SHA256:` do no harm.
    pub(crate) fn fingerprint(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Invalid(format!("fingerprint {text:?}: 64 hexadecimal digits are expected (SHA-256)"));
        let upper = text.trim().to_ascii_uppercase();
        let upper = upper.strip_prefix("SHA256:").or(upper.strip_prefix("SHA-256:")).unwrap_or(&upper);
        let digits: Vec<u8> = upper.bytes().filter(|byte| !b": ".contains(byte)).collect();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut fingerprint = [0; 32];
        for (byte, pair) in fingerprint.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self::Fingerprint(fingerprint))
    }
}

/// TLS 1.3 only, ALPN of the protocol, no early data.
pub(crate) fn client_config(trust: Trust, idle_timeout: Duration) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Invalid(format!("TLS 1.3 is not to be had: {error}")))?;
    let mut tls = match trust {
        Trust::Fingerprint(pinned) => tls
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { pinned, provider }))
            .with_no_client_auth(),
        Trust::Roots(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate =
                    certificate.map_err(|error| Error::Invalid(format!("the roots are not PEM: {error}")))?;
                let added = roots.add(certificate);
                added.map_err(|error| Error::Invalid(format!("one of the roots can't be used: {error}")))?;
            }
            if roots.is_empty() {
                return Err(Error::Invalid("the roots hold no certificate in PEM".into()));
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| Error::Invalid(format!("the roots can't be used: {error}")))?;
            tls.with_webpki_verifier(verifier).with_no_client_auth()
        }
    };
    tls.alpn_protocols = vec![wire::ALPN.to_vec()];
    // What early data says can be said again by others.
    tls.enable_early_data = false;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| Error::Invalid(format!("TLS for QUIC: {error}")))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(idle_timeout)?));
    Ok(config)
}

fn transport(idle_timeout: Duration) -> Result<TransportConfig, Error> {
    let idle = IdleTimeout::try_from(idle_timeout)
        .map_err(|_| Error::Invalid(format!("an idle time of {idle_timeout:?} is too long for QUIC")))?;
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .initial_rtt(INITIAL_RTT)
        // A third, so that two may be lost. A node whose own idle time is shorter hears us answer its heartbeats.
        .keep_alive_interval(Some(idle_timeout / 3))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .datagram_receive_buffer_size(None);
    Ok(transport)
}

/// What a round trip is taken to last before one was seen; a third of what QUIC takes for the internet. A first packet that is lost is sent
/// again after three times as long.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Trusts one certificate, whatever name and dates it bears: who pins it has seen it.
#[derive(Debug)]
struct Pinned {
    pinned: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown: [u8; 32] = Sha256::digest(end_entity).into();
        if shown == self.pinned {
            return Ok(ServerCertVerified::assertion());
        }
        // What is compared is public on both sides, so the comparison may take whatever time it takes.
        Err(rustls::Error::General(format!(
            "its certificate has the fingerprint {}, pinned is {}",
            hex(&shown),
            hex(&self.pinned)
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The text of a local TLS error, without what rustls puts before a verifier's own words.
pub(crate) fn plain_reason(reason: &str) -> String {
    reason.strip_prefix("unexpected error: ").unwrap_or(reason).to_owned()
}

/// Streams that the shard may open: the delivery stream, and one that a later version may add.
const UNI_STREAMS: u32 = 2;

/// Of one stream. A stalled application leaves this much, and what the queue holds, on this side.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Of all streams together. Below their sum, a delivery stream that nobody reads could keep replies from coming.
const RECEIVE_WINDOW_BYTES: u32 = (UNI_STREAMS + 1) * STREAM_WINDOW_BYTES;

const _: () = assert!(RECEIVE_WINDOW_BYTES >= (UNI_STREAMS + 1) * STREAM_WINDOW_BYTES);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use quinn::{Endpoint, ServerConfig, crypto::rustls::QuicServerConfig};
    use rustls_pki_types::PrivateKeyDer;
    use tokio::time::timeout;

    use super::*;

    /// A node that allows early data, keeps nothing alive, and has an idle time ten times as long.
    #[tokio::test]
    async fn the_sdk_keeps_a_quiet_connection_and_sends_no_early_data() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![wire::ALPN.to_vec()];
        tls.max_early_data_size = u32::MAX;
        let server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let node = Endpoint::server(server, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = node.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(incoming) = node.accept().await {
                held.extend(incoming.await.ok());
            }
        });

        let trust = Trust::Fingerprint(Sha256::digest(&certificate).into());
        let config = client_config(trust, Duration::from_secs(2)).unwrap();
        let client = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let connect = || client.connect_with(config.clone(), address, "localhost").unwrap();
        let quiet = connect().await.unwrap();
        let ended = timeout(Duration::from_secs(5), quiet.closed()).await;
        assert!(ended.is_err(), "{ended:?}");
        assert!(connect().into_0rtt().is_err(), "a second session may begin with early data");
        accepting.abort();
    }

    #[test]
    fn fingerprints_are_read_in_their_usual_forms() {
        let plain = "0123456789abcdef".repeat(4);
        let colons = plain.as_bytes().chunks(2).map(|p| std::str::from_utf8(p).unwrap()).collect::<Vec<_>>().join(":");
        let expect = |text: &str| match Trust::fingerprint(text).unwrap() {
            Trust::Fingerprint(bytes) => assert_eq!(hex(&bytes), plain),
            Trust::Roots(_) => unreachable!(),
        };
        for text in
            [plain.clone(), plain.to_uppercase(), format!("SHA256:{colons}"), format!(" sha256:{plain}\n"), colons]
        {
            expect(&text);
        }
        for text in ["", "abc", &"g".repeat(64), &"a".repeat(63), &"é".repeat(32)] {
            assert!(Trust::fingerprint(text).unwrap_err().to_string().contains("64 hexadecimal digits"), "{text}");
        }
    }

    #[test]
    fn roots_that_are_none_are_refused() {
        for pem in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let outcome = client_config(Trust::Roots(pem.into()), Duration::from_secs(30));
            assert!(outcome.unwrap_err().to_string().contains("roots"), "{pem}");
        }
    }
}
