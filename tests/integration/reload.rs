//! SIGHUP: what a node takes while it runs, and that it takes nothing of what it can't.

use std::{fs, path::Path};

use serde_json::json;
use streamer::control::hash_token;
use streamer_gateway::{AppEvent, Error, Gateway, Subscription, TerminalError};
use wire::ErrorCode;

use crate::support::{
    Runtime, block_on,
    gateway::{next_change, next_event, wait_live},
    process::NodeProcess,
    setup::Setup,
    until,
};

const EDGE: &str = "the token of edge";
const WIDE: &str = "the token of wide";
const ADMIN: &str = "the token of the administrator";

/// What the tests change of a configuration.
#[derive(Clone)]
struct Wanted {
    level: &'static str,
    subscriptions: &'static str,
    wide: bool,
    more: &'static str,
}

impl Wanted {
    fn sections(&self, folder: &Path) -> String {
        let hash = |token: &str| format!("{:?}", hash_token(token));
        let gateway = |name: &str, token: &str| {
            format!("[[gateways]]\nname = \"{name}\"\ntoken_sha256 = \"{}\"\ntenants = [\"acme\"]\n", hash(token))
        };
        let Self { level, subscriptions, wide, more } = self;
        format!(
            "{}{}[admin]\ntoken_sha256 = \"{}\"\n[log]\nlevel = \"{level}\"\n[limits]\nsubscriptions_per_gateway = {subscriptions}\n\
             [tls]\ncertificate = {:?}\nkey = {:?}\n{more}",
            gateway("edge", EDGE),
            if *wide { gateway("wide", WIDE) } else { String::new() },
            hash(ADMIN),
            folder.join("certificate.pem"),
            folder.join("key.pem"),
        )
    }
}

/// Writes a pair of PEM files that go together.
fn make_certificate(folder: &Path) {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.join("certificate.pem"), pair.cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), pair.signing_key.serialize_pem()).unwrap();
}

struct Scene {
    setup: Setup,
    process: NodeProcess,
    /// Reloads so far, by what became of them.
    applied: u32,
    refused: u32,
    failed: u32,
}

impl Scene {
    async fn start(wanted: &Wanted) -> Self {
        let mut setup = Setup::new(Runtime::Tokio);
        make_certificate(setup.folder());
        setup.more = wanted.sections(setup.folder());
        let process = setup.start_process().await;
        Self { setup, process, applied: 0, refused: 0, failed: 0 }
    }

    /// Asks for a reload, and waits until it is counted.
    async fn reload(&mut self, wanted: &Wanted) {
        self.setup.more = wanted.sections(self.setup.folder());
        fs::write(self.setup.folder().join("streamer.toml"), self.setup.config_text()).unwrap();
        let Self { applied, refused, failed, .. } = *self;
        self.process.signal("HUP");
        let api = self.setup.api().with_token(Some(ADMIN));
        let counts = until("the reload is counted", async || {
            let count = async |outcome: &str| {
                api.metric(&format!("streamer_config_reloads_total{{outcome=\"{outcome}\"}}")).await as u32
            };
            let counts = (count("applied").await, count("refused").await, count("failed").await);
            (counts != (applied, refused, failed)).then_some(counts)
        })
        .await;
        (self.applied, self.refused, self.failed) = counts;
        // Whatever became of it, the node serves.
        assert_eq!(self.setup.api().health().await["status"], "ready");
    }

    fn counts(&self) -> (u32, u32, u32) {
        (self.applied, self.refused, self.failed)
    }

    async fn fingerprint(&self) -> String {
        self.setup.api().with_token(Some(ADMIN)).fingerprint().await
    }

    async fn connect(&self, gateway: &str, token: &str, fingerprint: &str) -> Result<Gateway, Error> {
        self.setup.gateway(gateway, fingerprint).token(token).connect().await
    }
}

