//! `streamer check`: everything that is wrong with a configuration, and with this machine for it.
//!
//! First the text: keys, values, what goes together. Then, if that is well, what only the machine knows: cores, ports, certificate
//! files, folders, the executor. Nothing is left behind by looking.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use shards::driver::{Preflight, gso_self_test};

use super::{ConfigFile, Failed, print};
use crate::{
    affinity,
    config::{BackendKind, Config, Gso, Origin, Problem, Problems, show_size},
    ingest::source::mongodb::redact_uri,
    memory, reload, tls,
};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(args: &CheckArgs) -> Result<ExitCode, Failed> {
    let findings = match args.config.load() {
        Ok(config) => on_this_machine(&config),
        Err(Problems(problems)) => Findings { problems, ..Findings::default() },
    };
    let _ = print(findings.to_string().trim_end());
    Ok(if findings.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Default)]
struct Findings {
    problems: Vec<Problem>,
    /// What works, but may not be meant.
    warnings: Vec<String>,
    /// What the node would do.
    facts: Vec<String>,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems.iter().try_for_each(|problem| writeln!(f, "error: {problem}"))?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))?;
        if self.problems.is_empty() {
            self.facts.iter().try_for_each(|fact| writeln!(f, "{fact}"))?;
            return writeln!(f, "the configuration is fine");
        }
        let plural = if self.problems.len() == 1 { "" } else { "s" };
        writeln!(f, "{} problem{plural}", self.problems.len())
    }
}

impl Findings {
    fn problem(&mut self, origin: &Origin, key: &str, value: impl fmt::Debug, message: impl Into<String>) {
        let (origin, value) = (origin.clone(), Some(format!("{value:?}")));
        self.problems.push(Problem { origin, key: key.into(), value, message: message.into() });
    }
}

/// The checks that depend on the machine. They find all that is wrong, not only the first.
fn on_this_machine(config: &Config) -> Findings {
    let mut findings = Findings::default();
    let shards = check_cores(config, &mut findings);
    check_http(config, &mut findings);
    check_quic(config, shards, &mut findings);
    check_memory(config, shards, &mut findings);
    check_gso(config, &mut findings);
    check_runtime(config, shards, &mut findings);
    check_tls(config, &mut findings);
    check_folders(config, &mut findings);
    if !config.is_open() && config.admin.token_sha256.is_none() {
        findings.warnings.push(
            "gateways are configured, but no [admin] token_sha256: nobody can write documents or read topology and metrics"
                .into(),
        );
    }
    if config.is_open() {
        findings.facts.push("open: no [[gateways]] are configured, so the node listens on loopback only".into());
    }
    let reloading: Vec<&str> = reload::reloading().collect();
    findings.facts.push(format!("reloads on SIGHUP: {}; all else needs a restart", reloading.join(", ")));
    for backend in &config.backends {
        findings.facts.push(match &backend.kind {
            BackendKind::Embedded(embedded) => {
                format!("backend {:?}: embedded in {}", backend.name, embedded.directory.display())
            }
            BackendKind::Mongodb(mongodb) => {
                format!("backend {:?}: MongoDB at {}", backend.name, redact_uri(&mongodb.uri))
            }
        });
    }
    findings
}

/// How many shards there would be; one where that can't be told.
fn check_cores(config: &Config, findings: &mut Findings) -> usize {
    let wanted = &config.affinity;
    let machine = match affinity::Topology::read() {
        Ok(machine) => machine,
        Err(error) => {
            findings.warnings.push(format!("the cores that this process is allowed can't be read: {error}"));
            return 1;
        }
    };
    match affinity::place(&wanted.ingest.value, &wanted.control.value, &wanted.shards.value, &machine) {
        Ok(placement) => {
            findings.facts.push(format!(
                "cores: control {}, ingest {}, shards {}",
                affinity::show(&placement.control),
                affinity::show(&placement.ingest),
                affinity::show(&placement.shards)
            ));
            findings.warnings.extend(placement.warnings);
            placement.shards.len()
        }
        Err(misplaced) => {
            for misplaced in misplaced {
                let given = match misplaced.key {
                    "ingest" => &wanted.ingest,
                    "control" => &wanted.control,
                    _ => &wanted.shards,
                };
                let key = format!("affinity.{}", misplaced.key);
                findings.problem(&given.origin, &key, given.value.to_string(), misplaced.message);
            }
            1
        }
    }
}

