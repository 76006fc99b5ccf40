#!/usr/bin/env bash
# Prepares everything that the tests need, then runs all tests of the workspace. The last line is
# the sum: N passed, N failed.
#
# usage: test.sh [ARGUMENTS FOR cargo test]
set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
cd "$(dirname "$0")/.."
scripts/toolchain.sh
# One test runs the Python client of the README, which needs only the standard library.
command -v python3 > /dev/null || { echo "test.sh: install python3 (Debian: apt-get install python3)" >&2; exit 1; }

echo "fetching the crates that Cargo.lock names"
cargo fetch --locked --quiet

# Real engines: tests start their Redis servers; all share one Kafka broker. Without an engine its
# tests are ignored, except with CI=true.
engine() {
  status=0
  "$@" || status=$?
  [ "$status" = 0 ] || { [ "$status" = 2 ] && [ "${CI:-}" != true ]; } || exit "$status"
}
engine scripts/engines/redis.sh get
engine scripts/engines/kafka.sh get
engine scripts/engines/postgres.sh get
# All folders of the tests are in one, so that engines which their tests did not stop are found.
TMPDIR=$(mktemp -d)
# PostgreSQL does not run as root, and must have access to its folder in there.
chmod 711 "$TMPDIR"
export TMPDIR
kafka=$TMPDIR/kafka
log=$TMPDIR/log
end() {
  scripts/engines/kafka.sh stop "$kafka"
  for folder in "$TMPDIR"/goim-* "$TMPDIR"/goim-ports-*/engine; do
    scripts/engines/redis.sh stop "$folder"
    scripts/engines/postgres.sh stop "$folder"
  done
  rm -rf "$TMPDIR"
}
trap end EXIT
TEST_KAFKA=$(engine scripts/engines/kafka.sh start "$kafka")
export TEST_KAFKA

# Some tests open 18,000 and more sockets; each is an open file.
ulimit -n "$(ulimit -Hn)" || true

# Tests that need an engine are marked as ignored, so that a run without engines reports them as
# ignored. Long tests with a separate script, and the processes that tests start, remain ignored.
with_engines=()
if [ -n "$TEST_KAFKA" ]; then
  with_engines=(--include-ignored)
  for name in chaos:: cluster::death:: cluster::partition:: the_same_of_a_cluster child_process:: takes_minutes; do
    with_engines+=(--skip "$name")
  done
fi

status=0
# Always the whole workspace: with fewer packages cargo selects other features and rebuilds most
# crates.
run() { cargo test --workspace --locked --no-fail-fast "$@" 2>&1 | tee -a "$log" || status=$?; }
if [ $# = 0 ]; then run -- "${with_engines[@]}"; else run "$@"; fi

# The same behaviour from a cluster: comet, logic and job over Redis and Kafka.
if [ -n "$TEST_KAFKA" ] && [ $# = 0 ]; then
  echo "again, with a cluster"
  TEST_CLUSTER=1 run --test e2e -- conformance:: replay:: "${with_engines[@]}"
  echo "a cluster whose parts are killed, restarted, frozen and cut off"
  scripts/cluster-death.sh 2>&1 | tee -a "$log" || status=$?
  engine scripts/cluster-partition.sh 2>&1 | tee -a "$log" || status=$?
  scripts/chaos.sh short 2>&1 | tee -a "$log" || status=$?
fi

# Repeats the failures at the end of a long output. A binary that does not compile, or crashes, has
# no result line.
if [ "$status" != 0 ]; then
  echo "what failed:"
  grep -aE '^error|^test .* FAILED|panicked at|Caused by|process didn.t exit|signal: |^ +`-p |: needs | must be ' "$log" | tail -n 60 || true
fi
# A binary without a result line is not counted; cargo's status shows it.
awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0 " passed, " failed + 0 " failed" }' "$log"
exit "$status"
