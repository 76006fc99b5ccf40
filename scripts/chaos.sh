#!/usr/bin/env bash
# Kills random processes of a cluster, then fails its engines and comets in one way after the other,
# under a steady load of pushes, each repeated until it is answered. Prints losses to sessions that
# lived, duplicates and delays: a table of docs/reliability.md. Fails when a delivery is lost. About
# seven minutes; needs what scripts/test.sh needs, and root for the phase that partitions a comet.
#
# usage: chaos.sh          run all phases
#        chaos.sh short    half a minute of kills and shorter faults: two minutes in total
#
# In the environment:
#   SEED            the seed of the random kills; printed                   random
#   MINUTES         duration of the kills                                   3
#   FAULT_SECONDS   duration of a fault of an engine or a comet             8
#   LEASE_SECONDS   cluster.lease                                           3
#   CHAOS_SETTINGS  more settings for all roles, SETTING=VALUE;...          none
#   CHAOS_OF        only some phases: kills, redis-stopped, redis-restarted, redis-memory,
#                   redis-replicas, redis-readonly, kafka-stopped, new-group, partitions,
#                   comet-cut-off, comet-frozen

set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
cd "$(dirname "$0")/.."

case "${1:-}" in
  "") ;;
  short)
    export MINUTES=${MINUTES:-0.5} FAULT_SECONDS=${FAULT_SECONDS:-4} LEASE_SECONDS=${LEASE_SECONDS:-3}
    # A shorter grace after Redis was emptied, and faster detection of partitions.
    export CHAOS_SETTINGS=${CHAOS_SETTINGS:-'redis.recovery_grace=3s;kafka.properties={ "topic.metadata.refresh.interval.ms" = "3000" }'}
    ;;
  *) sed -n '2,/^$/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 64 ;;
esac
scripts/engines/redis.sh get
scripts/engines/kafka.sh get
status=0
scripts/cluster-partition.sh with chaos:: || status=$?
# Without permission to create network namespaces: all phases but the one that needs them.
[ "$status" = 2 ] || exit "$status"
cargo test --workspace --locked --test e2e -- chaos:: --ignored --nocapture
