#!/usr/bin/env bash
# Kills each process and engine of a cluster under a steady load of pushes, one after the other, and prints what was lost, what
# came twice, and how long it took until all was well again. About two minutes; needs what scripts/test.sh needs.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/engines/redis.sh get
scripts/engines/kafka.sh get
TEST_KAFKA=own exec cargo test -p goim --locked --test cluster_death -- --ignored --nocapture
