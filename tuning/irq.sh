#!/bin/sh
# Gives each shard's UDP port a receive queue of its own, and each queue's interrupt the shard's core.
#
#   irq.sh CARD PORT CORES [--apply]
#
# CARD   network card, as `ip link` names it
# PORT   port of shard 0 (quic.listen); shard i listens on PORT + i
# CORES  cores of the shards in their order, as `streamer check` prints them: 2-7 or 2,3,6
#
# Without --apply the commands are printed and nothing is changed. ROOT=DIR looks for /sys and /proc below DIR, for tests.
# Needs ethtool, and a card that can steer by port (`ethtool -k CARD | grep ntuple`). Undo: `ethtool -N CARD delete RULE` for
# each rule that `ethtool -n CARD` shows, and start irqbalance again.
set -eu

usage() {
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

[ $# -ge 3 ] || usage
card=$1 port=$2 cores=$3 mode=${4:-}
root=${ROOT:-}
case "$mode" in '' | --apply) ;; *) usage ;; esac
case "$port" in '' | *[!0-9]*) echo "irq.sh: $port is no port" >&2; exit 2 ;; esac

run() {
    if [ "$mode" = --apply ]; then
        eval "$1"
    else
        echo "$1"
    fi
}

# 2-4,7 as one number a line.
numbers() {
    echo "$1" | tr ',' '\n' | while IFS=- read -r first last; do
        case "$first${last:-0}" in '' | *[!0-9]*) echo "irq.sh: $1 names no cores" >&2; exit 2 ;; esac
        seq "$first" "${last:-$first}"
    done
}

[ -d "$root/sys/class/net/$card" ] || { echo "irq.sh: there is no card $card" >&2; exit 1; }
queues=$(find "$root/sys/class/net/$card/queues" -maxdepth 1 -name 'rx-*' 2>/dev/null | wc -l)
interrupts=$(find "$root/sys/class/net/$card/device/msi_irqs" -maxdepth 1 -mindepth 1 -exec basename {} \; 2>/dev/null | sort -n)
list=$(numbers "$cores")
shards=$(echo "$list" | wc -l)
if [ "$queues" -lt "$shards" ]; then
    echo "irq.sh: $card has $queues receive queues, fewer than $shards shards: nothing to steer to" >&2
    exit 1
fi

# Many cards have an interrupt of their own before those of the queues.
count=$(echo "$interrupts" | grep -c . || true)
skip=$((count > queues ? count - queues : 0))

run "systemctl stop irqbalance 2>/dev/null || true"
run "ethtool -K $card ntuple on"
queue=0
for core in $list; do
    run "ethtool -N $card flow-type udp4 dst-port $((port + queue)) action $queue"
    interrupt=$(echo "$interrupts" | sed -n "$((skip + queue + 1))p")
    if [ -n "$interrupt" ]; then
        run "echo $core > $root/proc/irq/$interrupt/smp_affinity_list"
    fi
    queue=$((queue + 1))
done
