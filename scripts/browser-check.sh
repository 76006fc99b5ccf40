#!/bin/bash
# Loads the page in examples/javascript in a headless Chromium, against a server on free ports: connect, auth,
# heartbeat, pushes by key, mid, room and to all, batches, change of room, and the way back after a crash of the
# server. Prints each check and "N passed, N failed"; exits nonzero when one failed.
#
# Needs python3, and chromium, which it installs with apt-get when there is none. Nothing else.
#
# usage: browser-check.sh [PROGRAM] [SCREENSHOTS]
#   PROGRAM      the goim to check; default: $GOIM_PROGRAM, else a debug build of this tree
#   SCREENSHOTS  folder that gets pictures of the pages
# CHROMIUM names another Chromium or Chrome.
set -euo pipefail
# A process that dies must not leave its memory in the tree.
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
  [ -z "${CHROMIUM:-}" ] || { echo "browser-check.sh: no program $CHROMIUM, which CHROMIUM names" >&2; exit 2; }
  log=$(mktemp)
  echo "installing chromium with apt-get"
  if ! install_chromium > "$log" 2>&1 || ! chromium=$(find_chromium); then
    tail -5 "$log" >&2
    echo "browser-check.sh: chromium cannot be installed here; install it, or name another one in CHROMIUM" >&2
    exit 2
  fi
  rm "$log"
fi

exec python3 -B "$here/browser/check.py" --goim "$program" --chromium "$chromium" ${2:+--screenshots "$2"}
