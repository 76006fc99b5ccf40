#!/usr/bin/env bash
# Instructions per operation of each hot path, compared with testdata/instructions.txt. A count does
# not depend on the load of the machine, so a regression is visible on any.
#
#   scripts/instruction-counts.sh            compares; 1 on a regression, 2 when valgrind is missing
#   scripts/instruction-counts.sh --record   writes the table after an intended change
#
# Margin: 5 %, and 15 % with another rustc than that of the table.
set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
cd "$(dirname "$0")/.."

table=testdata/instructions.txt
times=1000
[ $# = 0 ] || [ "$*" = --record ] || { echo "usage: $0 [--record]" >&2; exit 64; }

if ! command -v valgrind > /dev/null; then
  sudo=$([ "$(id -u)" = 0 ] || echo sudo)
  { $sudo apt-get update && $sudo apt-get install -y valgrind; } > /dev/null 2>&1 || {
    echo "valgrind is missing and cannot be installed: install it, then run $0 again" >&2
    exit 2
  }
fi

# The program of a package, built.
program() {
  local found
  found=$(cargo bench --locked -p "$@" --bench instructions --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
  [ -x "$found" ] || { echo "the benchmark does not build: cargo bench -p $* --bench instructions --no-run" >&2; exit 1; }
  echo "$found"
}
programs=("$(program goim-session)" "$(program goim-comet --features harness)")
rustc=$(rustc --version | cut -d ' ' -f 2)

# Instructions of a whole run: PROGRAM PATH TIMES.
run() {
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$@" 2>&1 | sed -n 's/.*Collected : //p'
}

counted=$(mktemp)
trap 'rm -f "$counted"' EXIT
for program in "${programs[@]}"; do
  for path in $("$program"); do
    # The difference of two runs excludes the start of the program and the creation of the input.
    once=$(run "$program" "$path" "$times")
    twice=$(run "$program" "$path" $((2 * times)))
    [ -n "$once" ] && [ -n "$twice" ] || { echo "$path: valgrind counted nothing: $program $path $times" >&2; exit 1; }
    echo "$path $(((twice - once) / times))" >> "$counted"
  done
done

if [ "${1:-}" = --record ]; then
  {
    echo "# Instructions per operation; written by scripts/instruction-counts.sh --record"
    echo "rustc $rustc $(uname -m)"
    cat "$counted"
  } > "$table"
  cat "$table"
  exit
fi

awk -v rustc="$rustc $(uname -m)" '
  FNR == NR && /^#/ { next }
  FNR == NR && $1 == "rustc" { known = $2 " " $3; next }
  FNR == NR { old[$1] = $2; next }
  FNR == 1 {
    margin = rustc == known ? 0.05 : 0.15
    printf "rustc %s, table of %s, margin %d %%\n%-22s %8s %8s %6s\n", rustc, known, margin * 100, "path", "table", "now", "ratio"
  }
  !($1 in old) { printf "%-22s %8s %8d        not in the table\n", $1, "-", $2; failed = 1; next }
  {
    ratio = $2 / old[$1]; seen[$1] = 1; word = ""
    if (ratio > 1 + margin) { word = "  REGRESSION"; failed = 1 }
    if (ratio < 1 - margin) word = "  better: record it"
    printf "%-22s %8d %8d %6.2f%s\n", $1, old[$1], $2, ratio, word
  }
  END {
    for (path in old) if (!(path in seen)) { printf "%-22s %8d        - only in the table\n", path, old[path]; failed = 1 }
    if (failed) print "where the change is meant: scripts/instruction-counts.sh --record, and say why in the commit"
    exit failed
  }' "$table" "$counted"