fn check_http(config: &Config, findings: &mut Findings) {
    let listen = &config.http.listen;
    if let Err(error) = TcpListener::bind(listen.value) {
        findings.problem(
            &listen.origin,
            "http.listen",
            listen.value.to_string(),
            cannot_listen("TCP", listen.value, &error),
        );
    }
}

fn check_quic(config: &Config, shards: usize, findings: &mut Findings) {
    let listen = &config.quic.listen;
    let first = listen.value.port();
    let mut shown = false;
    // All are held until the end, so that two shards can't find the same port free.
    let mut held = Vec::new();
    for shard in 0..shards {
        let port = match first {
            0 => Some(0),
            first => u16::try_from(usize::from(first) + shard).ok(),
        };
        let Some(port) = port else {
            let last = usize::from(first) + shards - 1;
            let message = format!(
                "has no port for each of {shards} shards, the last of which would be {last}; allowed: up to {}",
                65_536 - shards
            );
            findings.problem(&listen.origin, "quic.listen", listen.value.to_string(), message);
            break;
        };
        let address = SocketAddr::new(listen.value.ip(), port);
        match UdpSocket::bind(address) {
            Ok(socket) => held.push(socket),
            // A wrong address is wrong for all shards alike.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse || !shown => {
                shown = true;
                let message = format!("{} (shard {shard})", cannot_listen("UDP", address, &error));
                findings.problem(&listen.origin, "quic.listen", listen.value.to_string(), message);
            }
            Err(_) => {}
        }
    }
}

fn cannot_listen(protocol: &str, address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("can't be listened on: {protocol} {address} is in use; allowed: a free port, or port 0 for any")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("can't be listened on: {} is no address of this machine; allowed: one of its own", address.ip())
        }
        io::ErrorKind::PermissionDenied => {
            format!("can't be listened on: {protocol} {address} needs privileges; allowed: a port above 1023")
        }
        _ => format!("can't be listened on: {protocol} {address}: {error}"),
    }
}

fn check_memory(config: &Config, shards: usize, findings: &mut Findings) {
    match memory::check(config, shards, memory::there_is()) {
        Ok(needed) => findings.facts.push(format!("memory by bounds: {needed}")),
        Err((key, message)) => {
            let value = config.limits.memory.map_or_else(|| "auto".to_owned(), show_size);
            findings.problem(&Origin::Absent, key, value, message);
        }
    }
}

fn check_gso(config: &Config, findings: &mut Findings) {
    if config.quic.gso == Gso::Off {
        return;
    }
    match (gso_self_test(config.quic.listen.value.ip()), config.quic.gso) {
        (Ok(()), _) => findings.facts.push("segmentation offload: works".into()),
        (Err(why), Gso::On) => findings.warnings.push(format!(
            "quic.gso = \"on\", and segmentation offload doesn't work here: {why}. Gateways may get no data"
        )),
        (Err(why), _) => findings.facts.push(format!("segmentation offload: not used, {why}")),
    }
}

fn check_runtime(config: &Config, shards: usize, findings: &mut Findings) {
    match Preflight::check(shards).decide(config.node.runtime.into()) {
        Ok(used) => findings.facts.push(format!("runtime: {used}")),
        Err(unavailable) => {
            let message =
                format!("can't be had: {}. {}; allowed: \"auto\", \"tokio\"", unavailable.missing, unavailable.remedy);
            findings.problem(&Origin::Absent, "node.runtime", "glommio", message);
        }
    }
}

fn check_tls(config: &Config, findings: &mut Findings) {
    let Some(files) = &config.tls.files else { return };
    match tls::load(&files.certificate.value, &files.key.value, false) {
        Ok(certificate) => findings.facts.push(format!("certificate (SHA-256): {}", certificate.fingerprint)),
        Err(error) => {
            let (key, given) = match &error {
                tls::CertificateError::Unreadable { what: "key", .. } | tls::CertificateError::Mismatched { .. } => {
                    ("tls.key", &files.key)
                }
                _ => ("tls.certificate", &files.certificate),
            };
            findings.problem(&given.origin, key, &given.value, format!("can't be used: {error}"));
        }
    }
}

