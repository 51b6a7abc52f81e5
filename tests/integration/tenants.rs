//! Tenants are walls, and quotas span the shards.

use std::collections::BTreeMap;

use bson::Bson;
use serde_json::{Value, json};
use streamer_gateway::{AppEvent, Gateway, Subscription, Transition};
use wire::{CloseReason, ErrorCode, PlaceHash, SlotTable};

use crate::support::{
    Runtime, SHARDS,
    api::document_path,
    gateway::{next_change, next_event, number, wait_live},
    on_both_runtimes,
    setup::{Running, Setup},
    until,
};

on_both_runtimes!(
    same_names_in_two_tenants,
    a_quota_accepts_exactly_what_it_says,
    an_id_that_moves_to_another_shard_is_one_subscription,
);

const TENANTS: [&str; 2] = ["acme", "globex"];

/// Collections that lie on several shards, under the same names for both tenants.
const COLLECTIONS: [&str; 5] = ["rooms", "users", "rooms/1/messages", "orders", "a/b/c"];

async fn same_names_in_two_tenants(runtime: Runtime) {
    const ROUNDS: i64 = 20;
    let setup = Setup::new(runtime);
    let node = Running::start(&setup).await;
    // One Gateway for both tenants, and one for each: the same subscription ids everywhere.
    let mut gateways = Vec::new();
    for (id, tenants) in [("both", &TENANTS[..]), ("first", &TENANTS[..1]), ("second", &TENANTS[1..])] {
        let gateway = setup.gateway(id, &node.fingerprint()).connect().await.unwrap();
        for tenant in tenants {
            for (index, collection) in COLLECTIONS.iter().enumerate() {
                let whole = Subscription::new(*tenant, *collection).id(format!("whole-{index}"));
                gateway.subscribe(whole).unwrap();
                let one = Subscription::new(*tenant, *collection).id(format!("one-{index}")).filter("_id", "==", "d");
                gateway.subscribe(one).unwrap();
            }
        }
        wait_live(&gateway, tenants.len() * COLLECTIONS.len() * 2).await;
        gateways.push((gateway, tenants));
    }
    let api = setup.api();
    let mut documents = Vec::new();
    for n in 1..=ROUNDS {
        for tenant in TENANTS {
            for collection in COLLECTIONS {
                documents.push((tenant, collection, "d".to_owned(), json!({"n": n, "secret": tenant})));
            }
        }
    }
    api.put_all(documents).await;
    for tenant in TENANTS {
        for collection in COLLECTIONS {
            assert_eq!(api.call("DELETE", &document_path(tenant, collection, "d"), "").await.0, 200);
        }
    }
    for (gateway, tenants) in &mut gateways {
        // For each subscription, what it was told of: its own tenant's document through all rounds, and its end.
        let mut told: BTreeMap<(String, String), Vec<(i64, Transition)>> = BTreeMap::new();
        let per_subscription = ROUNDS as usize + 1;
        for _ in 0..tenants.len() * COLLECTIONS.len() * 2 * per_subscription {
            let change = next_change(gateway, "a change of each round for each subscription").await;
            let subscription = change.subscription();
            assert_eq!(change.tenant(), subscription.tenant, "{change:?}");
            let index: usize = subscription.id.rsplit_once('-').unwrap().1.parse().unwrap();
            assert_eq!(change.collection(), COLLECTIONS[index], "{change:?}");
            assert_eq!(change.document_id_text().as_deref(), Some("d"), "{change:?}");
            let document = change.flat().unwrap();
            assert_eq!(document.get("secret"), Some(&Bson::String(subscription.tenant.clone())), "{change:?}");
            told.entry((subscription.tenant.clone(), subscription.id.clone()))
                .or_default()
                .push((number(&change), change.transition()));
        }
        for (subscription, told) in told {
            let mut expected: Vec<_> = (1..=ROUNDS).map(|n| (n, Transition::Update)).collect();
            expected[0].1 = Transition::Enter;
            expected.push((ROUNDS, Transition::Leave));
            assert_eq!(told, expected, "{subscription:?}");
        }
    }
    for (gateway, _) in gateways {
        gateway.close().await;
    }
    node.stop().await;
}

/// What a registration came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Accepted,
    OverQuota,
}

/// Registers over QUIC and HTTP at once, in collections all over the shards; says what came of each.
async fn register_mixed(
    setup: &Setup,
    gateway: &mut Gateway,
    each: usize,
    code: ErrorCode,
    name: &Value,
) -> Vec<Outcome> {
    let (api, quic) = (setup.api(), gateway.handle());
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..each {
        quic.subscribe(Subscription::new("acme", format!("c{n}")).id(format!("quic-{n}"))).unwrap();
        let (api, name) = (api.clone(), name.clone());
        calls.spawn(async move {
            let body = json!({
                "gatewayId": "other", "tenant": "acme", "subscriptionId": format!("http-{n}"), "collection": format!("c{n}")
            });
            match api.call("POST", "/internal/v1/subscriptions", body.to_string()).await {
                (201, _) => Outcome::Accepted,
                (429, answer) if answer["code"] == name => Outcome::OverQuota,
                other => panic!("{other:?}"),
            }
        });
    }
    let mut outcomes = calls.join_all().await;
    for _ in 0..each {
        outcomes.push(match next_event(gateway, "an answer for each subscription").await {
            AppEvent::Live { .. } => Outcome::Accepted,
            AppEvent::Rejected { code: rejected, .. } if rejected == code => Outcome::OverQuota,
            other => panic!("{other:?}"),
        });
    }
    outcomes
}

