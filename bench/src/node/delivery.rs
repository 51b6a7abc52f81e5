//! Events to those who want them, all of them: a node, NATS without and with acks, and QUIC alone.

use std::{path::PathBuf, sync::Arc};

use loadgen::{
    gateways::Common,
    plan::Plan,
    run::SourceKind,
    schedule::{CountsFrom, Schedule},
};

use super::{Cores, Figures, Row, Turns, everything, median_of, nats, node, quinn, run_node};

/// What carries events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A node with its source in this process, real QUIC, Gateways of the SDK, which ack.
    Streamer,
    /// nats-server without acks.
    NatsCore,
    /// nats-server with a stream in memory, acks of what is published and of what is delivered.
    NatsJetstream,
    /// Stock quinn on tokio that sends as many bytes: no matching, no acks of the application's.
    Quinn,
}

impl Engine {
    pub const ALL: [Engine; 4] = [Engine::Streamer, Engine::NatsCore, Engine::NatsJetstream, Engine::Quinn];

    pub fn name(self) -> &'static str {
        match self {
            Engine::Streamer => "streamer",
            Engine::NatsCore => "nats-core",
            Engine::NatsJetstream => "nats-jetstream",
            Engine::Quinn => "quinn",
        }
    }
}

/// What `compare delivery` measures.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub turns: Turns,
    pub engines: Vec<Engine>,
    /// Subscriptions of one event, each time; 4 and fewer are each a Gateway of their own, more are dealt out between two.
    pub fan_outs: Vec<u32>,
    pub payload_bytes: usize,
    /// Events a second of the rounds at a rate, up to a fan-out of 4; with more, so many fewer as each is delivered more often.
    pub rate: u64,
    /// By default looked for on the PATH.
    pub nats_server: Option<PathBuf>,
}

impl Delivery {
    pub const FAN_OUTS: [u32; 3] = [1, 4, 64];

    /// Measures all of it. `each` is shown the rows as they come.
    ///
    /// # Errors
    /// When an engine that is there doesn't work.
    pub fn run(&self, mut each: impl FnMut(&Row)) -> Result<Vec<Row>, String> {
        let cores = Cores::allowed()?;
        let server = nats::find(self.nats_server.as_deref());
        let mut rows = Vec::new();
        for fan_out in &self.fan_outs {
            let case = Case {
                fan_out: *fan_out,
                gateways: if *fan_out <= 4 { *fan_out as usize } else { 2 },
                payload_bytes: self.payload_bytes,
            };
            for rate in [None, Some(self.rate * 4 / u64::from(*fan_out).max(4))] {
                for row in self.measure(&case, rate, &cores, &server)? {
                    each(&row);
                    rows.push(row);
                }
            }
        }
        Ok(rows)
    }

    fn measure(
        &self,
        case: &Case,
        rate: Option<u64>,
        cores: &Cores,
        server: &Result<PathBuf, String>,
    ) -> Result<Vec<Row>, String> {
        let carry = |engine: &Engine| {
            let figures = match (engine, server) {
                (Engine::Streamer, _) => self.streamer(case, rate, cores),
                (Engine::Quinn, _) => quinn::carry(case, rate, cores, &self.turns),
                (_, Err(_)) => return Ok(None),
                (Engine::NatsCore, Ok(server)) => nats::carry(case, rate, cores, &self.turns, server, false),
                (Engine::NatsJetstream, Ok(server)) => nats::carry(case, rate, cores, &self.turns, server, true),
            };
            figures.map(Some).map_err(|why| format!("{}, fan-out {}: {why}", engine.name(), case.fan_out))
        };
        let rounds = self.turns.take(&self.engines, carry, |engine, figures| {
            format!(
                "{}, fan-out {}: {:.0} deliveries/s, p99 {} µs{}",
                engine.name(),
                case.fan_out,
                figures.deliveries_per_s,
                figures.p99_us,
                figures.why.first().map_or(String::new(), |why| format!("; {why}"))
            )
        })?;
        let row = |(engine, rounds): (&Engine, Vec<Figures>)| {
            let row = Row {
                source: (*engine == Engine::Streamer).then(|| SourceKind::Direct.name()),
                shards: (*engine == Engine::Streamer).then_some(1),
                fan_out: f64::from(case.fan_out),
                gateways: case.gateways,
                subscriptions: case.fan_out as usize,
                payload_bytes: case.payload_bytes,
                rate,
                ..Row::new("delivery", engine.name())
            };
            match median_of(rounds, rate) {
                Some(figures) => row.with(&figures),
                None => row.skipped(server.as_ref().err().map_or("no round was asked for", String::as_str)),
            }
        };
        Ok(self.engines.iter().zip(rounds).map(row).collect())
    }

    fn streamer(&self, case: &Case, rate: Option<u64>, cores: &Cores) -> Result<Figures, String> {
        let mut options = node(everything(case.fan_out, case.payload_bytes), "everything", cores, &self.turns);
        (options.rate, options.gateways, options.subscriptions) = (rate, case.gateways, case.fan_out);
        run_node(&options)
    }
}

/// Who gets what.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) fan_out: u32,
    pub(super) gateways: usize,
    pub(super) payload_bytes: usize,
}

impl Case {
    /// The plan that a node would be given.
    pub(super) fn plan(&self) -> Plan {
        Plan::new(&everything(self.fan_out, self.payload_bytes), self.fan_out, self.gateways, 1, "tenant-")
    }

    /// What engines other than the node share with those who receive.
    pub(super) fn common(&self, rate: Option<u64>, turns: &Turns) -> Common {
        let schedule = Schedule::new(rate, turns.duration(), CountsFrom::of_rate(rate));
        Common::new(Arc::new(self.plan()), Arc::new(schedule), self.gateways)
    }
}
