#!/usr/bin/env bash
# Checks unused dependencies (cargo machete), and licences, sources and banned crates of the
# dependencies (cargo deny, deny.toml). Installs both tools under target/tools when they are
# missing. Known vulnerabilities are checked where the advisory database can be fetched; elsewhere
# that part is reported as skipped.
#
# usage: dependencies-check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/target/tools
export PATH=$tools/bin:$PATH

get() { # CRATE
  command -v "$1" > /dev/null && return
  # Without optimisation: these run for seconds, and are compiled for minutes otherwise.
  cargo install --locked --debug --quiet --root "$tools" "$1" \
    || { echo "dependencies-check.sh: $1 cannot be installed" >&2; exit 2; }
}

get cargo-machete
cargo machete --skip-target-dir
get cargo-deny
cargo deny --locked check --hide-inclusion-graph licenses bans sources
if ! cargo deny --locked fetch db > target/advisories.txt 2>&1; then
  echo "advisories: skipped, the database cannot be fetched: $(grep -v '^ *$' target/advisories.txt | tail -n 1)"
  exit 0
fi
cargo deny --locked check --hide-inclusion-graph advisories