fn check_folders(config: &Config, findings: &mut Findings) {
    let data = ("node.data_dir".to_owned(), config.node.data_dir.clone());
    let stores = config.backends.iter().enumerate().filter_map(|(index, backend)| match &backend.kind {
        // Those within the data folder go with it.
        BackendKind::Embedded(embedded) if !embedded.directory.starts_with(&config.node.data_dir) => {
            Some((format!("backends[{index}].directory"), embedded.directory.clone()))
        }
        _ => None,
    });
    for (key, folder) in std::iter::once(data).chain(stores) {
        if let Err(message) = writable(&folder) {
            findings.problem(&Origin::Absent, &key, &folder, message);
        }
    }
}

/// Whether files can be made in this folder, or it itself in the nearest folder that is there.
fn writable(folder: &Path) -> Result<(), String> {
    const ALLOWED: &str = "allowed: a folder that this user may write to";
    let mut nearest = PathBuf::from(folder);
    while !nearest.exists() {
        let above = nearest.parent().map(Path::to_path_buf).unwrap_or_default();
        if above.as_os_str().is_empty() {
            nearest = PathBuf::from(".");
            break;
        }
        nearest = above;
    }
    if !nearest.is_dir() {
        return Err(format!("can't be used: {} is not a folder; {ALLOWED}", nearest.display()));
    }
    // It has no name, so it is gone with its handle, also if the process ends here.
    match tempfile::tempfile_in(&nearest) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("can't be written to: {}: {error}; {ALLOWED}", nearest.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Findings {
        let defaults = "[http]\nlisten = \"127.0.0.1:0\"\n[quic]\nlisten = \"127.0.0.1:0\"\n";
        let text = if text.contains("[http]") { text.to_owned() } else { format!("{defaults}{text}") };
        on_this_machine(&Config::from_parts(Some("s.toml".into()), &text, []).unwrap())
    }

    #[test]
    fn a_good_configuration_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let findings = check(&format!("[node]\ndata_dir = {:?}\n", folder.path().join("a/b/c")));
        assert!(findings.problems.is_empty(), "{findings}");
        assert!(findings.to_string().ends_with("the configuration is fine\n"), "{findings}");
        let reloading = findings.facts.iter().find(|fact| fact.starts_with("reloads on SIGHUP: ")).unwrap();
        assert!(reloading.contains("log.level") && !reloading.contains("http.listen"), "{reloading}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (http, quic) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
        let findings = check(&format!(
            "[http]\nlisten = \"{http}\"\n[quic]\nlisten = \"{quic}\"\n[node]\ndata_dir = {:?}\n\
             [affinity]\ningest = \"1000\"\n[tls]\ncertificate = {file:?}\nkey = {file:?}\n",
            file.join("x"),
        ));
        let text = findings.to_string();
        for expect in [
            format!("error: s.toml:2: http.listen = \"{http}\" can't be listened on: TCP {http} is in use; allowed: a free port"),
            format!("error: s.toml:4: quic.listen = \"{quic}\" can't be listened on: UDP {quic} is in use"),
            "error: s.toml:8: affinity.ingest = \"1000\" names core 1000, which is not allowed to this process; allowed: ".into(),
            "error: s.toml:10: tls.certificate = ".into(),
            "holds no certificate".into(),
            "node.data_dir = ".into(),
            "is not a folder".into(),
            "\n5 problems\n".into(),
        ] {
            assert!(text.contains(&expect), "{expect} is not in:\n{text}");
        }
    }

    #[test]
    fn bounds_that_exceed_the_memory_are_a_problem() {
        let text = check("[limits]\nlog_bytes = \"512GiB\"\n").to_string();
        assert!(text.contains("limits.memory = \"auto\" is what there is: "), "{text}");
        assert!(text.contains("limits.log_bytes = 512GiB"), "{text}");
    }

    #[test]
    fn ports_run_out_and_shards_may_share_a_core() {
        let core = affinity::Topology::read().unwrap().numbers()[0];
        let findings = check(&format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[quic]\nlisten = \"127.0.0.1:65535\"\n[affinity]\nshards = \"{core},{core}\"\n"
        ));
        let text = findings.to_string();
        assert!(
            text.contains("has no port for each of 2 shards, the last of which would be 65536; allowed: up to 65534"),
            "{text}"
        );
        assert!(text.contains("warning: several shards share core"), "{text}");
    }
}
