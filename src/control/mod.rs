//! The control side: HTTP, the admission ledger, credentials, health and metrics.
//!
//! | to change | look in |
//! |---|---|
//! | who may subscribe, quotas | `admission`, and `ledger` for where that is kept |
//! | who talks to whom about it | `registry` |
//! | tokens | `credentials` |
//! | a path of the HTTP API | `http` |
//! | what health and topology know | `state` |
//! | what the web page and `streamer top` show | `live`, `http/page.html` |
//!
//! Two threads: `streamer-control` serves HTTP, `streamer-registrar` owns the ledger and compiles predicates, with the stack that this
//! needs. Neither is ever waited for by the match path.

pub mod admission;
pub mod credentials;
mod http;
mod ledger;
mod live;
mod metrics;
pub mod registry;
mod server;
mod state;

use std::net::IpAddr;

pub use credentials::{Credentials, hash_token};
pub use live::{Live, LiveBackend, LiveHot, LiveShard, quantile_us};
pub use metrics::metric_of;
pub use registry::{ShardChannels, ShardReceivers, ShardSenders, channels};
pub use server::{ControlDeps, ControlHandle, StartError, start};
pub use state::{Health, NodeState, Reload, ShardPlace, Topology};

/// Whether `host` or `host:port` is a name or address of this machine's loopback.
pub fn names_loopback(host: &str) -> bool {
    let is_loopback = |name: &str| {
        let name = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    is_loopback(host)
        || host.rsplit_once(':').is_some_and(|(name, port)| port.parse::<u16>().is_ok() && is_loopback(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_this_machine() {
        for (host, expect) in [
            ("127.0.0.1:8083", true),
            ("127.9.9.9", true),
            ("localhost:8083", true),
            ("LOCALHOST", true),
            ("[::1]:8083", true),
            ("::1", true),
            ("", false),
            ("10.0.0.1:8083", false),
            ("localhost.example.org:8083", false),
            ("127.0.0.1.example.org", false),
            ("example.org:1", false),
        ] {
            assert_eq!(names_loopback(host), expect, "{host}");
        }
    }
}
