#!/usr/bin/env bash
# Kills each process and engine of a cluster under a steady load of pushes, one after the other;
# restarts each regularly; freezes a comet. Prints losses, duplicates, and the time until the
# cluster had recovered: the tables of docs/reliability.md. Then the same for stored messages, over
# PostgreSQL: every acknowledged message must be delivered once and in order. About four minutes;
# needs what scripts/test.sh needs. DEATH_OF=job1,redis in the environment selects some.
set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
cd "$(dirname "$0")/.."
scripts/engines/redis.sh get
scripts/engines/kafka.sh get
scripts/engines/postgres.sh get
cargo test --workspace --locked --test e2e -- cluster::death:: --ignored --nocapture
[ -n "${DEATH_OF:-}" ] || cargo test --workspace --locked --test e2e -- the_same_of_a_cluster --ignored --nocapture
