#!/usr/bin/env bash
# Gets everything that the tests need, then runs all tests of the workspace. The last line is the sum: N passed, N failed.
#
# usage: test.sh [ARGUMENTS FOR cargo test]
set -euo pipefail
# A process that dies must not leave its memory in the tree.
ulimit -c 0
cd "$(dirname "$0")/.."
scripts/toolchain.sh
# One test runs the client of README, which is Python and needs nothing but its standard library.
command -v python3 > /dev/null || { echo "test.sh: install python3 (Debian: apt-get install python3)" >&2; exit 1; }

echo "fetching the crates that Cargo.lock names"
cargo fetch --locked --quiet

# Real engines: Redis servers are started by the tests that want them, one Kafka broker is for all. Without them their tests
# are passed over, except with CI=true.
engine() {
  status=0
  "$@" || status=$?
  [ "$status" = 0 ] || { [ "$status" = 2 ] && [ "${CI:-}" != true ]; } || exit "$status"
}
engine scripts/engines/redis.sh get
engine scripts/engines/kafka.sh get
engine scripts/engines/postgres.sh get
# All folders of the tests are in one, so that engines whose tests did not end them are found.
TMPDIR=$(mktemp -d)
# PostgreSQL refuses to be root, and must reach its own folder in there.
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

# 18,000 and more sockets are opened by some tests; every one is an open file.
ulimit -n "$(ulimit -Hn)" || true

# Tests that need an engine are marked as ignored, so that a run without engines reports them so. Those that
# scripts of their own run for minutes, and the processes that tests start, stay ignored.
with_engines=()
if [ -n "$TEST_KAFKA" ]; then
  with_engines=(--include-ignored)
  for name in chaos:: cluster::death:: cluster::partition:: the_same_of_a_cluster child_process:: takes_minutes; do
    with_engines+=(--skip "$name")
  done
fi

status=0
# The whole workspace every time: with fewer packages cargo picks other features and builds most crates again.
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

# What went wrong, once more, where the end of a long output is read: a binary that does not compile, or dies, has no result line.
if [ "$status" != 0 ]; then
  echo "what failed:"
  grep -aE '^error|^test .* FAILED|panicked at|Caused by|process didn.t exit|signal: |^ +`-p |: needs | must be ' "$log" | tail -n 60 || true
fi
# A binary without a result line counts nowhere; cargo's status knows.
awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0 " passed, " failed + 0 " failed" }' "$log"
exit "$status"
