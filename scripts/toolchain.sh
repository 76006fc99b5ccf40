#!/usr/bin/env bash
# Checks what a build needs: Rust, at least the version of the workspace, and a C compiler. Prints
# how to get what is missing; installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
missing=0

say() {
  echo "$@" >&2
  missing=1
}

if ! command -v cargo > /dev/null; then
  say "Rust is missing. Install it: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
else
  found=$(rustc --version | cut -d' ' -f2)
  oldest=$(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)
  [ "$oldest" = "$wanted" ] || say "Rust $found is too old, $wanted is needed: rustup update stable"
fi
if ! command -v cc > /dev/null; then
  say "A C compiler is missing. Debian, Ubuntu: apt-get install gcc libc6-dev; Fedora: dnf install gcc; Alpine: apk add gcc musl-dev"
fi
# librdkafka, the client of Kafka, is built with it.
if ! command -v make > /dev/null; then
  say "make is missing. Debian, Ubuntu: apt-get install make; Fedora: dnf install make; Alpine: apk add make"
fi
[ "$missing" = 0 ] || exit 1
