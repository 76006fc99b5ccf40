#!/usr/bin/env bash
# A real PostgreSQL for tests, on a free port.
#
# usage: postgres.sh get          install it, with apt-get and the permission to use it
#        postgres.sh start DIR    start a server with its data in DIR, which may exist; prints
#                                 postgres://user@host:port/db
#        postgres.sh database DIR NAME   create an empty database; prints its address
#        postgres.sh kill DIR     end it as a crash would
#        postgres.sh stop DIR     stop it
#
# It is durable (fsync is on) and trusts all connections from this machine. Exits with 2 when
# PostgreSQL is not available.

set -euo pipefail

say() { echo "postgres.sh: $*" >&2; }

bin() { find /usr/lib/postgresql -maxdepth 2 -name bin 2> /dev/null | sort -V | tail -n 1; }

get() {
  [ -z "$(bin)" ] || return 0
  if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    say "installing postgresql"
    # The package must not create a cluster.
    mkdir -p /etc/postgresql-common
    grep -qs '^create_main_cluster' /etc/postgresql-common/createcluster.conf || echo 'create_main_cluster = false' >> /etc/postgresql-common/createcluster.conf
    { apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql; } > /dev/null 2>&1 || true
  fi
  [ -n "$(bin)" ] || { say "needs PostgreSQL (Debian: apt-get install postgresql)"; exit 2; }
}

# PostgreSQL does not run as root.
as_user() {
  if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

start() { # DIR
  local dir=$1 port try
  if [ ! -e "$dir/data/PG_VERSION" ]; then
    mkdir -p "$dir"
    [ "$(id -u)" != 0 ] || chown postgres "$dir"
    as_user "$(bin)/initdb" --pgdata "$dir/data" --username goim --auth trust --encoding UTF8 --no-sync > "$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log" >&2; exit 1; }
  fi
  for try in 1 2 3 4 5; do
    if [ -e "$dir/port" ]; then port=$(cat "$dir/port"); else port=$("$(dirname "$0")/free-ports.py" 1 11000 22000); fi
    if as_user "$(bin)/pg_ctl" --pgdata "$dir/data" --log "$dir/data/log" --silent --wait \
      -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=200" start > /dev/null 2>&1; then
      echo "$port" > "$dir/port"
      echo "postgres://goim@127.0.0.1:$port/postgres"
      return
    fi
    say "does not start on port $port (try $try):"
    tail -n 3 "$dir/data/log" >&2 || true
    # A restarted server has a fixed port. A port in use may become free again.
    [ ! -e "$dir/port" ] || sleep 1
  done
  exit 1
}

end() { # DIR MODE
  [ ! -e "$1/data/postmaster.pid" ] || as_user "$(bin)/pg_ctl" --pgdata "$1/data" --mode "$2" --silent stop > /dev/null 2>&1 || true
}

# A crash of all its processes at once.
crash() { # DIR
  local pid
  pid=$(head -n 1 "$1/data/postmaster.pid" 2> /dev/null) || return 0
  pkill -KILL -P "$pid" 2> /dev/null || true
  kill -KILL "$pid" 2> /dev/null || true
  for _ in $(seq 100); do
    kill -0 "$pid" 2> /dev/null || break
    sleep 0.02
  done
  rm -f "$1/data/postmaster.pid"
}

case "${1:-}" in
  get) get ;;
  start)
    get
    mkdir -p "${2:?a folder}"
    start "$(cd "$2" && pwd)"
    ;;
  database)
    port=$(cat "${2:?a folder}/port")
    "$(bin)/psql" --quiet --no-psqlrc --host 127.0.0.1 --port "$port" --username goim postgres --command "CREATE DATABASE ${3:?a name}" >&2
    echo "postgres://goim@127.0.0.1:$port/$3"
    ;;
  kill) crash "${2:?a folder}" ;;
  stop) end "${2:?a folder}" fast ;;
  *) sed -n '2,/^$/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 64 ;;
esac
