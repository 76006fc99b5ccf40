#!/usr/bin/env bash
# A cluster on this machine: Redis, Kafka, two logics, two comets and two jobs, each a process.
#
# usage: cluster.sh start DIR [SETTING=VALUE ...]   start all processes, with settings for all
#                                                   roles; print their addresses
#        cluster.sh stop DIR                        drain and stop all processes
#        cluster.sh status DIR                      print the processes and their addresses
#        cluster.sh restart DIR NAME                stop one regularly and start it again
#        cluster.sh kill DIR NAME                   end one as a crash would
#        cluster.sh again DIR NAME                  start one that has ended
#        cluster.sh launch DIR NAME                 the same for a role, without waiting for it
#        cluster.sh set DIR SETTING=VALUE           add a setting for all roles that start later
#        cluster.sh freeze|thaw DIR NAME            suspend a process; resume it
#
# NAME is logic1, logic2, comet1, comet2, job1, job2, redis or kafka. DIR holds logs, process ids,
# Kafka's data, and in NAME.status the process id and exit status of a role that has ended.
# In the environment:
#   CLUSTER_BINARY        the goim to run                           target/release/goim
#   CLUSTER_PORTS         "free" uses free ports                    goim's; second + 100
#   CLUSTER_HOST          the listen address of all processes       127.0.0.1
#   CLUSTER_HOST_<NAME>   the same for one process, or for one      CLUSTER_HOST
#                         listener: tcp, websocket, http, rpc, pages
#   CLUSTER_RUN_<NAME>    a command that runs one process           nothing

set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
root=$(cd "$(dirname "$0")/.." && pwd)
binary=${CLUSTER_BINARY:-$root/target/release/goim}
names="logic1 logic2 comet1 comet2 job1 job2"

say() { echo "cluster.sh: $*" >&2; }

usage() {
  sed -n '2,/^$/p' "$0" | sed 's/^# \{0,1\}//' >&2
  exit 64
}

free_ports() { # COUNT
  "$root/scripts/engines/free-ports.py" "$1" 22000 32000
}

host_of() { # NAME [WHAT]
  local own=CLUSTER_HOST_$1 kind=CLUSTER_HOST_${2:-$1}
  echo "${!kind:-${!own:-${CLUSTER_HOST:-127.0.0.1}}}"
}

# Lines of "NAME WHAT HOST:PORT".
choose_addresses() {
  local ports=() name what
  [ "${CLUSTER_PORTS:-}" != free ] || read -r -a ports <<< "$(free_ports 14)"
  address() { # NAME WHAT PORT
    local port=$3
    if [ "${CLUSTER_PORTS:-}" = free ]; then port=${ports[0]}; ports=("${ports[@]:1}"); fi
    echo "$1 $2 $(host_of "$1" "$2"):$port"
  }
  for nth in 1 2; do
    local more=$(((nth - 1) * 100))
    address logic$nth http $((3111 + more))
    address logic$nth rpc $((3119 + more))
    for what in "pages 3100" "tcp 3101" "websocket 3102" "rpc 3109"; do
      address comet$nth "${what% *}" $((${what#* } + more))
    done
    address job$nth pages $((3120 + more))
  done
}

address_of() { # DIR NAME WHAT
  awk -v name="$2" -v what="$3" '$1 == name && $2 == what { print $3 }' "$1/addresses"
}

# The settings of one role, in addition to those of all.
settings_of() { # DIR NAME
  local dir=$1 name=$2 logics
  case $name in
    logic*)
      echo "http.listen=$(address_of "$dir" "$name" http)"
      echo "rpc.logic=$(address_of "$dir" "$name" rpc)"
      ;;
    comet*)
      logics="\"grpc://$(address_of "$dir" logic1 rpc)\", \"grpc://$(address_of "$dir" logic2 rpc)\""
      echo "cluster.logic=[$logics]"
      echo "comet.node.server=$name"
      echo "comet.node.public_addrs=$(host_of "$name")"
      echo "comet.listen.tcp=$(address_of "$dir" "$name" tcp)"
      echo "comet.listen.websocket=$(address_of "$dir" "$name" websocket)"
      echo "comet.listen.websocket_tls="
      echo "rpc.comet=$(address_of "$dir" "$name" rpc)"
      echo "cluster.comet_admin_listen=$(address_of "$dir" "$name" pages)"
      ;;
    job*) echo "cluster.job_admin_listen=$(address_of "$dir" "$name" pages)"; echo "comet.node.server=$name" ;;
  esac
}