async fn is_over_quota(gateway: &mut Gateway, id: &str) -> bool {
    gateway.subscribe(Subscription::new("acme", "rooms").id(id)).unwrap();
    loop {
        match next_event(gateway, "an answer").await {
            AppEvent::Rejected { code, .. } => return code == ErrorCode::GatewayQuotaExceeded,
            AppEvent::Live { subscription, .. } if subscription.id == id => return false,
            AppEvent::Live { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn limits_level_certificate_and_tokens_reload() {
    block_on(async {
        let mut wanted = Wanted { level: "info", subscriptions: "1", wide: true, more: "" };
        let mut scene = Scene::start(&wanted).await;
        let first = scene.fingerprint().await;
        let mut edge = scene.connect("edge", EDGE, &first).await.unwrap();
        let mut wide = scene.connect("wide", WIDE, &first).await.unwrap();
        assert!(!is_over_quota(&mut edge, "a").await);
        assert!(is_over_quota(&mut edge, "b").await);
        assert!(!scene.process.log().contains("DEBUG"), "{}", scene.process.log());

        // A limit, and what is logged.
        (wanted.level, wanted.subscriptions) = ("info,shards=debug", "2");
        scene.reload(&wanted).await;
        assert_eq!(scene.counts(), (1, 0, 0));
        assert!(!is_over_quota(&mut edge, "b").await);
        assert!(is_over_quota(&mut edge, "c").await);
        scene.connect("wide", WIDE, &first).await.unwrap().close().await;
        let log = scene.process.log();
        assert!(log.contains("DEBUG") && log.contains("limits.subscriptions_per_gateway"), "{log}");
        // The one that was there has been superseded by that, which is for good.
        let _ = wide.next().await;
        wide = scene.connect("wide", WIDE, &first).await.unwrap();

        // The certificate: under the same names.
        make_certificate(scene.setup.folder());
        scene.reload(&wanted).await;
        assert_eq!(scene.counts(), (2, 0, 0));
        let second = scene.fingerprint().await;
        assert_ne!(first, second);
        let untrusting = scene.connect("other", EDGE, &first).await.err();
        assert!(matches!(untrusting, Some(Error::Terminal(TerminalError::Untrusted { .. }))), "{untrusting:?}");
        let refused = scene.connect("other", EDGE, &second).await.err();
        assert!(
            matches!(refused, Some(Error::Terminal(TerminalError::Forbidden { .. }))),
            "it is trusted: {refused:?}"
        );

        // A token is taken away: who has it is sent away, and nobody else.
        wanted.wide = false;
        scene.reload(&wanted).await;
        assert_eq!(scene.counts(), (3, 0, 0));
        until("the Gateway without a token is sent away", async || wide.error()).await;
        assert!(matches!(wide.error(), Some(TerminalError::Unauthorized { .. })), "{:?}", wide.error());
        let revoked = scene.connect("wide", WIDE, &second).await.err();
        assert!(matches!(revoked, Some(Error::Terminal(TerminalError::Unauthorized { .. }))), "{revoked:?}");

        // Through all of this one has stayed.
        wait_live(&edge, 2).await;
        scene.setup.api().with_token(Some(ADMIN)).put("acme", "rooms", "1", json!({"n": 1})).await;
        assert_eq!(next_change(&mut edge, "a change").await.collection(), "rooms");
        assert_eq!(edge.status().counters.reconnects, 0);
        edge.close().await;
        assert_eq!(scene.process.terminate().await.code(), Some(0));
    });
}

#[test]
fn what_can_not_be_taken_changes_nothing_and_is_named() {
    block_on(async {
        let good = Wanted { level: "info", subscriptions: "1", wide: true, more: "" };
        let mut scene = Scene::start(&good).await;
        let fingerprint = scene.fingerprint().await;
        let mut edge = scene.connect("edge", EDGE, &fingerprint).await.unwrap();
        assert!(!is_over_quota(&mut edge, "a").await);

        // A file that is wrong; with it, changes that would be right.
        let bad = Wanted { subscriptions: "\"many\"", wide: false, ..good.clone() };
        scene.reload(&bad).await;
        assert_eq!(scene.counts(), (0, 0, 1));
        let log = scene.process.log();
        assert!(log.contains("ERROR") && log.contains("limits.subscriptions_per_gateway = \"many\""), "{log}");

        // What is only read at the start.
        let fixed =
            Wanted { subscriptions: "9", wide: false, more: "[catch_up]\nhalve_within = \"9m\"\n", ..good.clone() };
        scene.reload(&fixed).await;
        assert_eq!(scene.counts(), (0, 1, 1));
        let log = scene.process.log();
        assert!(log.contains("only read at the start: catch_up.halve_within."), "{log}");

        // A certificate whose key is another's.
        let key = fs::read(scene.setup.folder().join("key.pem")).unwrap();
        make_certificate(scene.setup.folder());
        fs::write(scene.setup.folder().join("key.pem"), key).unwrap();
        scene.reload(&Wanted { subscriptions: "9", wide: false, ..good }).await;
        assert_eq!(scene.counts(), (0, 2, 1));
        let log = scene.process.log();
        assert!(log.contains("does not go with certificate"), "{log}");

        // The limit, the tokens and the certificate are those of the start.
        assert!(is_over_quota(&mut edge, "b").await);
        let wide = scene.connect("wide", WIDE, &fingerprint).await.unwrap();
        assert_eq!(scene.fingerprint().await, fingerprint);
        wide.close().await;
        edge.close().await;
        assert_eq!(scene.process.terminate().await.code(), Some(0));
    });
}
