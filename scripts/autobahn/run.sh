#!/bin/bash
# Runs the suite's fuzzing client against an echo server and prints the result; exits 1 when a case
# fails, 2 when the suite itself does.
#
# usage: run.sh ws://127.0.0.1:PORT [OUTDIR] [CASES] [EXCLUDED]
#   CASES and EXCLUDED are JSON lists, e.g. run.sh ws://127.0.0.1:9001 out '["9.*"]' '[]'
# Default: all but groups 9 (limits and speed, slow) and 12 and 13 (compression, which is not
# negotiated): 247 cases.
set -u
here=$(cd "$(dirname "$0")" && pwd)
url=$1 out=${2:-$(mktemp -d)} cases=${3:-'["*"]'} excluded=${4:-'["9.*", "12.*", "13.*"]'}
mkdir -p "$out"
cat > "$out/spec.json" <<J
{"outdir": "$out", "servers": [{"agent": "goim", "url": "$url", "options": {"version": 18}}],
 "cases": $cases, "exclude-cases": $excluded, "exclude-agent-cases": {}}
J
"$here/wstest" -m fuzzingclient -s "$out/spec.json" > "$out/log.txt" 2>&1 || { tail -20 "$out/log.txt"; exit 2; }
python3 "$here/summarise.py" "$out/index.json"
