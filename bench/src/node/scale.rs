//! A node by the number of its shards, of its idle subscriptions, and at a rate.

use loadgen::{pinned, profile::Profile, run::SourceKind};

use super::{Cores, Figures, Row, Turns, median_of, node, run_node};

/// What `compare scale` measures.
#[derive(Clone, Debug)]
pub struct Scale {
    pub turns: Turns,
    /// Live subscriptions, of which some 3 match an event.
    pub live: u32,
    /// Subscriptions that no event matches, beside those.
    pub idle: Vec<u32>,
    /// Events a second of the rounds at a rate.
    pub rate: u64,
    pub gateways: usize,
}

impl Scale {
    pub const IDLE: [u32; 3] = [10_000, 100_000, 1_000_000];

    /// Measures all of it. `each` is shown the rows as they come.
    ///
    /// # Errors
    /// When a node can't be run.
    pub fn run(&self, mut each: impl FnMut(&Row)) -> Result<Vec<Row>, String> {
        let mut rows = Vec::new();
        for group in self.groups()? {
            for row in self.measure(&group)? {
                each(&row);
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// Cases that take turns.
    fn groups(&self) -> Result<Vec<Vec<Case>>, String> {
        let one = Case {
            shards: Cores::allowed()?.serve.to_string(),
            count: 1,
            live: self.live,
            idle: 0,
            rate: None,
            source: SourceKind::Direct,
        };
        let by_shards =
            shards().into_iter().map(|cores| Case { count: cores.len(), shards: list(&cores), ..one.clone() });
        let by_idle = self.idle.iter().map(|idle| Case { idle: *idle, ..one.clone() });
        let at_a_rate = [SourceKind::Direct, SourceKind::Embedded].map(|source| Case {
            rate: Some(self.rate),
            source,
            ..one.clone()
        });
        Ok(vec![by_shards.collect(), by_idle.collect(), at_a_rate.to_vec()])
    }

    fn measure(&self, cases: &[Case]) -> Result<Vec<Row>, String> {
        let rounds = self.turns.take(
            cases,
            |case| self.carry(case).map(Some),
            |case, figures| {
                format!(
                    "{} shards, {} live, {} idle, {} source: {:.0} events/s, p99 {} µs",
                    case.count,
                    case.live,
                    case.idle,
                    case.source.name(),
                    figures.events_per_s,
                    figures.p99_us
                )
            },
        )?;
        let profile = profile()?;
        let row = |(case, rounds): (&Case, Vec<Figures>)| {
            let row = Row {
                source: Some(case.source.name()),
                gateways: self.gateways,
                shards: Some(case.count),
                subscriptions: case.live as usize,
                idle: case.idle as usize,
                payload_bytes: profile.document_bytes,
                rate: case.rate,
                ..Row::new("scale", "streamer")
            };
            match median_of(rounds, case.rate) {
                Some(figures) => Row { fan_out: figures.fan_out, ..row.with(&figures) },
                None => row.skipped("no round was asked for"),
            }
        };
        Ok(cases.iter().zip(rounds).map(row).collect())
    }

    fn carry(&self, case: &Case) -> Result<Figures, String> {
        let mut options = node(profile()?, PROFILE, &Cores::allowed()?, &self.turns);
        options.source = case.source;
        options.rate = case.rate;
        options.gateways = self.gateways;
        (options.subscriptions, options.idle) = (case.live, case.idle);
        options.shards.clone_from(&case.shards);
        run_node(&options)
    }
}

#[derive(Clone, Debug)]
struct Case {
    /// Cores, as in the configuration.
    shards: String,
    count: usize,
    live: u32,
    idle: u32,
    rate: Option<u64>,
    source: SourceKind,
}

/// Some three subscriptions match an event.
const PROFILE: &str = "chat";

fn profile() -> Result<Profile, String> {
    Profile::load(PROFILE).map_err(|error| error.to_string())
}

/// The last cores, which shards may have: one, two, four and so on, and all but one.
fn shards() -> Vec<Vec<usize>> {
    let allowed = pinned::allowed();
    let most = allowed.len().saturating_sub(1).max(1);
    let mut counts: Vec<usize> = (0..).map(|power| 1 << power).take_while(|count| *count < most).collect();
    counts.push(most);
    counts.into_iter().map(|count| allowed[allowed.len().saturating_sub(count)..].to_vec()).collect()
}

fn list(cores: &[usize]) -> String {
    cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