is_up() { # DIR NAME
  local pid
  pid=$(cat "$1/$2.pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null
}

is_ready() { # HOST:PORT
  local status
  {
    exec 3<> "/dev/tcp/${1%:*}/${1#*:}" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && read -r status <&3
  } 2> /dev/null || return 1
  exec 3>&-
  [[ $status == *" 200 "* ]]
}

launch() { # DIR NAME
  local dir=$1 name=$2 arguments=() setting run=CLUSTER_RUN_$2
  while IFS= read -r setting; do arguments+=(--set "$setting"); done < <(
    echo "redis.url=$(cat "$dir/redis.url")"
    echo "kafka.brokers=$(cat "$dir/kafka.broker")"
    settings_of "$dir" "$name"
    cat "$dir/settings"
  )
  # The end of a shell must not end the cluster. A subshell stays and records the exit status.
  rm -f "$dir/$name.pid"
  (
    # shellcheck disable=SC2086
    ${!run:-} setsid "$binary" "${name%[0-9]}" "${arguments[@]}" &
    echo $! > "$dir/$name.pid.part"
    mv "$dir/$name.pid.part" "$dir/$name.pid"
    status=0
    wait $! || status=$?
    echo "$! $status" > "$dir/$name.status.part"
    mv "$dir/$name.status.part" "$dir/$name.status"
  ) >> "$dir/$name.log" 2>&1 < /dev/null &
  until [ -e "$dir/$name.pid" ]; do sleep 0.01; done
}

# 3: it has ended because one of its ports is in use.
wait_until_ready() { # DIR NAME
  local pages=pages
  [[ $2 != logic* ]] || pages=http
  for _ in $(seq 600); do
    # The process that answers must be this one.
    if is_ready "$(address_of "$1" "$2" "$pages")" && is_up "$1" "$2"; then return; fi
    is_up "$1" "$2" || {
      say "$2 has ended:"
      tail -n 20 "$1/$2.log" >&2
      ! tail -n 5 "$1/$2.log" | grep -q "Address already in use" || return 3
      return 1
    }
    sleep 0.05
  done
  say "$2 is not ready after 30 s:"
  tail -n 20 "$1/$2.log" >&2
  return 1
}

# A restarted process has fixed ports. A port in use may become free again.
launch_until_ready() { # DIR NAME
  local status
  for _ in 1 2 3 4 5; do
    launch "$1" "$2"
    status=0
    wait_until_ready "$1" "$2" || status=$?
    [ $status = 3 ] || return $status
    sleep 1
  done
  return 1
}

launch_all() { # DIR
  local name
  for name in $names; do launch "$1" "$name"; done
  for name in $names; do wait_until_ready "$1" "$name" || return; done
}

end() { # SIGNAL DIR NAME
  local pid
  pid=$(cat "$2/$3.pid" 2> /dev/null) || return 0
  kill -CONT "$pid" 2> /dev/null || true
  kill "-$1" "$pid" 2> /dev/null || true
  # A drain may take 30 s.
  for _ in $(seq 900); do
    kill -0 "$pid" 2> /dev/null || { rm -f "$2/$3.pid"; return 0; }
    sleep 0.05
  done
  say "$3 does not end; killing it"
  kill -KILL "$pid" 2> /dev/null || true
  rm -f "$2/$3.pid"
}

start_engine() { # DIR redis|kafka
  case $2 in
    redis) REDIS_HOST=$(host_of redis) "$root/scripts/engines/redis.sh" start "$1/redis" > "$1/redis.url" ;;
    kafka) "$root/scripts/engines/kafka.sh" start "$1/kafka" > "$1/kafka.broker" ;;
  esac
}

