#!/bin/sh
# Sees that pglock is right for platforms other than the one that its tests run on: tests/tools/targets.sh TARGET-FOLDER. Run by
# `make check-targets`.
#
# For most it is `cargo check`: all that the compiler says, but no program is made and none is run. For aarch64 one is made, and
# the demo is run with it under qemu. The compiler is Debian's, for whose standard library there are sources to be had, and not
# only what rustup has installed. Its packages are unpacked in the target folder; of the system's there is need of three more.
#
# TARGETS='i686-unknown-linux-gnu' names the ones to check.
set -eu
mkdir -p "$1/targets"
home=$(CDPATH='' cd -- "$1/targets" && pwd)
cd "$(dirname -- "$0")/../.."
run=aarch64-unknown-linux-gnu
checked='i686-unknown-linux-gnu x86_64-unknown-linux-musl aarch64-apple-darwin x86_64-unknown-freebsd'
needed='qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross'

die() {
    printf 'targets: %s\n' "$*" >&2
    exit 1
}

if [ "$(uname -sm)" != 'Linux x86_64' ] || ! command -v apt-get >/dev/null; then
    die 'this takes Debian on x86-64, for its packages'
fi
# shellcheck disable=SC2086 # a list of names
if ! dpkg-query -W $needed >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || die "only root can install: $needed"
    printf 'targets: installing with apt-get: %s\n' "$needed"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -o Dpkg::Use-Pty=0 --no-install-recommends $needed </dev/null >/dev/null
fi

# apt FOLDER WORD...: works on packages in a folder, and not on the system's.
apt() {
    folder=$1
    shift
    mkdir -p "$folder/state/lists/partial" "$folder/archives/partial"
    apt-get -qq -y -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o Dir::Cache="$folder" -o Dir::Cache::archives="$folder/archives" \
        "$@" </dev/null
}

# unpack FOLDER PATTERN ROOT
unpack() {
    mkdir -p "$3"
    for package in "$1"/archives/$2; do
        dpkg-deb -x "$package" "$3"
    done
}

# The compiler and what it needs that the system has not.
host=$home/host
if [ ! -e "$host/done" ]; then
    printf 'targets: unpacking a compiler in %s\n' "$host"
    apt "$host" install --download-only --no-install-recommends rustc-web cargo-web rust-web-src
    unpack "$host" '*.deb' "$host/root"
    : >"$host/done"
fi
# The standard library and libpq of the one that is run. No package of that architecture is installed as yet.
arm64=$home/arm64
if [ ! -e "$arm64/done" ]; then
    printf 'targets: unpacking libraries for aarch64 in %s\n' "$arm64"
    mkdir -p "$arm64"
    : >"$arm64/status"
    foreign="-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State=$arm64/state -o Dir::State::status=$arm64/status"
    # shellcheck disable=SC2086
    {
        apt "$arm64" $foreign update
        (mkdir -p "$arm64/archives" && cd "$arm64/archives" && apt "$arm64" $foreign download libstd-rust-web-dev)
        apt "$arm64" $foreign install --download-only --no-install-recommends libpq-dev libc6-dev libgcc-12-dev
    }
    unpack "$arm64" 'libstd-rust-*.deb' "$host/root"
    rm "$arm64"/archives/libstd-rust-*.deb
    unpack "$arm64" '*.deb' "$arm64/root"
    : >"$arm64/done"
fi

# with_debian COMMAND...: runs cargo with Debian's compiler, which may have its own standard library made anew.
with_debian() {
    env LD_LIBRARY_PATH="$host/root/usr/lib/x86_64-linux-gnu" RUSTC="$host/root/usr/bin/rustc" RUSTC_BOOTSTRAP=1 \
        CARGO_TARGET_DIR="$home/build" PKG_CONFIG_ALLOW_CROSS=1 "$@"
}
cargo=$host/root/usr/bin/cargo

for target in ${TARGETS:-$checked $run}; do
    printf '\n--- %s\n' "$target"
    if [ "$target" != "$run" ]; then
        # The build looks for libpq, and makes nothing of what it finds.
        with_debian PQ_LIB_DIR=/usr "$cargo" check --locked --target "$target" -Z build-std=std,panic_abort
        continue
    fi
    libraries=$arm64/root/usr/lib/aarch64-linux-gnu
    with_debian PKG_CONFIG_SYSROOT_DIR="$arm64/root" PKG_CONFIG_LIBDIR="$libraries/pkgconfig" \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C link-arg=--sysroot=$arm64/root -C link-arg=-Wl,-rpath-link=$libraries" \
        "$cargo" build --locked --target "$target"
    cat >"$home/pglock" <<END
#!/bin/sh
exec qemu-aarch64 -L '$arm64/root' '$home/build/$target/debug/pglock' "\$@"
END
    chmod 755 "$home/pglock"
    "$home/pglock" --version
    PGLOCK_BIN=$home/pglock sh tests/tools/demo.sh
done
printf '\nAll are as they should be.\n'
