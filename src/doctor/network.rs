//! Sockets, and which core the network's work is done on.

use super::{Finding, Host, Setting, Severity, Wanted};
use crate::affinity::{numbers, show};

pub(super) fn examine(wanted: &Wanted, host: &Host) -> Vec<Finding> {
    let mut findings = vec![
        buffer(host, "UDP receive buffer", "rmem_max", wanted.socket_receive_bytes),
        buffer(host, "UDP send buffer", "wmem_max", wanted.socket_send_bytes),
    ];
    if wanted.quic.ip().is_loopback() {
        let condition = "network card";
        findings.push(Finding::good(condition, "nothing: quic.listen is on loopback", "not looked at"));
        return findings;
    }
    let cards = cards(host);
    findings.push(interrupts(wanted, host, &cards));
    findings.push(packet_steering(wanted, host, &cards));
    findings.push(flow_steering(wanted, host, &cards));
    findings
}

/// A kernel gives a socket no more than this, whatever the node asks for.
fn buffer(host: &Host, condition: &'static str, name: &str, wanted: usize) -> Finding {
    let path = format!("/proc/sys/net/core/{name}");
    let needed = format!("net.core.{name} of at least {wanted}");
    let Some(found) = host.number(&path) else {
        return Finding::unknown(condition, needed, format!("{path} can't be read"));
    };
    let finding = Finding::good(condition, needed, found.to_string());
    if found >= wanted as u64 {
        return finding;
    }
    finding.with_settings(Severity::Warning, vec![Setting { path, value: wanted.to_string() }])
}

/// Interfaces with hardware, or what a hypervisor gives as such, behind them.
fn cards(host: &Host) -> Vec<String> {
    let mut names = host.names("/sys/class/net");
    names.retain(|name| host.has(&format!("/sys/class/net/{name}/device")));
    names
}

fn interrupts_of(host: &Host, card: &str) -> Vec<String> {
    let own = host.names(&format!("/sys/class/net/{card}/device/msi_irqs"));
    if !own.is_empty() {
        return own;
    }
    // A virtual card's stand at the device that carries it.
    host.names(&format!("/sys/class/net/{card}/device/../msi_irqs"))
}

fn interrupts(wanted: &Wanted, host: &Host, cards: &[String]) -> Finding {
    const CONDITION: &str = "interrupts of network cards";
    const NEEDED: &str = "not on cores of shards, unless steered there by port";
    let shards = &wanted.placement.shards;
    let others: Vec<usize> = wanted.topology.numbers().into_iter().filter(|core| !shards.contains(core)).collect();
    let mut there: Vec<(String, Vec<usize>)> = Vec::new();
    let mut looked_at = 0;
    for irq in cards.iter().flat_map(|card| interrupts_of(host, card)) {
        let list = |file: &str| host.read(&format!("/proc/irq/{irq}/{file}")).filter(|text| !text.is_empty());
        let Some(cores) = list("effective_affinity_list").or_else(|| list("smp_affinity_list")) else { continue };
        looked_at += 1;
        let cores = numbers(&cores).unwrap_or_default();
        if cores.iter().any(|core| shards.contains(core)) {
            there.push((irq, cores));
        }
    }
    if looked_at == 0 {
        return Finding::unknown(CONDITION, NEEDED, format!("no interrupts found of {}", or_none(cards)));
    }
    let finding = Finding::good(CONDITION, NEEDED, format!("{looked_at}, none on a shard's core"));
    if there.is_empty() {
        return finding;
    }
    let found = format!(
        "{} of {looked_at} on cores of shards ({})",
        there.len(),
        there.iter().take(4).map(|(irq, cores)| format!("{irq}: {}", show(cores))).collect::<Vec<_>>().join(", ")
    );
    let finding = Finding { found, ..finding };
    if others.is_empty() {
        return finding.with(Severity::Note, "no core is free of shards; give them fewer cores, or steer by port");
    }
    let value = show(&others);
    let settings = there
        .iter()
        .map(|(irq, _)| Setting { path: format!("/proc/irq/{irq}/smp_affinity_list"), value: value.clone() });
    let mut finding = finding.with_settings(Severity::Warning, settings.collect());
    finding.fix.push_str("\nand stop irqbalance, which would move them again");
    finding
}

