//! What a node may come to hold, by its bounds, against what this machine or its container has.
//!
//! Counted is what grows with the configuration and with Gateways that don't keep up: each shard's delivery log, and what QUIC holds for a
//! connection in either direction. Subscriptions aren't counted: their number is bounded (`limits.subscriptions_per_node`), but it says
//! nothing about how many there will be.

use std::{fmt, fs, path::Path};

use shards::driver::QuicConfig;

use crate::config::{Config, show_size};

/// What the bounds of a configuration add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    shards: u64,
    log_bytes: u64,
    gateways: u64,
    send_window: u64,
    receive_window: u64,
    socket_bytes: u64,
}

impl Needed {
    pub fn of(config: &Config, shards: usize) -> Self {
        let quic = QuicConfig::default();
        Self {
            shards: shards as u64,
            log_bytes: config.limits.log_bytes,
            gateways: config.limits.gateways,
            send_window: config.quic.send_window,
            receive_window: u64::from(quic.receive_window_bytes),
            socket_bytes: (quic.socket_receive_bytes + quic.socket_send_bytes) as u64,
        }
    }

    pub fn bytes(&self) -> u64 {
        let connections = self.gateways.saturating_mul(self.send_window.saturating_add(self.receive_window));
        let shard = self.log_bytes.saturating_add(connections).saturating_add(self.socket_bytes);
        shard.saturating_mul(self.shards)
    }
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards, log_bytes, gateways, send_window, receive_window, .. } = self;
        write!(
            f,
            "{}: {shards} shards, each with limits.log_bytes = {} and limits.gateways = {gateways} connections of quic.send_window = {} \
             and {} received",
            rounded(self.bytes()),
            show_size(*log_bytes),
            show_size(*send_window),
            show_size(*receive_window)
        )
    }
}

/// Holds the bounds against the budget, and the budget against what there is. The error names the keys; with the key that it is about.
pub fn check(config: &Config, shards: usize, there_is: Option<u64>) -> Result<Needed, (&'static str, String)> {
    let needed = Needed::of(config, shards);
    let budget = match (config.limits.memory, there_is) {
        (Some(budget), Some(there_is)) if budget > there_is => {
            let message =
                format!("is more than this machine or its container has, {}; allowed: up to that", rounded(there_is));
            return Err(("limits.memory", message));
        }
        (Some(budget), _) => budget,
        (None, Some(there_is)) => there_is,
        (None, None) => return Ok(needed),
    };
    if needed.bytes() > budget {
        let what = if config.limits.memory.is_some() { "is" } else { "is what there is:" };
        let message = format!(
            "{what} {}, and Gateways that don't keep up may make the node hold {needed}; allowed: less of these, or more memory",
            rounded(budget)
        );
        return Err(("limits.memory", message));
    }
    Ok(needed)
}

/// Bytes that this process may use: what the machine has, or less where a control group says so. `None` where neither can be read.
pub fn there_is() -> Option<u64> {
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let machine = machine_bytes(&text(Path::new("/proc/meminfo")));
    let groups = text(Path::new("/proc/self/cgroup"));
    let limits = group_files(&groups).into_iter().filter_map(|file| text(Path::new(&file)).trim().parse().ok());
    machine.into_iter().chain(limits).min()
}

/// `MemTotal` of `/proc/meminfo`.
fn machine_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files that limit this process, by `/proc/self/cgroup`: those of its groups and of all above them. A container often shows its own
/// group as the root.
fn group_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{path}/{file}"));
            let Some((above, _)) = path.rsplit_once('/') else { break };
            path = above;
        }
    }
    files
}

/// For people: to a tenth of the largest unit.
fn rounded(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_parts(None, text, []).unwrap()
    }

    #[test]
    fn a_budget_that_the_bounds_exceed_is_refused_with_the_keys_that_make_it() {
        let text = "[limits]\nlog_bytes = \"512MiB\"\ngateways = 1000\n[quic]\nsend_window = \"1MiB\"\n";
        let small = config(text);
        // Of each shard: 512 MiB, 1,000 × 2 MiB, and 8 MiB of socket buffers.
        let each = (512 + 2_000 + 8) << 20;
        assert_eq!(Needed::of(&small, 3).bytes(), 3 * each);
        assert!(check(&small, 3, Some(3 * each)).is_ok());
        let (key, message) = check(&small, 3, Some(3 * each - 1)).unwrap_err();
        assert_eq!(key, "limits.memory");
        for part in [
            "is what there is: 7.4 GiB",
            "3 shards",
            "limits.log_bytes = 512MiB",
            "limits.gateways = 1000",
            "quic.send_window = 1MiB",
        ] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
        // Nothing is known of the machine: nothing is refused, unless it is said.
        assert!(check(&small, 3, None).is_ok());
        let said = config(&text.replace("gateways", "memory = \"2GiB\"\ngateways"));
        assert!(check(&said, 1, None).unwrap_err().1.contains("is 2.0 GiB"));
        assert!(
            check(&said, 1, Some(1 << 30))
                .unwrap_err()
                .1
                .contains("more than this machine or its container has, 1.0 GiB")
        );
    }

    #[test]
    fn the_defaults_fit_a_small_machine() {
        assert!(check(&Config::default(), 1, Some(512 << 20)).is_ok());
        assert!(check(&Config::default(), 3, Some(2 << 30)).is_ok());
    }

    #[test]
    fn the_lowest_limit_of_a_process_counts() {
        assert_eq!(machine_bytes("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(machine_bytes(""), None);
        assert_eq!(
            group_files("0::/a/b\n"),
            ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"]
        );
        assert_eq!(
            group_files("5:cpu:/x\n4:hugetlb,memory:/x\n"),
            ["/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        );
        assert_eq!(group_files("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        assert!(there_is().is_none_or(|bytes| bytes > 1 << 20));
    }
}
