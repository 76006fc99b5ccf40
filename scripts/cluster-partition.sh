#!/usr/bin/env bash
# Partitions one of two comets from all other processes, by dropping packets, and heals the
# partition, under a steady load of pushes. Each comet is in a separate network namespace, all other
# processes in another one. Prints losses and delays. About a minute; needs root, and what
# scripts/test.sh needs.
#
# usage: cluster-partition.sh            run the whole test
#        cluster-partition.sh with TEST  run another test of the e2e suite in such namespaces
#        cluster-partition.sh cut NAME   called by the test: drop all packets of comet1 or comet2
#        cluster-partition.sh heal NAME  the reverse

set -euo pipefail
# A process that crashes must not leave a core dump in the tree.
ulimit -c 0
cd "$(dirname "$0")/.."

space() { echo "goim-$1-${PARTITION_ID:?set by the script itself}"; }

# A namespace that is connected with the others: 10.77.N.2, and 10.77.N.1 at the other end.
join() { # NAME N
  local name=$1 net=10.77.$2 space
  space=$(space "$1")
  ip netns add "$space"
  ip link add "$name" type veth peer name out netns "$space"
  ip addr add "$net.1/24" dev "$name"
  ip link set "$name" up
  ip -n "$space" addr add "$net.2/24" dev out
  ip -n "$space" link set lo up
  ip -n "$space" link set out up
  ip -n "$space" route add default via "$net.1"
}

leave() {
  ip netns del "$(space comet1)" 2> /dev/null || true
  ip netns del "$(space comet2)" 2> /dev/null || true
}

inside() { # TEST
  ip link set lo up
  ip addr add 10.77.0.1/32 dev lo
  export PARTITION_ID=$$
  trap leave EXIT
  join comet1 1
  join comet2 2
  # Pushes are accepted from the local machine only, which here is the namespace of the test.
  export CLUSTER_HOST=10.77.0.1 CLUSTER_HOST_http=127.0.0.1 CLUSTER_HOST_comet1=10.77.1.2 CLUSTER_HOST_comet2=10.77.2.2
  CLUSTER_RUN_comet1="ip netns exec $(space comet1)" CLUSTER_RUN_comet2="ip netns exec $(space comet2)"
  export CLUSTER_RUN_comet1 CLUSTER_RUN_comet2
  cargo test --offline --workspace --locked --test e2e -- "$1" --ignored --nocapture
}

get() {
  command -v ip > /dev/null && command -v nft > /dev/null && return
  if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends iproute2 nftables; } > /dev/null 2>&1 || true
  fi
  command -v ip > /dev/null && command -v nft > /dev/null \
    || { echo "cluster-partition.sh: needs ip and nft (Debian: apt-get install iproute2 nftables)" >&2; exit 2; }
}

case "${1:-}" in
  "" | with)
    test=${2:-cluster::partition::}
    [ "$(id -u)" = 0 ] || { echo "cluster-partition.sh: needs root, for network namespaces" >&2; exit 2; }
    get
    scripts/engines/redis.sh get
    scripts/engines/kafka.sh get
    # There is no network access inside.
    cargo test --workspace --locked --test e2e --no-run
    exec unshare --net "$0" inside "$test"
    ;;
  inside) inside "$2" ;;
  cut)
    ip netns exec "$(space "$2")" nft -f - << 'RULES'
table inet cut {
  chain incoming { type filter hook input priority 0; iifname != "lo" drop; }
  chain outgoing { type filter hook output priority 0; oifname != "lo" drop; }
}
RULES
    ;;
  heal) ip netns exec "$(space "$2")" nft delete table inet cut ;;
  *) sed -n '2,/^$/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 64 ;;
esac
