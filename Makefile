# What people and CI call. The work is done by cargo and the scripts in tests/tools.

# Homebrew keeps libpq where pkg-config does not look by itself.
BREW := $(shell brew --prefix 2>/dev/null)
ifneq ($(BREW),)
export PKG_CONFIG_PATH := $(BREW)/opt/libpq/lib/pkgconfig:$(PKG_CONFIG_PATH)
endif

.PHONY: all build static install install-static uninstall dist notices image deb rpm reproducible check-targets setup demo \
	test test-static test-packages bench test-versions test-matrix storm chaos patroni fuzz simulate clean help

target := $(or $(CARGO_TARGET_DIR),target)
host = $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
cargo_home := $(or $(CARGO_HOME),$(HOME)/.cargo)

# What goes where, by the names of GNU's coding standards.
prefix = $(or $(PREFIX),/usr/local)
exec_prefix = $(prefix)
bindir = $(exec_prefix)/bin
datarootdir = $(prefix)/share
datadir = $(datarootdir)
mandir = $(datarootdir)/man
man1dir = $(mandir)/man1
INSTALL = install
INSTALL_PROGRAM = $(INSTALL)
INSTALL_DATA = $(INSTALL) -m 644

# And the shells' own folders for what packages bring, if the shells look there. Debian's zsh passes over site-functions
# below /usr, and fish, where XDG_DATA_DIRS is not set, over all of /usr/local; the host's own are then in /etc.
bashcompletiondir = $(datadir)/bash-completion/completions
fishvendordir = $(datadir)/fish/vendor_completions.d
fishfolders = $(shell env -u XDG_DATA_DIRS fish -c 'string join " " -- $$fish_complete_path' 2>/dev/null)
fishcompletiondir = $(if $(and $(fishfolders),$(filter /usr/local,$(prefix))),$(firstword \
	$(filter $(fishvendordir),$(fishfolders)) /etc/fish/completions),$(fishvendordir))
zshfolders = $(shell zsh -fc 'print -- $$fpath' 2>/dev/null)
zshcompletiondir = $(datadir)/zsh/$(if $(filter $(datadir)/zsh/vendor-completions,$(zshfolders)),vendor-completions,site-functions)

installed = '$(DESTDIR)$(bindir)/pglock' '$(DESTDIR)$(man1dir)/pglock.1' '$(DESTDIR)$(bashcompletiondir)/pglock' \
	'$(DESTDIR)$(zshcompletiondir)/_pglock' '$(DESTDIR)$(fishcompletiondir)/pglock.fish'

# Installs the program, and what it prints of itself.
define install_from
	$(INSTALL) -d '$(DESTDIR)$(bindir)' '$(DESTDIR)$(man1dir)' '$(DESTDIR)$(bashcompletiondir)' \
		'$(DESTDIR)$(zshcompletiondir)' '$(DESTDIR)$(fishcompletiondir)'
	$(INSTALL_PROGRAM) '$(1)' '$(DESTDIR)$(bindir)/pglock'
	'$(1)' --generate man | $(INSTALL_DATA) /dev/stdin '$(DESTDIR)$(man1dir)/pglock.1'
	'$(1)' --generate bash | $(INSTALL_DATA) /dev/stdin '$(DESTDIR)$(bashcompletiondir)/pglock'
	'$(1)' --generate zsh | $(INSTALL_DATA) /dev/stdin '$(DESTDIR)$(zshcompletiondir)/_pglock'
	'$(1)' --generate fish | $(INSTALL_DATA) /dev/stdin '$(DESTDIR)$(fishcompletiondir)/pglock.fish'
endef

all: build

# The same bytes wherever the sources lie: the program has the names of files for its panics. Whoever sets RUSTFLAGS sees to that.
build:
	cargo build --release --locked \
		--config "target.'$(host)'.rustflags=['--remap-path-prefix=$(cargo_home)=/cargo', '--remap-path-prefix=$(CURDIR)=/pglock']"

# The target is named so that the flags are not those of the build scripts too. OPENSSL_CONFIG_DIR is where
# sslrootcert=system looks. No unwind tables, since nothing unwinds; no position-independent code, which would have to be
# relocated at each start. The C code, which hears what the network says first, checks its buffers and its stack as a
# distribution's does. OpenSSL would note when it was built.
static_cflags := -O2 -fno-unwind-tables -fno-asynchronous-unwind-tables -fstack-protector-strong \
	-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -ffile-prefix-map=$(cargo_home)=/cargo -ffile-prefix-map=$(abspath $(target))=/target
static_rustflags := -C target-feature=+crt-static -C relocation-model=static -C force-unwind-tables=no \
	--remap-path-prefix=$(cargo_home)=/cargo --remap-path-prefix=$(CURDIR)=/pglock