async fn a_quota_accepts_exactly_what_it_says(runtime: Runtime) {
    const QUOTA: usize = 25;
    const EACH: usize = 40;
    for (limits, code, name) in [
        ("subscriptions_per_tenant = 25", ErrorCode::TenantQuotaExceeded, "TENANT_QUOTA_EXCEEDED"),
        ("subscriptions_per_node = 25", ErrorCode::GlobalQuotaExceeded, "GLOBAL_QUOTA_EXCEEDED"),
    ] {
        let setup = Setup::new(runtime).with(&format!("[limits]\n{limits}\n"));
        let node = Running::start(&setup).await;
        let mut gateway = setup.gateway("edge", &node.fingerprint()).connect().await.unwrap();
        let outcomes = register_mixed(&setup, &mut gateway, EACH, code, &name.into()).await;
        assert_eq!(outcomes.len(), 2 * EACH);
        let accepted = outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
        assert_eq!(accepted, QUOTA, "{limits}");
        let topology = setup.api().topology().await;
        assert_eq!(topology["subscriptions"]["total"], QUOTA, "{topology}");
        let by_shard: Vec<_> = topology["subscriptions"]["by_shard"].as_array().unwrap().clone();
        assert_eq!((by_shard.len(), by_shard.iter().filter_map(Value::as_u64).sum::<u64>()), (SHARDS, QUOTA as u64));
        assert!(by_shard.iter().filter(|count| **count != 0).count() > 1, "all on one shard: {topology}");

        // What one gives back another may take, and no more.
        let kept = gateway.status().subscriptions;
        let (status, removed) = setup.api().call("DELETE", "/internal/v1/gateways/other/subscriptions", "").await;
        assert_eq!((status, removed["removed"].as_u64()), (200, Some((QUOTA - kept) as u64)));
        for n in 0..EACH {
            gateway.subscribe(Subscription::new("acme", format!("again/{n}")).id(format!("again-{n}"))).unwrap();
        }
        let mut accepted = 0;
        for _ in 0..EACH {
            match next_event(&mut gateway, "an answer for each").await {
                AppEvent::Live { .. } => accepted += 1,
                AppEvent::Rejected { code: rejected, .. } => assert_eq!(rejected, code),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(accepted, QUOTA - kept, "{limits}");
        until("the node is full", async || {
            (setup.api().topology().await["subscriptions"]["total"] == QUOTA).then_some(())
        })
        .await;
        gateway.close().await;
        node.stop().await;
    }
}

/// Over HTTP other content under an id is a conflict, wherever it belongs; over QUIC it replaces what HTTP has registered. Either way there
/// is one subscription of that id, which counts once.
async fn an_id_that_moves_to_another_shard_is_one_subscription(runtime: Runtime) {
    let setup = Setup::new(runtime);
    let node = Running::start(&setup).await;
    let api = setup.api();
    let owner =
        |collection: &str| usize::from(SlotTable { shards: SHARDS as u16 }.owner(PlaceHash::of("acme", collection)));
    let old = "c0";
    let new = (1..).map(|n| format!("c{n}")).find(|new| owner(new) != owner(old)).expect("there are several shards");
    let post = async |collection: &str| {
        let body = json!({"gatewayId": "edge", "tenant": "acme", "subscriptionId": "s", "collection": collection});
        api.call("POST", "/internal/v1/subscriptions", body.to_string()).await
    };
    // Where it is, by the ledger and by the shards themselves, which show their counts a moment later.
    let is_only_at = async |shard: Option<usize>| {
        until("it is there, and nowhere else", async || {
            let expected: Vec<u64> = (0..SHARDS).map(|index| u64::from(Some(index) == shard)).collect();
            let counts = |shards: &Value, of: fn(&Value) -> Option<u64>| {
                shards.as_array().into_iter().flatten().filter_map(of).collect::<Vec<_>>()
            };
            let topology = api.topology().await;
            let by_shard = counts(&topology["subscriptions"]["by_shard"], Value::as_u64);
            let held = counts(&api.health().await["shards"], |shard| shard["subscriptions"].as_u64());
            (by_shard == expected && held == expected).then_some(())
        })
        .await;
    };
    let conflict = async |collection: &str| {
        let (status, answer) = post(collection).await;
        assert_eq!((status, answer["code"].as_str()), (409, Some("SUBSCRIPTION_EXISTS")), "{answer}");
    };
    assert_eq!(post(old).await.0, 201);
    conflict(&new).await;
    is_only_at(Some(owner(old))).await;
    assert_eq!(post(old).await.0, 200, "it is there as it was");

    let mut gateway = setup.gateway("edge", &node.fingerprint()).connect().await.unwrap();
    gateway.subscribe(Subscription::new("acme", &new).id("s")).unwrap();
    wait_live(&gateway, 1).await;
    is_only_at(Some(owner(&new))).await;
    conflict(old).await;
    api.put("acme", old, "d", json!({"n": 1})).await;
    api.put("acme", &new, "d", json!({"n": 2})).await;
    let change = next_change(&mut gateway, "what the newer self watches").await;
    assert_eq!((change.collection(), number(&change)), (new.as_str(), 2));

    let (status, _) = api.call("DELETE", "/internal/v1/subscriptions/s?gatewayId=edge&tenant=acme", "").await;
    assert_eq!(status, 204);
    match next_event(&mut gateway, "its end").await {
        AppEvent::Closed { reason: CloseReason::Removed, .. } => {}
        other => panic!("{other:?}"),
    }
    is_only_at(None).await;
    gateway.close().await;
    assert_eq!(post(&new).await.0, 201);
    is_only_at(Some(owner(&new))).await;
    node.stop().await;
}
