//! The configuration, in the words of those who run by it.

use std::{sync::Arc, time::Duration};

use rand::Rng;
use shards::{
    BackendConfig, BareDeletes, FilterConfig, ShardConfig, ShardLimits,
    driver::{QuicConfig, gso_self_test},
};
use wire::{BackendId, Epoch, ShardAddress, SlotTable};

use crate::{
    config::{BackendKind, Config, Deletes, Gso},
    ingest::source::mongodb::PreImages,
};

/// Whether a backend promises a before-image with every update and delete.
fn promises_before_images(kind: &BackendKind) -> bool {
    match kind {
        BackendKind::Embedded(_) => true,
        BackendKind::Mongodb(mongo) => mongo.pre_images == PreImages::Promised,
    }
}

pub(super) fn shard_config(
    config: &Config,
    partition: u16,
    slots: SlotTable,
    addresses: &[ShardAddress],
    epoch: Epoch,
) -> ShardConfig {
    let limits = &config.limits;
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let may_change = shard_limits(config);
    let backends = config.backends.iter().map(|backend| BackendConfig {
        id: BackendId::of_name(&backend.name),
        before_images: promises_before_images(&backend.kind),
    });
    ShardConfig {
        backends: backends.collect(),
        mapping: Arc::new(config.mapping.clone()),
        mapping_name: config.mapping.to_string(),
        bare_deletes: match config.deletes {
            Deletes::Unknown => BareDeletes::Unknown,
            Deletes::Known => BareDeletes::Known,
        },
        hash_seed: rand::rng().random(),
        filter: FilterConfig { false_positive_max: limits.filter_false_positive_max, ..FilterConfig::default() },
        log_bytes_max: bytes(limits.log_bytes),
        log_events_max: bytes(limits.log_events),
        outbox_bytes_max: may_change.outbox_bytes_max,
        outbox_events_max: may_change.outbox_events_max,
        heartbeat_ms: config.quic.heartbeat.as_millis() as u64,
        received_deadline_ms: config.quic.received_deadline.as_millis() as u64,
        ttl_default_s: may_change.ttl_default_s,
        ttl_min_s: may_change.ttl_min_s,
        ttl_max_s: may_change.ttl_max_s,
        subscribe_items_max: may_change.subscribe_items_max,
        ..ShardConfig::new(partition, slots, addresses.to_vec(), epoch)
    }
}

/// What a shard may be told anew while it runs.
pub(super) fn shard_limits(config: &Config) -> ShardLimits {
    let limits = &config.limits;
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    ShardLimits {
        outbox_bytes_max: usize::try_from(limits.outbox_bytes).unwrap_or(usize::MAX),
        outbox_events_max: usize::try_from(limits.outbox_events).unwrap_or(usize::MAX),
        ttl_default_s: seconds(limits.ttl_default),
        ttl_min_s: seconds(limits.ttl_min),
        ttl_max_s: seconds(limits.ttl_max),
        subscribe_items_max: limits.subscribe_items,
    }
}

/// Whether segmentation offload is used, and says why not.
pub(super) fn use_gso(config: &Config) -> bool {
    match config.quic.gso {
        Gso::On => true,
        Gso::Off => false,
        Gso::Auto => match gso_self_test(config.quic.listen.value.ip()) {
            Ok(()) => true,
            Err(why) => {
                tracing::warn!("segmentation offload (quic.gso) is not used: {why}. Sending costs more without it");
                false
            }
        },
    }
}

pub(super) fn quic_config(config: &Config, gso: bool) -> QuicConfig {
    let quic = &config.quic;
    QuicConfig {
        idle_timeout_ms: u32::try_from(quic.idle_timeout.as_millis()).unwrap_or(u32::MAX),
        send_window_bytes: quic.send_window,
        newcomers_max: usize::try_from(quic.max_incoming).unwrap_or(usize::MAX),
        sessions_max: usize::try_from(quic.max_sessions).unwrap_or(usize::MAX),
        gso,
        ..QuicConfig::default()
    }
}
