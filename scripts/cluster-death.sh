#!/usr/bin/env bash
# Kills each process and engine of a cluster under a steady load of pushes, one after the other; restarts each gently; freezes a
# comet. Prints what was lost, what came twice, and how long it took until all was well again: the tables of docs/reliability.md. Then the
# same of stored messages, over PostgreSQL: everything that was answered must be delivered once and in order.
# About four minutes; needs what scripts/test.sh needs. DEATH_OF=job1,redis in the environment leaves out the others.
set -euo pipefail
# A process that dies must not leave its memory in the tree.
ulimit -c 0
cd "$(dirname "$0")/.."
scripts/engines/redis.sh get
scripts/engines/kafka.sh get
scripts/engines/postgres.sh get
cargo test --workspace --locked --test e2e -- cluster::death:: --ignored --nocapture
[ -n "${DEATH_OF:-}" ] || cargo test --workspace --locked --test e2e -- the_same_of_a_cluster --ignored --nocapture
