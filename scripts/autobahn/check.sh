#!/bin/bash
# Runs the Autobahn suite against the echo example of crates/websocket: sets the suite up when it is
# missing, starts the example on a free port, prints the result, exits nonzero when any of the 247
# cases fails.
#
# usage: check.sh [OUTDIR]      folder of the suite's reports; default: a new temporary folder
set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}
mkdir -p "$out"
cases=247

"$here/setup.sh" > "$out/setup.txt" 2>&1 || { tail -20 "$out/setup.txt"; echo "the suite could not be set up"; exit 2; }
cd "$here/../.."
cargo build -q -p goim-websocket --example echo
cargo run -q -p goim-websocket --example echo -- 127.0.0.1:0 > "$out/echo.txt" 2> "$out/echo-errors.txt" &
server=$!
trap 'kill "$server" 2> /dev/null || true' EXIT
for _ in $(seq 100); do
  [ -s "$out/echo.txt" ] && break
  kill -0 "$server" || { cat "$out/echo-errors.txt"; exit 2; }
  sleep 0.1
done
url=$(head -1 "$out/echo.txt")

status=0
"$here/run.sh" "$url" "$out" | tee "$out/outcome.txt" || status=$?
# Without this check a suite that runs fewer cases would pass.
if [ "$status" = 0 ] && ! grep -qx "$cases passed, 0 failed" "$out/outcome.txt"; then
  echo "expected $cases cases"
  status=1
fi
[ "$status" = 0 ] || echo "reports: $out/index.html"
exit "$status"
