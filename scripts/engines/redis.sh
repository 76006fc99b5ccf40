#!/usr/bin/env bash
# A real Redis for tests and for trying the cluster, on ports of its own.
#
# usage: redis.sh get                     install it, where apt-get and the right to do so are there
#        redis.sh start DIR [single]      start a server that keeps everything in DIR; prints redis://host:port
#        redis.sh start DIR cluster       six servers, three of them masters; prints the addresses of all
#        redis.sh start DIR sentinel      a master, a replica and three Sentinels; prints the addresses of the Sentinels
#        redis.sh stop DIR                stop all of them
#
# REDIS_HOST in the environment is an address at which the single server listens besides 127.0.0.1.
# The master that the Sentinels know is called "goim". In DIR each server has a folder named by its port, with its pid file.
# Exits with 2 when Redis cannot be had.
set -euo pipefail

say() { echo "redis.sh: $*" >&2; }

get() {
  command -v redis-server > /dev/null && command -v redis-cli > /dev/null && return
  if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    say "installing redis"
    # No server of the system's own is wanted.
    { apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server redis-tools redis-sentinel; } > /dev/null 2>&1 || true
  fi
  command -v redis-server > /dev/null || { say "needs redis-server (Debian: apt-get install redis-server)"; exit 2; }
}

# As many free ports, of which the bus ports of a cluster, 10000 above, can exist too.
free_ports() {
  python3 - "$1" << 'PYTHON'
import socket, sys
held, ports = [], []
while len(ports) < int(sys.argv[1]):
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    held.append(s)
    if s.getsockname()[1] < 55000:
        ports.append(s.getsockname()[1])
    elif len(held) > 2000:
        for port in range(20000, 55000):
            t = socket.socket()
            try:
                t.bind(("127.0.0.1", port))
                held.append(t)
                ports.append(port)
            except OSError:
                pass
            if len(ports) == int(sys.argv[1]):
                break
print(*ports)
PYTHON
}

server() { # DIR PORT OPTIONS...
  local dir=$1/$2 port=$2
  shift 2
  mkdir -p "$dir"
  redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" --pidfile "$dir/pid" --daemonize yes --logfile "$dir/log" --save "" --appendonly no "$@" > /dev/null
}

answers() { # PORT
  for _ in $(seq 100); do
    [ "$(redis-cli -p "$1" ping 2> /dev/null)" = PONG ] && return
    sleep 0.05
  done
  say "no answer on port $1"
  exit 1
}

start_single() {
  local ports
  if [ -e "$1/port" ]; then ports=$(cat "$1/port"); else ports=$(free_ports 1); echo "$ports" > "$1/port"; fi
  local host=${REDIS_HOST:-127.0.0.1} bind=127.0.0.1
  [ "$host" = 127.0.0.1 ] || bind="$bind $host"
  # shellcheck disable=SC2086
  server "$1" "$ports" --bind $bind --protected-mode no
  answers "$ports"
  echo "redis://$host:$ports"
}

start_cluster() {
  local ports port nodes=()
  ports=$(free_ports 6)
  for port in $ports; do
    server "$1" "$port" --cluster-enabled yes --cluster-config-file nodes.conf --cluster-node-timeout 2000
    nodes+=("127.0.0.1:$port")
  done
  for port in $ports; do answers "$port"; done
  redis-cli --cluster create "${nodes[@]}" --cluster-replicas 1 --cluster-yes > "$1/create.log" 2>&1 || { cat "$1/create.log" >&2; exit 1; }
  for port in $ports; do
    for _ in $(seq 200); do
      redis-cli -p "$port" cluster info 2> /dev/null | grep -q cluster_state:ok && break
      sleep 0.05
    done
  done
  printf 'redis://%s ' "${nodes[@]}"
  echo
}

start_sentinel() {
  local ports port urls=()
  read -r -a ports <<< "$(free_ports 5)"
  server "$1" "${ports[0]}"
  answers "${ports[0]}"
  server "$1" "${ports[1]}" --replicaof 127.0.0.1 "${ports[0]}"
  answers "${ports[1]}"
  for port in "${ports[@]:2}"; do
    mkdir -p "$1/$port"
    cat > "$1/$port/sentinel.conf" << CONF
bind 127.0.0.1
port $port
dir $1/$port
pidfile $1/$port/pid
logfile $1/$port/log
daemonize yes
sentinel monitor goim 127.0.0.1 ${ports[0]} 2
sentinel down-after-milliseconds goim 1000
sentinel failover-timeout goim 5000
sentinel parallel-syncs goim 1
CONF
    redis-server "$1/$port/sentinel.conf" --sentinel > /dev/null
    urls+=("redis://127.0.0.1:$port")
  done
  # All must know the replica and each other before anything may fail.
  for port in "${ports[@]:2}"; do
    answers "$port"
    for _ in $(seq 300); do
      redis-cli -p "$port" sentinel master goim 2> /dev/null | paste -s -d ' ' | grep -Eq 'num-slaves 1 num-other-sentinels 2' && break
      sleep 0.1
    done
  done
  echo "${urls[@]}"
}

stop() {
  local pid file
  for file in "$1"/*/pid; do
    pid=$(cat "$file" 2> /dev/null) || continue
    kill -CONT "$pid" 2> /dev/null || true
    kill -TERM "$pid" 2> /dev/null || true
  done
  for file in "$1"/*/pid; do
    pid=$(cat "$file" 2> /dev/null) || continue
    for _ in $(seq 100); do
      kill -0 "$pid" 2> /dev/null || break
      sleep 0.05
    done
    kill -KILL "$pid" 2> /dev/null || true
  done
}

case "${1:-}" in
  get) get ;;
  start)
    get
    mkdir -p "${2:?a folder}"
    "start_${3:-single}" "$(cd "$2" && pwd)"
    ;;
  stop) stop "${2:?a folder}" ;;
  *) sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 64 ;;
esac