start() { # DIR SETTINGS...
  local dir=$1 name try status
  shift
  [ -x "$binary" ] || { say "no $binary: make cluster builds it"; exit 1; }
  for name in $names; do
    ! is_up "$dir" "$name" || { say "$name runs already; stop it with: $0 stop $dir"; exit 1; }
  done
  printf '%s\n' "$@" | sed '/^$/d' > "$dir/settings"
  trap 'say "stopping what was started"; stop "$dir"' EXIT
  start_engine "$dir" redis
  start_engine "$dir" kafka
  for try in 1 2 3 4 5; do
    [ -e "$dir/addresses" ] || choose_addresses > "$dir/addresses"
    status=0
    launch_all "$dir" || status=$?
    [ $status != 0 ] || break
    [ "${CLUSTER_PORTS:-}" = free ] && [ $status = 3 ] && [ "$try" -lt 5 ] || exit 1
    say "starting on other ports (try $((try + 1)))"
    for name in $names; do end KILL "$dir" "$name"; done
    rm -f "$dir/addresses"
  done
  trap - EXIT
  status "$dir"
}

# Comets and logics first, so that accepted pushes are delivered.
stop() { # DIR
  local name
  for name in comet1 comet2; do end TERM "$1" "$name" & done
  wait
  for name in logic1 logic2 job1 job2; do end TERM "$1" "$name" & done
  wait
  "$root/scripts/engines/kafka.sh" stop "$1/kafka"
  "$root/scripts/engines/redis.sh" stop "$1/redis"
}

status() { # DIR
  local name
  for name in $names; do
    if is_up "$1" "$name"; then echo "$name process $(cat "$1/$name.pid")"; else echo "$name stopped"; fi
  done
  cat "$1/addresses"
  echo "redis url $(cat "$1/redis.url")"
  echo "kafka broker $(cat "$1/kafka.broker")"
  echo "logs in $1"
}

engine_signal() { # SIGNAL DIR redis|kafka
  local file=$2/kafka/pid
  [ "$3" = kafka ] || file=$(echo "$2"/redis/*/pid)
  kill "-$1" "$(cat "$file")"
}

one() { # VERB DIR NAME
  local verb=$1 dir=$2 name=$3
  case $verb-$name in
    kill-kafka) "$root/scripts/engines/kafka.sh" kill "$dir/kafka" ;;
    # Redis stores nothing here: this is equivalent to a crash.
    kill-redis) "$root/scripts/engines/redis.sh" stop "$dir/redis" ;;
    restart-redis | restart-kafka) "$root/scripts/engines/$name.sh" stop "$dir/$name" && start_engine "$dir" "$name" ;;
    again-redis | again-kafka) start_engine "$dir" "$name" ;;
    freeze-redis | freeze-kafka) engine_signal STOP "$dir" "$name" ;;
    thaw-redis | thaw-kafka) engine_signal CONT "$dir" "$name" ;;
    kill-*) end KILL "$dir" "$name" ;;
    again-*) launch_until_ready "$dir" "$name" ;;
    launch-redis | launch-kafka) start_engine "$dir" "$name" ;;
    launch-*) launch "$dir" "$name" ;;
    restart-*) end TERM "$dir" "$name" && launch_until_ready "$dir" "$name" ;;
    freeze-*) kill -STOP "$(cat "$dir/$name.pid")" ;;
    thaw-*) kill -CONT "$(cat "$dir/$name.pid")" ;;
  esac
}

verb=${1:-}
dir=${2:-}
[ -n "$dir" ] || usage
[ "$verb" != start ] || mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
shift 2
case $verb in
  start) start "$dir" "$@" ;;
  stop | status) "$verb" "$dir" ;;
  set) printf '%s\n' "$@" >> "$dir/settings" ;;
  restart | kill | again | launch | freeze | thaw)
    [[ " $names redis kafka " == *" ${1:-} "* ]] || usage
    one "$verb" "$dir" "$1"
    ;;
  *) usage ;;
esac
