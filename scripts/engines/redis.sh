#!/usr/bin/env bash
# A real Redis for tests and for trying the cluster, on free ports.
#
# usage: redis.sh get                     install it, with apt-get and the permission to use it
#        redis.sh start DIR [single]      start a server with its data in DIR; prints its URL
#        redis.sh start DIR cluster       six servers, three of them masters; prints all addresses
#        redis.sh start DIR sentinel      a master, a replica and three Sentinels; prints their
#                                         addresses
#        redis.sh stop DIR                stop all of them
#
# REDIS_HOST in the environment is a listen address of the single server besides 127.0.0.1.
# REDIS_TLS is a folder with ca.pem, cert.pem and key.pem: then all connections need TLS and a
# client certificate, and addresses begin with rediss://. The Sentinels' master is named "goim". In
# DIR each server has a folder named by its port, with its pid file.
# Exits with 2 when Redis is not available.

set -euo pipefail

say() { echo "redis.sh: $*" >&2; }

get() {
  command -v redis-server > /dev/null && command -v redis-cli > /dev/null && return
  if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    say "installing redis"
    # The package must not start a server.
    { apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server redis-tools redis-sentinel; } > /dev/null 2>&1 || true
  fi
  command -v redis-server > /dev/null || { say "needs redis-server (Debian: apt-get install redis-server)"; exit 2; }
}

# The bus ports of a cluster, 10000 above, are below those for outgoing connections too.
free_ports() { # COUNT [OPTIONS]
  "$(dirname "$0")/free-ports.py" "$1" 11000 22000 "${@:2}"
}

# Start attempts: another process may take a port between the check and the start.
tries=5

# Settings of servers and Sentinels, one per line, and of the command line.
scheme=redis secure_cli=()
if [ -n "${REDIS_TLS:-}" ]; then
  scheme=rediss
  secure_cli=(--tls --cacert "$REDIS_TLS/ca.pem" --cert "$REDIS_TLS/cert.pem" --key "$REDIS_TLS/key.pem")
fi
cli() { timeout 60 redis-cli "${secure_cli[@]}" "$@"; }
listening() { # PORT
  if [ "$scheme" = redis ]; then
    echo "port $1"
  else
    printf '%s\n' "port 0" "tls-port $1" "tls-ca-cert-file $REDIS_TLS/ca.pem" "tls-cert-file $REDIS_TLS/cert.pem" \
      "tls-key-file $REDIS_TLS/key.pem" "tls-replication yes" "tls-cluster yes"
  fi
}

server() { # DIR PORT OPTIONS...
  local dir=$1/$2 port=$2
  shift 2
  mkdir -p "$dir"
  listening "$port" > "$dir/listening.conf"
  redis-server "$dir/listening.conf" --bind 127.0.0.1 --dir "$dir" --pidfile "$dir/pid" --daemonize yes --logfile "$dir/log" --save "" --appendonly no "$@" > /dev/null
}

# Checks for the server of this folder and port; another server on the port does not count.
is_up() { # DIR PORT
  local said
  for _ in $(seq 200); do
    # It has exited: another process has the port, which may not be a Redis, or not answer.
    ! grep -qs "Failed listening" "$1/$2/log" || return 1
    said=$(timeout 2 redis-cli "${secure_cli[@]}" -p "$2" info server 2> /dev/null | tr -d '\r' | sed -n 's/^process_id://p')
    [ -n "$said" ] && [ "$said" = "$(cat "$1/$2/pid" 2> /dev/null)" ] && return
    sleep 0.05
  done
  return 1
}

# Waits for a server; prints why it did not start.
answers() { # DIR PORT
  is_up "$1" "$2" && return
  say "no answer on port $2:"
  tail -n 5 "$1/$2/log" >&2 || true
  return 1
}

start_single() {
  local port host=${REDIS_HOST:-127.0.0.1} bind=127.0.0.1 try
  [ "$host" = 127.0.0.1 ] || bind="$bind $host"
  for try in $(seq $tries); do
    # A restarted server has a fixed port.
    if [ -e "$1/port" ]; then port=$(cat "$1/port"); else port=$(free_ports 1); fi
    rm -f "$1/$port/log"
    # shellcheck disable=SC2086
    server "$1" "$port" --bind $bind --protected-mode no || true
    if answers "$1" "$port"; then
      echo "$port" > "$1/port"
      echo "$scheme://$host:$port"
      return
    fi
    if [ -e "$1/port" ] && [ "$try" -lt "$tries" ]; then
      # A port in use may become free again.
      sleep 1
    else
      again "$1" "$try"
    fi
  done
}

# Cleans up after a failed attempt. Exits after the last one.
again() { # DIR TRY
  stop "$1"
  [ "$2" -lt "$tries" ] || exit 1
  say "starting on other ports (try $(($2 + 1)))"
  rm -rf "$1"/[0-9]*
}

# Several servers, on other ports when one of them cannot listen.
start_several() { # DIR KIND PORTS [OPTIONS OF free_ports]
  local try ports
  for try in $(seq $tries); do
    read -r -a ports <<< "$(free_ports "$3" "${@:4}")"
    "start_$2_on" "$1" "${ports[@]}" && return
    again "$1" "$try"
  done
}

start_cluster() {
  start_several "$1" cluster 6 --also 10000
}

start_sentinel() {
  start_several "$1" sentinel 5
}

start_cluster_on() { # DIR PORTS...
  local ports=("${@:2}") port nodes=()
  for port in "${ports[@]}"; do
    server "$1" "$port" --cluster-enabled yes --cluster-config-file nodes.conf --cluster-node-timeout 2000 || true
    nodes+=("127.0.0.1:$port")
  done
  for port in "${ports[@]}"; do answers "$1" "$port" || return; done
  cli --cluster create "${nodes[@]}" --cluster-replicas 1 --cluster-yes > "$1/create.log" 2>&1 || { cat "$1/create.log" >&2; exit 1; }
  for port in "${ports[@]}"; do
    for _ in $(seq 200); do
      cli -p "$port" cluster info 2> /dev/null | grep -q cluster_state:ok && break
      sleep 0.05
    done
  done
  printf "$scheme://%s " "${nodes[@]}"
  echo
}

start_sentinel_on() { # DIR PORTS...
  local ports=("${@:2}") port urls=()
  server "$1" "${ports[0]}" || true
  answers "$1" "${ports[0]}" || return
  server "$1" "${ports[1]}" --replicaof 127.0.0.1 "${ports[0]}" || true
  answers "$1" "${ports[1]}" || return
  for port in "${ports[@]:2}"; do
    mkdir -p "$1/$port"
    cat > "$1/$port/sentinel.conf" << CONF
bind 127.0.0.1
$(listening "$port" | grep -v tls-cluster)
dir $1/$port
pidfile $1/$port/pid
logfile $1/$port/log
daemonize yes
sentinel monitor goim 127.0.0.1 ${ports[0]} 2
sentinel down-after-milliseconds goim 1000
sentinel failover-timeout goim 5000
sentinel parallel-syncs goim 1
CONF
    redis-server "$1/$port/sentinel.conf" --sentinel > /dev/null || true
    urls+=("$scheme://127.0.0.1:$port")
  done
  # All must know the replica and each other before a failure.
  for port in "${ports[@]:2}"; do
    answers "$1" "$port" || return
    for _ in $(seq 300); do
      cli -p "$port" sentinel master goim 2> /dev/null | paste -s -d ' ' | grep -Eq 'num-slaves 1 num-other-sentinels 2' && break
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
  *) sed -n '2,/^$/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 64 ;;
esac
