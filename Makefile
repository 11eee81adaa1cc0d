# What a developer runs; `.ci/run` runs the same commands.

FUZZ_SECONDS ?= 60
# Seeds that `make sim` runs; KV_SIM_SEED=N replays seed N alone.
KV_SIM_SEEDS ?= 5000
FUZZ_TARGETS = $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs)))

.DEFAULT_GOAL := help
.PHONY: help run check fmt lint test sim doc deny fuzz bench-wal demo ci clean

help: ## Say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: ## Start a local cluster, optimised
	cargo run --release

check: fmt lint ## Format check and lints

fmt: ## Check the format (`cargo fmt --all` sets it right)
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check

lint: ## Clippy, warnings are errors
	cargo clippy --workspace --all-targets -- -D warnings

test: ## All tests: units, golden bytes, properties, whole clusters
	cargo test --workspace

sim: ## The simulation over KV_SIM_SEEDS seeds (5000), optimised; a failure prints its seed, KV_SIM_SEED=N replays it
	KV_SIM_SEEDS=$(KV_SIM_SEEDS) cargo test --release -p kv-replication --test simulation -- --nocapture

doc: ## The documentation of all modules, private ones too; warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

deny: ## Licences, sources and bans of all dependencies
	cargo deny --offline check bans licenses sources

fuzz: ## Fuzz every decoder, FUZZ_SECONDS each (nightly and cargo-fuzz)
	@for target in $(FUZZ_TARGETS); do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit 1; \
	done

bench-wal: ## The log's speed beside a bare loop of write and sync (BENCH_DIR, BENCH_SECONDS)
	cargo run --release -p kv-node --example bench_wal

demo: ## Load Debian's whole package index into the cluster that runs at http://127.0.0.1:5000
	cargo run --release --example load_packages

ci: ## What CI runs
	bash .ci/run

clean: ## Remove what was built
	cargo clean
