#!/usr/bin/env bash
# Two third-party clients of the danmaku protocol against this server: they authenticate, read
# online counts, and show pushes, small and compressed, over TCP, WebSocket and TLS. The clients
# only have the loopback interface of a network namespace. Takes half a minute, and more the first
# time.
#
# usage: danmaku/check.sh BINARY
#
# Needs root (network namespaces), Node.js, Python 3 with venv, openssl, and the registries of npm
# and PyPI the first time. Exits with 2 when something is missing.

set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/scripts/danmaku
engines=$root/target/engines/danmaku

say() { echo "danmaku/check.sh: $*" >&2; }

get() {
  local tool
  for tool in node npm python3 openssl curl ip unshare; do
    command -v $tool > /dev/null || { say "needs $tool"; exit 2; }
  done
  [ "$(id -u)" = 0 ] || { say "needs root, for network namespaces"; exit 2; }
  mkdir -p "$engines"
  [ -e "$engines/node_modules/bilibili-live-ws" ] || {
    say "getting bilibili-live-ws"
    (cd "$engines" && echo '{"private":true}' > package.json && npm install --silent --no-audit --no-fund --ignore-scripts bilibili-live-ws@6.3.1 > /dev/null) \
      || { say "npm could not get it"; exit 2; }
  }
  [ -e "$engines/venv/ready" ] || {
    say "getting blivedm"
    rm -rf "$engines/venv"
    { python3 -m venv "$engines/venv" && "$engines/venv/bin/pip" install --quiet blivedm==0.1.1; } > /dev/null \
      || { say "pip could not get it"; exit 2; }
    touch "$engines/venv/ready"
  }
}

# The address of the server's listener whose line begins with a name and that has this scheme.
address() { # FILE NAME SCHEME
  sed -n "s|^ *$2 .*$3://\([0-9.:]*\).*|\1|p" "$1" | head -n 1
}

inside() {
  local binary=$1 work server status=0
  work=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "kill \$(cat '$work/pid' 2> /dev/null) 2> /dev/null || true; rm -rf '$work'" EXIT
  ip link set lo up
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -keyout "$work/key.pem" -out "$work/cert.pem" 2> "$work/openssl.log" || { cat "$work/openssl.log" >&2; exit 1; }
  "$binary" serve --set comet.listen.tcp= --set comet.listen.websocket=127.0.0.1:0 --set comet.listen.websocket_tls= \
    --set http.listen=127.0.0.1:0 --set rpc.comet=none --set rpc.logic=none \
    --set comet.listen.danmaku_tcp=127.0.0.1:0 --set comet.listen.danmaku_websocket=127.0.0.1:0 \
    --set comet.listen.danmaku_websocket_tls=127.0.0.1:0 --set "comet.tls.cert_file=$work/cert.pem" \
    --set "comet.tls.key_file=$work/key.pem" --set comet.report_interval=100ms > "$work/server" 2> "$work/server.log" &
  echo $! > "$work/pid"
  for _ in $(seq 200); do
    grep -q "push API" "$work/server" && break
    kill -0 "$(cat "$work/pid")" 2> /dev/null || { say "the server has exited:"; cat "$work/server.log" >&2; exit 1; }
    sleep 0.05
  done
  # The announcement of the server.
  server=$work/server
  export HTTP TCP WS WSS
  HTTP=$(address "$server" "push API" http)
  TCP=$(address "$server" danmaku tcp)
  WS=$(address "$server" danmaku ws)
  WSS=$(address "$server" danmaku wss)
  NODE_PATH=$engines/node_modules timeout 60 node "$here/client.js" || status=1
  timeout 60 "$engines/venv/bin/python" "$here/client.py" || status=1
  [ $status = 0 ] || { say "the server's log:"; tail -n 20 "$work/server.log" >&2; }
  return $status
}

case "${1:-}" in
  inside) inside "$2" ;;
  "" | -*) sed -n '2,/^$/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 64 ;;
  *)
    binary=$(realpath "$1")
    get
    exec unshare --net "$0" inside "$binary"
    ;;
esac