/// Receive packet steering hands packets of a queue to the cores of a mask.
fn packet_steering(wanted: &Wanted, host: &Host, cards: &[String]) -> Finding {
    const CONDITION: &str = "receive packet steering";
    const NEEDED: &str = "off, or on cores without a shard";
    let mut on_shards = Vec::new();
    for card in cards {
        let queues = format!("/sys/class/net/{card}/queues");
        for queue in host.names(&queues).into_iter().filter(|name| name.starts_with("rx-")) {
            let path = format!("{queues}/{queue}/rps_cpus");
            let cores = host.read(&path).map(|mask| cores_of_mask(&mask)).unwrap_or_default();
            if cores.iter().any(|core| wanted.placement.shards.contains(core)) {
                on_shards.push(path);
            }
        }
    }
    if on_shards.is_empty() {
        return Finding::good(CONDITION, NEEDED, format!("as needed on {}", or_none(cards)));
    }
    let found = format!("{} receive queues hand packets to cores of shards", on_shards.len());
    let settings = on_shards.into_iter().map(|path| Setting { path, value: "0".into() }).collect();
    Finding::good(CONDITION, NEEDED, found).with_settings(Severity::Warning, settings)
}

/// A mask as the kernel writes it: groups of eight hexadecimal digits, the highest cores first.
fn cores_of_mask(mask: &str) -> Vec<usize> {
    let mut cores = Vec::new();
    for (group, digits) in mask.trim().rsplit(',').enumerate() {
        let bits = u32::from_str_radix(digits, 16).unwrap_or(0);
        cores.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| group * 32 + bit));
    }
    cores
}

/// Each shard has a port of its own, so a card can give each its own receive queue. Whether it does is not in any file.
fn flow_steering(wanted: &Wanted, host: &Host, cards: &[String]) -> Finding {
    const CONDITION: &str = "a receive queue for each shard's port";
    const NEEDED: &str = "a rule a shard, with its queue's interrupt near its core";
    let shards = wanted.placement.shards.len();
    let queues = |card: &String| {
        let names = host.names(&format!("/sys/class/net/{card}/queues"));
        names.iter().filter(|name| name.starts_with("rx-")).count()
    };
    let most = cards.iter().map(|card| (queues(card), card)).max();
    match most {
        None => Finding::unknown(CONDITION, NEEDED, "no network card found"),
        Some((count, card)) if count < shards || count < 2 => {
            Finding::good(CONDITION, NEEDED, format!("{card} has {count} receive queues for {shards} shards"))
                .with(Severity::Note, "nothing to steer to; all shards share its queues")
        }
        Some((count, card)) => {
            let port = wanted.quic.port();
            Finding::unknown(CONDITION, NEEDED, format!("{card} has {count} receive queues; its rules: `ethtool -n {card}`"))
                .with(
                    Severity::Unknown,
                    format!(
                        "`ethtool -N {card} flow-type udp4 dst-port {port} action 0`, and so on for each shard: tuning/irq.sh does it"
                    ),
                )
        }
    }
}

fn or_none(cards: &[String]) -> String {
    if cards.is_empty() { "no card".to_owned() } else { cards.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_from_the_right() {
        for (mask, cores) in [
            ("0", vec![]),
            ("5", vec![0, 2]),
            ("00000001,00000000", vec![32]),
            ("f,80000000", vec![31, 32, 33, 34, 35]),
        ] {
            assert_eq!(cores_of_mask(mask), cores, "{mask}");
        }
    }
}
