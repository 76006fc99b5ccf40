#!/usr/bin/env bash
# A real Kafka for tests and for trying the cluster: one broker that is also its controller, on free
# ports.
#
# usage: kafka.sh get            get the jars, into target/engines/kafka
#        kafka.sh start DIR      start a broker with its data in DIR, which may exist;
#                                prints host:port
#        kafka.sh stop DIR       stop it regularly; its data stays in DIR
#        kafka.sh kill DIR       stop it as a crash would
#
# KAFKA_PARTITIONS in the environment is the number of partitions of an automatically created topic
# (8). Needs Java 17 and Maven. Exits with 2 when these, or the jars, are not available.

set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
jars=$root/target/engines/kafka/jars
version=3.9.1

say() { echo "kafka.sh: $*" >&2; }

get() {
  [ -e "$jars/kafka_2.13-$version.jar" ] && return
  for tool in java mvn; do
    command -v $tool > /dev/null || { say "needs $tool (Debian: apt-get install openjdk-17-jre-headless maven)"; exit 2; }
  done
  say "getting Kafka $version"
  local project=$root/target/engines/kafka/project
  mkdir -p "$project"
  cat > "$project/pom.xml" << POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>goim</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-reload4j</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
POM
  # An incomplete folder must not be used as a complete one.
  rm -rf "$jars" "$jars.part"
  mvn --quiet --batch-mode --file "$project/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$jars.part" >&2 \
    || { say "Maven could not get the jars"; exit 2; }
  mv "$jars.part" "$jars"
}

java_in() { # DIR HEAP MAIN ARGUMENTS...
  local dir=$1 heap=$2
  shift 2
  exec java "-Xmx$heap" "-Xms$heap" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "-Dlog4j.configuration=file:$dir/log4j.properties" -cp "$jars/*" "$@"
}

configure() {
  local dir=$1 port controller
  read -r port controller <<< "$("$(dirname "$0")/free-ports.py" 2 22000 32000)"
  mkdir -p "$dir/data"
  echo "$port" > "$dir/port"
  cat > "$dir/log4j.properties" << LOG
log4j.rootLogger=WARN, out
# The log shows that it has started: another process may answer on its port.
log4j.logger.kafka.server.KafkaRaftServer=INFO
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d{ISO8601} %p %c %m%n
LOG
  cat > "$dir/server.properties" << PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=CLIENTS://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=CLIENTS://127.0.0.1:$port
listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
log.dirs=$dir/data
num.partitions=${KAFKA_PARTITIONS:-8}
auto.create.topics.enable=true
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.enable=false
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=2
background.threads=2
PROPERTIES
  (java_in "$dir" 64m kafka.tools.StorageTool format --config "$dir/server.properties" --cluster-id Z29pbS1mb3ItdGVzdHMtMQ) > "$dir/format.log" 2>&1 \
    || { cat "$dir/format.log" >&2; exit 1; }
}

is_up() { # DIR
  local pid
  pid=$(cat "$1/pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null
}

launch() { # DIR
  # Each start has a separate log.
  [ ! -e "$1/broker.log" ] || cat "$1/broker.log" >> "$1/earlier.log"
  java_in "$1" 256m kafka.Kafka "$1/server.properties" > "$1/broker.log" 2>&1 < /dev/null &
  echo $! > "$1/pid"
}

# Waits for the broker. 3: one of its ports is in use.
wait_until_up() { # DIR
  for _ in $(seq 300); do
    ! grep -qs "Kafka Server started" "$1/broker.log" || return 0
    is_up "$1" || break
    sleep 0.1
  done
  if is_up "$1"; then say "the broker has not started after 30 s:"; else say "the broker has ended:"; fi
  tail -n 20 "$1/broker.log" >&2
  ! grep -qs "Address already in use" "$1/broker.log" || return 3
  return 1
}

start() {
  local dir=$1 try status
  get
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  for try in 1 2 3 4 5; do
    [ -e "$dir/server.properties" ] || configure "$dir"
    is_up "$dir" || launch "$dir"
    status=0
    wait_until_up "$dir" || status=$?
    if [ $status = 0 ]; then
      # From now on its ports are fixed.
      touch "$dir/has-started"
      echo "127.0.0.1:$(cat "$dir/port")"
      return
    fi
    [ $status = 3 ] && [ "$try" -lt 5 ] || exit 1
    end KILL "$dir"
    if [ -e "$dir/has-started" ]; then
      # A port in use may become free again.
      sleep 1
    else
      say "starting on other ports (try $((try + 1)))"
      rm -rf "$dir/data" "$dir/server.properties"
    fi
  done
}

end() { # SIGNAL DIR
  local pid
  pid=$(cat "$2/pid" 2> /dev/null) || return 0
  kill "-$1" "$pid" 2> /dev/null || true
  for _ in $(seq 200); do
    kill -0 "$pid" 2> /dev/null || { rm -f "$2/pid"; return; }
    sleep 0.1
  done
  kill -KILL "$pid" 2> /dev/null || true
  rm -f "$2/pid"
}

case "${1:-}" in
  get) get ;;
  start) start "${2:?a folder}" ;;
  stop) end TERM "${2:?a folder}" ;;
  kill) end KILL "${2:?a folder}" ;;
  *) sed -n '2,/^$/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 64 ;;
esac
