# Everything a newcomer types. `make` alone lists it.
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)

help: ## List what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: ## Install what is missing, build, start perchd, launch two apps
	@scripts/setup build
	@scripts/demo start

demo-stop: ## Take the demo away, leave nothing behind
	@scripts/demo stop

test: ## Install what the tests need, check the code, run all tests
	@scripts/setup test
	@$(MAKE) --no-print-directory check
	cargo test --quiet --locked --manifest-path xtask/openapi/Cargo.toml --target-dir target/openapi
	cargo xtask guest
	cargo build --quiet --locked --workspace --bins
	@skipped=$$(mktemp); \
	PERCH_SKIPPED_FILE=$$skipped cargo nextest run --locked --workspace --no-fail-fast $(TESTS); \
	status=$$?; scripts/skipped $$skipped || status=1; rm -f $$skipped; exit $$status

test-long: test ## Also what takes long: fuzz targets, base images, both example apps, an emulated Debian
	PERCH_TEST_LONG=1 cargo nextest run --locked --workspace --no-fail-fast --profile long
	cargo run --quiet --release --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz
	@scripts/demo start && scripts/demo stop
	@scripts/test-vm

check: ## Format, lints, structure
	cargo fmt --all --check
	cargo fmt --manifest-path conformance/flytrap/Cargo.toml --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	cargo xtask arch
	cargo xtask tidy
	cargo xtask security
	cargo xtask openapi
	cargo clippy --quiet --locked --manifest-path xtask/openapi/Cargo.toml --target-dir target/openapi -- -D warnings

bench: ## Measure beside runc and podman (bench/edge: beside nginx and haproxy); needs them installed
	@bench/run

install: ## Install perchd, perch and their helpers under /usr/local (PREFIX=, DESTDIR=)
	@scripts/setup build
	cargo build --release --locked
	cargo xtask guest
	install -D -t $(DESTDIR)$(PREFIX)/bin target/release/perchd target/release/perch
	install -D -t $(DESTDIR)$(PREFIX)/lib/perch target/guest/perch-init target/guest/perch-monitor
	[ ! -d $(DESTDIR)/etc/systemd/system ] || \
	  install -m 644 dist/perchd.service $(DESTDIR)/etc/systemd/system/perchd.service

PREFIX ?= /usr/local

.PHONY: help demo demo-stop test test-long check bench install
