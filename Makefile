# What people and CI call. The work is done by cargo, tests/setup.sh and tests/demo.sh.

# Homebrew keeps libpq where pkg-config does not look by itself.
BREW := $(shell brew --prefix 2>/dev/null)
ifneq ($(BREW),)
export PKG_CONFIG_PATH := $(BREW)/opt/libpq/lib/pkgconfig:$(PKG_CONFIG_PATH)
endif

.PHONY: all build setup demo test chaos clean help

all: build

build:
	cargo build --release --locked

setup:
	@sh tests/setup.sh

# The build is a step of its own, not a prerequisite: it has to come after the set-up, under make -j too.
demo: setup
	@$(MAKE) --no-print-directory build
	@sh tests/demo.sh

test: setup
	@PG_BIN=$$(sh tests/setup.sh --pg-bin) && export PG_BIN && \
	if command -v cargo-nextest >/dev/null 2>&1; then \
		set -x; cargo nextest run --locked --config-file tests/nextest.toml $(ARGS); \
	else \
		set -x; cargo test --locked $(ARGS); \
	fi

chaos: setup
	@PG_BIN=$$(sh tests/setup.sh --pg-bin) && export PG_BIN && \
	set -x; cargo test --locked --test chaos -- run $(ARGS)

clean:
	cargo clean

help:
	@echo 'make          build target/release/pglock'
	@echo 'make demo     show pglock at work, against a throwaway PostgreSQL'
	@echo 'make test     run all tests, or some: make test ARGS=name'
	@echo 'make chaos    break everything at random for half an hour; make chaos ARGS=--help'
	@echo 'make setup    install what building and testing need; demo and test do that first'
	@echo 'make clean    remove what was built'
	@echo
	@echo 'PG_BIN=dir make test takes the PostgreSQL server (initdb, pg_ctl, postgres) from dir.'
