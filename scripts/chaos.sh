#!/usr/bin/env bash
# Kills processes of a cluster at random, then fails its engines and comets in one way after the other, under a steady load of pushes
# that are each tried until they are answered. Prints what was lost to sessions that lived, what came twice and how long it took: a table of
# docs/reliability.md. Fails when something was lost. About seven minutes; needs what scripts/test.sh needs, and root for the phase in which
# a comet is cut off.
#
# usage: chaos.sh          run it all
#        chaos.sh short    half a minute of kills, and shorter faults: two minutes in all
#
# In the environment:
#   SEED            a number that decides who is killed; printed            drawn
#   MINUTES         how long processes are killed                           3
#   FAULT_SECONDS   how long an engine or a comet is away                   8
#   LEASE_SECONDS   cluster.lease                                           3
#   CHAOS_SETTINGS  more settings for all roles, SETTING=VALUE;...          none
#   CHAOS_OF        only some phases: kills, redis-stopped, redis-restarted, redis-memory, redis-replicas, redis-readonly,
#                   kafka-stopped, new-group, partitions, comet-cut-off, comet-frozen
set -euo pipefail
# A process that dies must not leave its memory in the tree.
ulimit -c 0
cd "$(dirname "$0")/.."

case "${1:-}" in
  "") ;;
  short)
    export MINUTES=${MINUTES:-0.5} FAULT_SECONDS=${FAULT_SECONDS:-4} LEASE_SECONDS=${LEASE_SECONDS:-3}
    # Redis that was emptied is believed sooner, and partitions are found sooner.
    export CHAOS_SETTINGS=${CHAOS_SETTINGS:-'redis.recovery_grace=3s;kafka.properties={ "topic.metadata.refresh.interval.ms" = "3000" }'}
    ;;
  *) sed -n '2,19p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 64 ;;
esac
scripts/engines/redis.sh get
scripts/engines/kafka.sh get
status=0
scripts/cluster-partition.sh with chaos:: || status=$?
# Without the right to make network namespaces: all but the phase that needs them.
[ "$status" = 2 ] || exit "$status"
cargo test --workspace --locked --test e2e -- chaos:: --ignored --nocapture
