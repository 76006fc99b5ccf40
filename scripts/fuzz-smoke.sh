#!/bin/bash
# Runs every fuzz target for some seconds, starting with the golden bytes; exits nonzero when a
# target fails. Installs cargo-fuzz when it is missing.
#
# usage: fuzz-smoke.sh SECONDS
set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
seconds=${1:?usage: fuzz-smoke.sh SECONDS}
cd "$(dirname "$0")/.."

if ! cargo fuzz --version > /dev/null 2>&1; then
  cargo install cargo-fuzz --locked
fi
# The stable compiler rejects sanitizers without it.
export RUSTC_BOOTSTRAP=1
python3 fuzz/seed.py
for target in $(cargo fuzz list); do
  echo "== $target, $seconds s"
  cargo fuzz run "$target" -- -max_total_time="$seconds" -max_len=16384 -print_final_stats=1
done