static:
	SOURCE_DATE_EPOCH=1 OPENSSL_SRC_PERL='$(CURDIR)/tests/tools/openssl-perl' OPENSSL_CONFIG_DIR=/etc/ssl \
	CFLAGS_$(subst -,_,$(host))='$(static_cflags)' \
	RUSTFLAGS='$(static_rustflags)' \
		cargo build --release --locked --features static --target '$(host)' --target-dir '$(target)/static/build'
	@cp -f '$(target)/static/build/$(host)/release/pglock' '$(target)/static/pglock'
	@echo 'built $(target)/static/pglock'

# What was built is installed as it is: root may have no cargo.
install:
	@[ -x '$(target)/release/pglock' ] || $(MAKE) --no-print-directory build
	$(call install_from,$(target)/release/pglock)

install-static:
	@[ -x '$(target)/static/pglock' ] || $(MAKE) --no-print-directory static
	$(call install_from,$(target)/static/pglock)

uninstall:
	rm -f $(installed)

dist: static
	@sh tests/tools/dist.sh '$(target)' '$(host)'

# What the program contains of others, for those who hand it on.
notices:
	@mkdir -p '$(target)/static'
	sh tests/tools/notices.sh static >'$(target)/static/NOTICES'

image: static notices
	docker build --tag pglock .

deb: build static
	@sh tests/tools/package.sh deb shared '$(target)'
	@sh tests/tools/package.sh deb static '$(target)'

rpm: build static
	@sh tests/tools/package.sh rpm shared '$(target)'
	@sh tests/tools/package.sh rpm static '$(target)'

# For the platforms that the tests are not run on.
check-targets: setup
	@sh tests/tools/targets.sh '$(target)'

# That what was built depends on the sources alone.
reproducible: build static
	@sh tests/tools/reproducible.sh '$(target)'

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
	@[ -n '$(ARGS)' ] || $(MAKE) --no-print-directory simulate ARGS=--whole

# Apart from the others, for the static build takes minutes.
test-static: setup static
	@PG_BIN=$$(sh tests/tools/setup.sh --pg-bin) && export PG_BIN && \
	set -x; PGLOCK_STATIC='$(abspath $(target)/static/pglock)' cargo test --locked --test pglock -- docs::shipping::the_static

# One after the other, also under make -j: both kinds are laid out in one place.
test-packages: setup
	@$(MAKE) --no-print-directory deb
	@$(MAKE) --no-print-directory rpm notices
	@PG_BIN=$$(sh tests/tools/setup.sh --pg-bin) && export PG_BIN && \
	set -x; PGLOCK_PACKAGES='$(abspath $(target)/packages)' PGLOCK_STATIC='$(abspath $(target)/static/pglock)' \
		cargo test --locked --test pglock -- docs::packages docs::shipping::no_crate

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
	@echo 'make install  build and install, to prefix=/usr/local below DESTDIR; bindir, mandir and so on are heeded too'
	@echo 'make install-static  the same with the static program; make uninstall removes either'
	@echo 'make dist     pack the static program and what belongs to it, into target/dist'
	@echo 'make deb      make packages for Debian of both programs, into target/packages; make rpm for Red Hat and its kin'
	@echo 'make image    make a container image of the static program with docker; make notices is what other builders need'
	@echo 'make reproducible  build both programs once more in other circumstances, and compare'
	@echo 'make check-targets  have the compiler check other platforms, and run the demo with a program for aarch64 under qemu'
	@echo 'make demo     show pglock at work, against a throwaway PostgreSQL'
	@echo 'make test     run all tests, or some: make test ARGS=name'
	@echo 'make test-static  try the static program in an empty root folder'
	@echo 'make test-packages  install, run and remove the packages in a root folder of their own'
	@echo 'make bench    measure pglock beside the least that is possible, and beside others'
	@echo 'make test-versions   run the tests that matter for it against servers 14, 16, 17 and 18, from npm'
	@echo 'make test-matrix     run all tests against each of them'
	@echo 'make storm    a thousand invocations at once against a small server, and two thousand behind a small pool'
	@echo 'make chaos    break everything at random for half an hour; make chaos ARGS=--help'
	@echo 'make patroni  failovers of a real cluster, of Patroni, etcd and HAProxy, from the registries'
	@echo 'make fuzz     bend the answers of a server in thousands of ways; make fuzz ARGS=--help'
	@echo 'make simulate run a hundred thousand schedules of a made-up world; make simulate ARGS=--help'
	@echo 'make setup    install what building and testing need; demo and test do that first'
	@echo 'make clean    remove what was built'
	@echo
	@echo 'PG_BIN=dir make test takes the PostgreSQL server (initdb, pg_ctl, postgres) from dir.'
