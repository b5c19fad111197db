# What people and CI call. The work is done by cargo and the scripts in tests/tools.

# Homebrew keeps libpq where pkg-config does not look by itself.
BREW := $(shell brew --prefix 2>/dev/null)
ifneq ($(BREW),)
export PKG_CONFIG_PATH := $(BREW)/opt/libpq/lib/pkgconfig:$(PKG_CONFIG_PATH)
endif

.PHONY: all build static install uninstall dist setup demo test test-static bench test-versions test-matrix storm chaos patroni fuzz \
	simulate clean help

prefix = $(or $(PREFIX),/usr/local)
target := $(or $(CARGO_TARGET_DIR),target)
host = $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')

# What goes where, below $(DESTDIR)$(prefix): the shells' own folders for what packages bring.
man := share/man/man1/pglock.1
completions := share/bash-completion/completions/pglock share/zsh/site-functions/_pglock \
	share/fish/vendor_completions.d/pglock.fish

# What the program prints of itself, to a place below the prefix.
generate = '$(target)/release/pglock' --generate $(1) | install -m 644 /dev/stdin '$(DESTDIR)$(prefix)/$(2)'

all: build

build:
	cargo build --release --locked

# The target is named so that the flags are not those of the build scripts too. OPENSSL_CONFIG_DIR is where
# sslrootcert=system looks. No unwind tables, since nothing unwinds; no position-independent code, which would have to be
# relocated at each start. The C code, which hears what the network says first, checks its buffers and its stack as a
# distribution's does.
static_cflags := -O2 -fno-unwind-tables -fno-asynchronous-unwind-tables -fstack-protector-strong \
	-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
static:
	OPENSSL_SRC_PERL='$(CURDIR)/tests/tools/openssl-perl' OPENSSL_CONFIG_DIR=/etc/ssl \
	CFLAGS_$(subst -,_,$(host))='$(static_cflags)' \
	RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static -C force-unwind-tables=no' \
		cargo build --release --locked --features static --target '$(host)' --target-dir '$(target)/static/build'
	@cp -f '$(target)/static/build/$(host)/release/pglock' '$(target)/static/pglock'
	@echo 'built $(target)/static/pglock'

# What was built is installed as it is: root may have no cargo. The rest the program itself prints.
install:
	@[ -x '$(target)/release/pglock' ] || $(MAKE) --no-print-directory build
	install -d $(addprefix '$(DESTDIR)$(prefix)'/,bin $(dir $(man) $(completions)))
	install -m 755 '$(target)/release/pglock' '$(DESTDIR)$(prefix)/bin/pglock'
	$(call generate,man,$(man))
	$(call generate,bash,$(word 1,$(completions)))
	$(call generate,zsh,$(word 2,$(completions)))
	$(call generate,fish,$(word 3,$(completions)))

uninstall:
	rm -f $(addprefix '$(DESTDIR)$(prefix)'/,bin/pglock $(man) $(completions))

dist: static
	@sh tests/tools/dist.sh '$(target)' '$(host)'

setup:
	@sh tests/tools/setup.sh

# The build is a step of its own, not a prerequisite: it has to come after the set-up, under make -j too.
demo: setup
	@$(MAKE) --no-print-directory build
	@sh tests/tools/demo.sh

test: setup
	@PG_BIN=$$(sh tests/tools/setup.sh --pg-bin) && export PG_BIN && \
	if command -v cargo-nextest >/dev/null 2>&1; then \
		set -x; cargo nextest run --locked --config-file tests/nextest.toml $(ARGS); \
	else \
		set -x; cargo test --locked $(ARGS); \
	fi
	@[ -n '$(ARGS)' ] || $(MAKE) --no-print-directory simulate

# Apart from the others, for the static build takes minutes.
test-static: setup static
	@PG_BIN=$$(sh tests/tools/setup.sh --pg-bin) && export PG_BIN && \
	set -x; PGLOCK_STATIC='$(abspath $(target)/static/pglock)' cargo test --locked --test pglock -- docs::shipping::the_static

bench: setup static
	@PG_BIN=$$(sh tests/tools/setup.sh --pg-bin) && export PG_BIN && \
	export PGLOCK_STATIC='$(abspath $(target)/static/pglock)' && cargo bench --locked --bench bench -- $(ARGS)

test-versions: setup
	@sh tests/tools/versions.sh

test-matrix: setup
	@sh tests/tools/versions.sh full

storm: setup
	@PG_BIN=$$(sh tests/tools/setup.sh --pg-bin) PGLOCK_STORM=full && export PG_BIN PGLOCK_STORM && \
	set -x; cargo test --locked --test pglock -- --test-threads=1 --nocapture servers::storms::a_storm

chaos: setup
	@PG_BIN=$$(sh tests/tools/setup.sh --pg-bin) && export PG_BIN && \
	set -x; cargo test --locked --test chaos -- run $(ARGS)

patroni: setup
	@sh tests/tools/patroni.sh $(ARGS)

fuzz: setup
	@PG_BIN=$$(sh tests/tools/setup.sh --pg-bin) && export PG_BIN && \
	set -x; cargo test --locked --test fuzz -- run $(ARGS)

simulate:
	@PGLOCK_SIMULATION='$(ARGS)' cargo test --quiet --locked --profile simulation --bin pglock -- --nocapture simulation::

clean:
	cargo clean

help:
	@echo 'make          build target/release/pglock'
	@echo 'make static   build target/static/pglock, which needs no shared library'
	@echo 'make install  build and install, to PREFIX=/usr/local below DESTDIR; make uninstall'
	@echo 'make dist     pack the static program and what belongs to it, into target/dist'
	@echo 'make demo     show pglock at work, against a throwaway PostgreSQL'
	@echo 'make test     run all tests, or some: make test ARGS=name'
	@echo 'make test-static  try the static program in an empty root folder'
	@echo 'make bench    measure pglock beside the least that is possible, and beside others'
	@echo 'make test-versions   run the tests that matter for it against servers 14, 16, 17 and 18, from npm'
	@echo 'make test-matrix     run all tests against each of them'
	@echo 'make storm    a thousand invocations at once against a small server'
	@echo 'make chaos    break everything at random for half an hour; make chaos ARGS=--help'
	@echo 'make patroni  failovers of a real cluster, of Patroni, etcd and HAProxy, from the registries'
	@echo 'make fuzz     bend the answers of a server in thousands of ways; make fuzz ARGS=--help'
	@echo 'make simulate run a hundred thousand schedules of a made-up world; make simulate ARGS=--help'
	@echo 'make setup    install what building and testing need; demo and test do that first'
	@echo 'make clean    remove what was built'
	@echo
	@echo 'PG_BIN=dir make test takes the PostgreSQL server (initdb, pg_ctl, postgres) from dir.'
