//! A shard's filter is built on another thread while the shard goes on.

use std::sync::Arc;

use predicate::{Mapping, Predicate, Source};
use wire::{PlaceHash, SubscribeItem, SubscriptionKey};

use super::{
    client::block_on,
    node::{Node, Options, RUNTIMES, start_with},
};
use crate::{
    Admission, Command, CommandId, CommandKind, CommandReply, FilterConfig, FilterKey,
    driver::{FromShard, ShardThread},
};

fn register(number: u64) -> Command {
    let predicate = Predicate::compile(Source { filters: "", expr: "" }, &Mapping::Plain).unwrap();
    let item = SubscribeItem::new(SubscriptionKey { tenant: "t".into(), id: format!("s{number}") }, collection(number));
    let what = CommandKind::Register { item, admission: Admission { predicate: Arc::new(predicate) } };
    Command { id: CommandId(number), gateway: "g".into(), what }
}

fn collection(number: u64) -> String {
    format!("c{number}")
}

async fn built(node: &Node, times: u64) {
    while node.handle.cells().stats().shard.filter_builds < times {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[test]
fn a_filter_is_built_beside_the_shard() {
    const SUBSCRIPTIONS: u64 = 40;
    for runtime in RUNTIMES {
        let node = start_with(Options::new(runtime), |mut config, _| {
            config.shard.filter = FilterConfig { delta_min: 10, exact_max: 0, ..FilterConfig::default() };
            ShardThread::spawn(config)
        });
        block_on(async {
            for number in 0..SUBSCRIPTIONS {
                node.commands.send_async(register(number)).await.unwrap();
                let FromShard::Commanded { reply, .. } = node.from_shard.recv_async().await.unwrap() else {
                    panic!("only commands were given")
                };
                let CommandReply::Registered { filter_version, .. } = reply else { panic!("{reply:?}") };
                // Whatever is being built meanwhile: each version holds what it is said to hold.
                let filter = loop {
                    let filter = node.handle.cells().filter();
                    if filter.version >= filter_version {
                        break filter;
                    }
                    node.signal.changed().await;
                };
                for number in 0..=number {
                    let place = PlaceHash::of("t", &collection(number));
                    assert!(filter.may_want(FilterKey::place(place)), "{number} in version {}", filter.version);
                }
            }
            built(&node, 1).await;
            let stats = node.handle.cells().stats();
            assert_eq!((stats.shard.filter_keys, stats.shard.filter_builds_failed), (SUBSCRIPTIONS, 0));
            assert!(stats.shard.filter_base_bytes > 0);
        });
        node.stop();
    }
}
