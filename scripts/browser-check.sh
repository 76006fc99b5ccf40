#!/bin/bash
# Loads the page of examples/javascript in a headless Chromium, against a server on free ports:
# connect, auth, heartbeat, pushes by key, mid, room and to all, batches, change of room, and the
# reconnect after a crash of the server. Prints each check and "N passed, N failed"; exits nonzero
# when a check fails.
#
# Needs python3 and chromium; installs chromium with apt-get when it is missing.
#
# usage: browser-check.sh [PROGRAM] [SCREENSHOTS]
#   PROGRAM      the goim to check; default: $GOIM_PROGRAM, else a debug build of this tree
#   SCREENSHOTS  folder for screenshots of the pages
# CHROMIUM names another Chromium or Chrome.
set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
here=$(cd "$(dirname "$0")" && pwd)

program=${1:-${GOIM_PROGRAM:-}}
if [ -z "$program" ]; then
  cd "$here/.."
  cargo build -q -p goim
  program=$(cargo metadata --format-version 1 --no-deps |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/goim
fi

find_chromium() {
  if [ -n "${CHROMIUM:-}" ]; then
    command -v "$CHROMIUM"
  else
    command -v chromium || command -v chromium-browser || command -v google-chrome-stable
  fi
}

install_chromium() {
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  export DEBIAN_FRONTEND=noninteractive
  local install=("${as_root[@]}" apt-get install -y -q --no-install-recommends chromium)
  # The lists of packages may be missing or old.
  "${install[@]}" || { "${as_root[@]}" apt-get update -q && "${install[@]}"; }
}

if ! chromium=$(find_chromium); then
  [ -z "${CHROMIUM:-}" ] || { echo "browser-check.sh: CHROMIUM names $CHROMIUM, which is not a program" >&2; exit 2; }
  log=$(mktemp)
  echo "installing chromium with apt-get"
  if ! install_chromium > "$log" 2>&1 || ! chromium=$(find_chromium); then
    tail -5 "$log" >&2
    echo "browser-check.sh: chromium cannot be installed here; install it, or set CHROMIUM to another one" >&2
    exit 2
  fi
  rm "$log"
fi

exec python3 -B "$here/browser/check.py" --goim "$program" --chromium "$chromium" ${2:+--screenshots "$2"}
