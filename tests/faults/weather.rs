//! The network between Gateways and shards: UDP on loopback that loses, repeats, delays and reorders packets, or swallows all of them.
//!
//! Each shard's *advertised* address is a socket of this proxy; for each peer that sends there, another socket speaks to the shard. What
//! becomes of a packet is drawn from a seed.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{net::UdpSocket, sync::Mutex, task::JoinHandle};

/// What becomes of packets. Chances are in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    pub(crate) lost: u32,
    pub(crate) repeated: u32,
    /// Delayed by up to `delay_ms`, and so overtaken by others.
    pub(crate) delayed: u32,
    pub(crate) delay_ms: u64,
    /// Nothing reaches the node.
    pub(crate) deaf_node: bool,
    /// Nothing reaches Gateways.
    pub(crate) deaf_gateways: bool,
}

impl Weather {
    pub(crate) const FAIR: Self =
        Self { lost: 0, repeated: 0, delayed: 0, delay_ms: 0, deaf_node: false, deaf_gateways: false };
    pub(crate) const FOUL: Self =
        Self { lost: 50, repeated: 30, delayed: 200, delay_ms: 30, deaf_node: false, deaf_gateways: false };
    pub(crate) const BLACKHOLE: Self = Self { deaf_node: true, deaf_gateways: true, ..Self::FAIR };
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Packets {
    pub(crate) passed: u64,
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    pub(crate) delayed: u64,
    pub(crate) swallowed: u64,
}

struct Sky {
    weather: Weather,
    random: StdRng,
    packets: Packets,
}

#[derive(Clone, Copy)]
enum Towards {
    Node,
    Gateway,
}

pub(crate) struct Proxy {
    sky: Arc<Mutex<Sky>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// From ports `front`, `front` + 1, … to `back`, `back` + 1, …
    pub(crate) async fn start(front: u16, back: u16, shards: u16, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let sky = Arc::new(Mutex::new(Sky { weather: Weather::FAIR, random, packets: Packets::default() }));
        let mut tasks = Vec::new();
        for shard in 0..shards {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, front + shard)).await.expect("the port was free");
            let node = SocketAddr::from((Ipv4Addr::LOCALHOST, back + shard));
            tasks.push(tokio::spawn(towards_node(Arc::new(socket), node, sky.clone())));
        }
        Self { sky, tasks }
    }

    pub(crate) async fn turn(&self, weather: Weather) {
        self.sky.lock().await.weather = weather;
    }

    pub(crate) async fn packets(&self) -> Packets {
        self.sky.lock().await.packets
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn towards_node(front: Arc<UdpSocket>, node: SocketAddr, sky: Arc<Mutex<Sky>>) {
    let mut peers: HashMap<SocketAddr, Peer> = HashMap::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok((length, from)) = front.recv_from(&mut buffer).await else { continue };
        let peer = match peers.entry(from) {
            Entry::Occupied(peer) => peer.into_mut(),
            Entry::Vacant(place) => {
                let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("there are free ports");
                back.connect(node).await.expect("UDP connects at once");
                let back = Arc::new(back);
                let task = tokio::spawn(towards_gateway(back.clone(), front.clone(), from, sky.clone()));
                place.insert(Peer { back, task })
            }
        };
        forward(&sky, Towards::Node, &buffer[..length], &peer.back, None).await;
    }
}

/// Ends with the task that made it.
struct Peer {
    back: Arc<UdpSocket>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn towards_gateway(back: Arc<UdpSocket>, front: Arc<UdpSocket>, peer: SocketAddr, sky: Arc<Mutex<Sky>>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match back.recv(&mut buffer).await {
            Ok(length) => forward(&sky, Towards::Gateway, &buffer[..length], &front, Some(peer)).await,
            // While no node listens, each packet to it is answered by an error here.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Sends it as often and as late as the weather wants. A socket that is full or refused loses it, as a network does.
async fn forward(sky: &Mutex<Sky>, towards: Towards, packet: &[u8], socket: &Arc<UdpSocket>, to: Option<SocketAddr>) {
    let (copies, delay) = {
        let mut sky = sky.lock().await;
        let Sky { weather, random, packets } = &mut *sky;
        let is_deaf = match towards {
            Towards::Node => weather.deaf_node,
            Towards::Gateway => weather.deaf_gateways,
        };
        if is_deaf {
            packets.swallowed += 1;
            return;
        }
        if random.random_ratio(weather.lost, 1_000) {
            packets.lost += 1;
            return;
        }
        packets.passed += 1;
        let is_repeated = random.random_ratio(weather.repeated, 1_000);
        packets.repeated += u64::from(is_repeated);
        let is_delayed = random.random_ratio(weather.delayed, 1_000);
        packets.delayed += u64::from(is_delayed);
        let delay = is_delayed.then(|| Duration::from_millis(random.random_range(1..=weather.delay_ms.max(1))));
        (1 + usize::from(is_repeated), delay)
    };
    let send = move |socket: &UdpSocket, packet: &[u8]| {
        for _ in 0..copies {
            let _ = match to {
                Some(peer) => socket.try_send_to(packet, peer),
                None => socket.try_send(packet),
            };
        }
    };
    match delay {
        None => send(socket, packet),
        Some(delay) => {
            let (socket, packet) = (socket.clone(), packet.to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                send(&socket, &packet);
            });
        }
    }
}
