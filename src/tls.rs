//! The node's certificate: the configured one, or one that it makes for itself and keeps.
//!
//! Invariants:
//! - TLS 1.3 only, on ring, with the protocol's ALPN and without 0-RTT.
//! - A self-made certificate is made once: Gateways pin its fingerprint. Its key can be read by the node's user only.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};

use crate::config::Config;

/// What a QUIC endpoint is given, and what Gateways pin.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub server: Arc<rustls::ServerConfig>,
    /// What its connections are shown, and may be replaced.
    shown: Arc<Shown>,
    /// SHA-256 of the leaf certificate's DER, in hexadecimal.
    pub fingerprint: String,
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether the node made it for itself.
    pub self_made: bool,
}

/// The certificate that connections see. One that is replaced is seen by those that come after.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificate {
    /// Has new connections of everybody who was given this one's `server` see another.
    pub fn replace(&mut self, other: Self) {
        let Self { shown, fingerprint, chain, self_made, .. } = other;
        self.shown.0.store(shown.0.load_full());
        (self.fingerprint, self.chain, self.self_made) = (fingerprint, chain, self_made);
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{what} {path:?} can't be read: {why}; allowed: a readable PEM file")]
    Unreadable { what: &'static str, path: PathBuf, why: String },
    #[error(
        "certificate {0:?} holds no certificate; allowed: a PEM file with the node's certificate first, then its chain"
    )]
    Empty(PathBuf),
    #[error(
        "key {key:?} does not go with certificate {certificate:?}; allowed: the private key that the certificate was made for"
    )]
    Mismatched { certificate: PathBuf, key: PathBuf },
    #[error("certificate {certificate:?} with key {key:?} can't be used: {why}")]
    Unusable { certificate: PathBuf, key: PathBuf, why: String },
    #[error("the node's own certificate can't be made: {0}")]
    Making(String),
    #[error("the node's own certificate can't be kept in {path:?}: {source}")]
    Keeping { path: PathBuf, source: io::Error },
    #[error(
        "{certificate:?} is there without its key {key:?}; put the key back, or remove the certificate to have a new pair made, whose fingerprint Gateways must then pin"
    )]
    HalfKept { certificate: PathBuf, key: PathBuf },
}

/// The configured certificate; without one, that of the data folder, made if it isn't there yet.
pub fn load_or_make(config: &Config) -> Result<Certificate, CertificateError> {
    if let Some(files) = &config.tls.files {
        return load(&files.certificate.value, &files.key.value, false);
    }
    let folder = config.node.data_dir.join("tls");
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    match (certificate.exists(), key.exists()) {
        (true, true) => {}
        (true, false) => return Err(CertificateError::HalfKept { certificate, key }),
        // A key alone is what a stop in the middle of making leaves: it has served nobody yet.
        (false, _) => make(&folder, &certificate, &key, &config.advertised_host())?,
    }
    load(&certificate, &key, true)
}

/// Reads a pair of PEM files and makes sure that they go together.
pub fn load(certificate: &Path, key: &Path, self_made: bool) -> Result<Certificate, CertificateError> {
    let unreadable = |what, path: &Path, why: String| CertificateError::Unreadable { what, path: path.into(), why };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| unreadable("certificate", certificate, error.to_string()))?;
    let Some(leaf) = chain.first() else { return Err(CertificateError::Empty(certificate.into())) };
    let fingerprint = hexadecimal(&Sha256::digest(leaf));
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("key", key, error.to_string()))?;
    let unusable = |error: rustls::Error| match error {
        rustls::Error::InconsistentKeys(_) => {
            CertificateError::Mismatched { certificate: certificate.into(), key: key.into() }
        }
        error => {
            CertificateError::Unusable { certificate: certificate.into(), key: key.into(), why: error.to_string() }
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pair = CertifiedKey::from_der(chain.clone(), private, &provider).map_err(unusable)?;
    let shown = Arc::new(Shown(ArcSwap::from_pointee(pair)));
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_cert_resolver(shown.clone());
    server.alpn_protocols = vec![wire::ALPN.to_vec()];
    server.max_early_data_size = 0;
    Ok(Certificate { server: Arc::new(server), shown, fingerprint, chain, self_made })
}

fn make(folder: &Path, certificate: &Path, key: &Path, host: &str) -> Result<(), CertificateError> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    if !names.iter().any(|name| name == host) {
        names.push(host.to_owned());
    }
    let making = |error: rcgen::Error| CertificateError::Making(error.to_string());
    let pair = rcgen::KeyPair::generate().map_err(making)?;
    let mut parameters = rcgen::CertificateParams::new(names).map_err(making)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "streamer node");
    let made = parameters.self_signed(&pair).map_err(making)?;
    let keep = |path: &Path, text: &str, mode| {
        write_whole(path, text, mode).map_err(|source| CertificateError::Keeping { path: path.into(), source })
    };
    fs::create_dir_all(folder).map_err(|source| CertificateError::Keeping { path: folder.into(), source })?;
    // The key first: a certificate that is there has its key.
    keep(key, &pair.serialize_pem(), 0o600)?;
    keep(certificate, &made.pem(), 0o644)
}

/// Whole or not at all, also across a power cut.
fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let part = path.with_extension("part");
    let _ = fs::remove_file(&part);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(folder: &Path, text: &str) -> Config {
        let text = format!("[node]\ndata_dir = {:?}\n{text}", folder.join("data"));
        Config::from_parts(None, &text, []).unwrap()
    }

    #[test]
    fn makes_one_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), "[quic]\nadvertise = \"node-1.internal\"\n");
        let first = load_or_make(&config).unwrap();
        assert!(first.self_made);
        assert_eq!(first.fingerprint.len(), 64);
        assert_eq!(first.server.alpn_protocols, [wire::ALPN]);
        assert_eq!(first.server.max_early_data_size, 0);
        let key = folder.path().join("data/tls/key.pem");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_make(&config).unwrap().fingerprint, first.fingerprint);
        // The advertised name stands in the certificate as it is.
        let der = first.chain[0].as_ref();
        assert!(der.windows(15).any(|window| window == b"node-1.internal"));

        fs::remove_file(&key).unwrap();
        assert!(load_or_make(&config).unwrap_err().to_string().contains("without its key"));
        fs::remove_file(folder.path().join("data/tls/certificate.pem")).unwrap();
        assert_ne!(load_or_make(&config).unwrap().fingerprint, first.fingerprint);
    }

    #[test]
    fn configured_files_and_what_may_be_wrong_with_them() {
        let folder = tempfile::tempdir().unwrap();
        load_or_make(&config(folder.path(), "")).unwrap();
        let own = folder.path().join("data/tls");
        let (certificate, key) = (own.join("certificate.pem"), own.join("key.pem"));
        assert!(!load(&certificate, &key, false).unwrap().self_made);

        let other = tempfile::tempdir().unwrap();
        load_or_make(&config(other.path(), "")).unwrap();
        let other_key = other.path().join("data/tls/key.pem");
        let nothing = folder.path().join("nothing.pem");
        let empty = folder.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        for (certificate, key, word) in [
            (&certificate, &other_key, "does not go with"),
            (&nothing, &key, "can't be read"),
            (&certificate, &nothing, "can't be read"),
            (&empty, &key, "holds no certificate"),
            (&certificate, &certificate, "key"),
        ] {
            let error = load(certificate, key, false).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
