# goim: what people type. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help run cluster cluster-stop death chaos nothing-lost test check counts bench config toolchain

# Arguments for the server, for example: make run ARGS="--set comet.listen.tcp=:4101"; for the cluster settings without --set
ARGS ?=

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

run: toolchain  ## build the release binary, start the whole system in one process
	cargo build --release --package goim
	@exec ./target/release/goim serve $(ARGS)

cluster: toolchain  ## build the release binary, start Redis, Kafka, two comets, two logics and two jobs on this machine
	cargo build --release --package goim
	@scripts/engines/redis.sh get
	@scripts/cluster.sh start target/cluster $(ARGS)

cluster-stop:  ## drain and stop all of them
	@scripts/cluster.sh stop target/cluster

death: toolchain  ## kill, restart, freeze and cut off parts of a cluster under load, and count what is lost
	@scripts/cluster-death.sh
	@scripts/cluster-partition.sh

chaos: toolchain  ## kill roles at random, then fail Redis, Kafka and comets in every way, under pushes; count what is lost to sessions that live (SEED, MINUTES)
	@scripts/chaos.sh

nothing-lost: toolchain  ## kill the server, and parts of a cluster, 200 times under stored messages; check that each is delivered once and in order (KILLS, SEED)
	@for engine in redis kafka postgres; do scripts/engines/$$engine.sh get; done
	KILLS=$${KILLS:-200} cargo test --workspace --locked --test e2e -- nothing_lost:: --nocapture --include-ignored --test-threads=1

test: toolchain  ## get what the tests need, then run all of them
	@scripts/test.sh

check: toolchain  ## format, lints and documentation, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

counts: toolchain  ## instructions of the hot paths, against testdata/instructions.txt
	@scripts/instruction-counts.sh

bench: toolchain  ## build the load generator, goim-bench, and print its help
	cargo build --release --package goim --package goim-bench
	@./target/release/goim-bench --help

config: toolchain  ## write docs/goim.toml anew from the code
	cargo run --quiet --package goim -- config > target/goim.toml
	cp target/goim.toml docs/goim.toml

toolchain:
	@scripts/toolchain.sh
