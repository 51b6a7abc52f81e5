//! How a Gateway comes to be.

use std::{collections::hash_map::RandomState, hash::BuildHasher, time::Duration};

use tokio::time::timeout;

use crate::{
    Error, Gateway, SavedPositions, Subscription,
    core::{CoreConfig, GatewayCore, Input, Millis},
    gateway::apply_saved,
    net::{Endpoints, Shared, tls, tls::Trust},
};

/// Settings of a [`Gateway`]. An address, an id and what to trust are needed, the rest has defaults.
#[derive(Clone, Debug)]
pub struct GatewayBuilder {
    addresses: Vec<String>,
    gateway: String,
    token: String,
    trust: Option<TrustSetting>,
    server_name: Option<String>,
    agent: String,
    manual_ack: bool,
    queue_bytes_max: usize,
    idle_timeout: Duration,
    connect_timeout: Duration,
    saved: SavedPositions,
    subscriptions: Vec<Subscription>,
}

#[derive(Clone, Debug)]
enum TrustSetting {
    Fingerprint(String),
    Roots(Vec<u8>),
}

impl Default for GatewayBuilder {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            gateway: String::new(),
            token: String::new(),
            trust: None,
            server_name: None,
            agent: concat!("streamer-gateway/", env!("CARGO_PKG_VERSION")).into(),
            manual_ack: false,
            queue_bytes_max: QUEUE_BYTES_MAX,
            idle_timeout: IDLE_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            saved: SavedPositions::default(),
            subscriptions: Vec::new(),
        }
    }
}

impl GatewayBuilder {
    /// `host:port` of any shard of the node; it tells where the others are. Several may be given, and are tried in turn.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// This Gateway's id. Two processes can't use one id at a time: the newer one ends the older one.
    pub fn gateway(mut self, id: impl Into<String>) -> Self {
        self.gateway = id.into();
        self
    }

    /// What proves that this is the Gateway. Not needed where the node runs open on loopback.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = token.into();
        self
    }

    /// Trusts the one certificate with this SHA-256 fingerprint, 64 hexadecimal digits. The node prints its own.
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.trust = Some(TrustSetting::Fingerprint(fingerprint.into()));
        self
    }

    /// Trusts certificates that one of these authorities signed, in PEM, for the host of the address.
    pub fn roots_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.trust = Some(TrustSetting::Roots(pem.into()));
        self
    }

    /// The name that the node's certificate is for, where it is not the host of the address.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Name and version of the application, for the node's logs.
    pub fn agent(mut self, agent: impl Into<String>) -> Self {
        self.agent = agent.into();
        self
    }

    /// An item is done when [`Event::ack`](crate::Event::ack) or [`GatewayHandle::done`](crate::GatewayHandle::done) says
    /// so, instead of when the next one is asked for.
    pub fn manual_ack(mut self) -> Self {
        self.manual_ack = true;
        self
    }

    /// Bytes of one shard's items that may wait for the application, or for its being done with them, before no more is
    /// read. With acks by hand: what may be unacknowledged. 8 MiB unless set.
    pub fn queue_bytes_max(mut self, bytes: usize) -> Self {
        self.queue_bytes_max = bytes;
        self
    }

    /// Without a packet for this long a connection is given up; kept alive at a third of it. 15 s unless set. The node's own
    /// may be shorter.
    pub fn idle_timeout(mut self, idle: Duration) -> Self {
        self.idle_timeout = idle;
        self
    }

    /// How long [`GatewayBuilder::connect`] tries. 10 s unless set. Reconnecting later is not limited.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Positions of an earlier process: subscriptions that don't say where they begin go on from there.
    pub fn resume_from(mut self, saved: SavedPositions) -> Self {
        self.saved = saved;
        self
    }

    /// Subscribes from the start. A node that has just started then knows of it before it goes on reading, which spares it
    /// from reading things twice.
    pub fn subscription(mut self, subscription: Subscription) -> Self {
        self.subscriptions.push(subscription);
        self
    }

    /// Connects. Comes back when a shard has welcomed this Gateway; the others follow by themselves. What can't get better
    /// by trying again (a refused token, another certificate than the pinned one) is an error at once.
    ///
    /// Must be called within a tokio runtime, on which the connections live from then on.
    pub async fn connect(self) -> Result<Gateway, Error> {
        let id_is_good = (1..=GATEWAY_ID_MAX).contains(&self.gateway.len())
            && self.gateway.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        if !id_is_good {
            let what = format!("Gateway id {:?}: 1 to {GATEWAY_ID_MAX} of [a-zA-Z0-9_-] are allowed", self.gateway);
            return Err(Error::Invalid(what));
        }
        if self.addresses.is_empty() {
            return Err(Error::Invalid("no address: host:port of any shard is needed".into()));
        }
        let trust = match self.trust {
            Some(TrustSetting::Fingerprint(text)) => Trust::fingerprint(&text)?,
            Some(TrustSetting::Roots(pem)) => Trust::Roots(pem),
            None => {
                let what = "nothing to trust: the fingerprint of the node's certificate or PEM roots are needed";
                return Err(Error::Invalid(what.into()));
            }
        };
        let endpoints = Endpoints::new(tls::client_config(trust, self.idle_timeout)?);
        let config = CoreConfig {
            gateway: self.gateway,
            token: self.token,
            agent: self.agent,
            addresses: self.addresses,
            can_verify: true,
            queue_bytes_max: self.queue_bytes_max.max(1),
            // Every Gateway its own row of numbers: they are there so that Gateways don't come back together.
            jitter_seed: RandomState::new().hash_one(std::process::id()),
        };
        let saved = self.saved;
        let mut items = Vec::with_capacity(self.subscriptions.len());
        for subscription in self.subscriptions {
            items.push(apply_saved(&saved, subscription.into_item()?));
        }
        let start = |now: Millis| {
            let mut core = GatewayCore::new(config, now);
            items.into_iter().for_each(|item| core.handle(Input::Subscribe(item), now));
            core
        };
        let shared = Shared::start(start, endpoints, self.server_name);
        let gateway = Gateway::new(shared, saved, self.manual_ack);
        match timeout(self.connect_timeout, gateway.first_contact()).await {
            Ok(Ok(())) => Ok(gateway),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                let last = gateway.status().error.unwrap_or_else(|| "no answer yet".into());
                // Not an overflow: a timeout of more milliseconds than that can't have passed.
                let timeout_ms = self.connect_timeout.as_millis() as u64;
                Err(Error::Unreachable { timeout_ms, last })
            }
        }
    }
}

const QUEUE_BYTES_MAX: usize = 8 << 20;

const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// As the protocol has it.
const GATEWAY_ID_MAX: usize = 128;
