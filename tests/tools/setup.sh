#!/bin/sh
# Makes a machine ready to build and test pglock: says what is missing and installs it with the system's package
# manager. Where nothing is missing it does and says nothing.
#
#   tests/tools/setup.sh            install what is missing
#   tests/tools/setup.sh --pg-bin   print the folder of the PostgreSQL server's programs
#
# PG_BIN=dir names that folder; then no server is installed.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)

die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

is_server() {
    [ -x "$1/initdb" ] && [ -x "$1/pg_ctl" ] && [ -x "$1/postgres" ]
}

# Most packages keep the server's programs out of PATH. pg_config goes first: its server fits the libpq that pglock
# is built with.
pg_bin() {
    if [ -n "${PG_BIN:-}" ]; then
        is_server "$PG_BIN" || die "PG_BIN=$PG_BIN: no initdb, pg_ctl and postgres in that folder"
        (CDPATH='' cd -- "$PG_BIN" && pwd)
        return
    fi
    dir=$(pg_config --bindir 2>/dev/null) || dir=
    if ! is_server "$dir"; then
        dir=$(
            for dir in /usr/lib/postgresql/*/bin /usr/lib/postgresql*/bin /usr/pgsql-*/bin /usr/libexec/postgresql* \
                /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin \
                /home/linuxbrew/.linuxbrew/opt/postgresql*/bin /usr/local/pgsql/bin \
                /Applications/Postgres.app/Contents/Versions/*/bin; do
                is_server "$dir" || continue
                version=$("$dir/postgres" --version) # postgres (PostgreSQL) 15.18 ...
                version=${version##*(PostgreSQL) }
                printf '%s %s\n' "${version%% *}" "$dir"
            done | sort -rn | sed -e '1!d' -e 's|^[^/]*||'
        )
    fi
    if ! is_server "$dir"; then
        dir=$(command -v initdb) || return 1
        dir=$(dirname -- "$dir")
        is_server "$dir" || return 1
    fi
    printf '%s\n' "$dir"
}

has_compiler() {
    have cc || return 1
    # Debian and Alpine have packages of the compiler without those of the C library, and then nothing links.
    [ "$(uname)" != Linux ] || [ -e "$(cc -print-file-name=crt1.o)" ]
}

# The two places where the build of pq-sys looks for libpq. pg_config also comes without the headers, so look for them.
has_libpq() {
    if have brew; then
        PKG_CONFIG_PATH=$(brew --prefix)/opt/libpq/lib/pkgconfig:${PKG_CONFIG_PATH:-}
        export PKG_CONFIG_PATH
    fi
    pkg-config --exists libpq 2>/dev/null || [ -e "$(pg_config --includedir 2>/dev/null)/libpq-fe.h" ]
}

check() {
    missing=
    has_compiler || missing="$missing compiler"
    has_libpq || missing="$missing libpq"
    pg_bin >/dev/null || missing="$missing server"
    have openssl || missing="$missing openssl"
    have bash || missing="$missing bash"
    have perl || missing="$missing perl"
    # There is none for others.
    [ "$(uname)" != Linux ] || have strace || missing="$missing strace"
    # A daemon's program may lie outside of PATH.
    [ -x /usr/sbin/pgbouncer ] || have pgbouncer || missing="$missing pgbouncer"
}

package_names() {
    for thing in $missing; do
        case $manager/$thing in
            apt-get/compiler) echo gcc libc6-dev ;;
            apt-get/libpq) echo libpq-dev pkg-config ;;
            apt-get/server) echo postgresql ;;
            dnf/compiler) echo gcc ;;
            dnf/libpq) echo libpq-devel pkgconf-pkg-config ;;
            dnf/server) echo postgresql-server ;;
            apk/compiler) echo gcc musl-dev ;;
            apk/libpq) echo libpq-dev pkgconf ;;
            apk/server) echo postgresql ;;
            pacman/compiler) echo gcc ;;
            pacman/libpq) echo postgresql-libs pkgconf ;;
            pacman/server) echo postgresql ;;
            brew/compiler) echo gcc ;;
            brew/libpq) echo libpq pkgconf ;;
            brew/server) echo postgresql@17 ;;
            *) echo "$thing" ;;
        esac
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Debian's server package creates a cluster on port 5432 and starts it, and its PgBouncer starts too. Nobody asked for
# them, and the tests use servers of their own: settings that are there only while the packages are installed say so.
# Clusters that exist are not touched by it.
install_with_apt() {
    # shellcheck disable=SC2016 # the variables are for the shell that runs as root
    as_root env DEBIAN_FRONTEND=noninteractive sh -euc '
        folder=/etc/postgresql-common/createcluster.d
        policy=/usr/sbin/policy-rc.d
        [ ! -e "$policy" ] || policy=
        trap "rm -f $folder/pglock-setup.conf $policy; rmdir -p $folder 2>/dev/null || :" EXIT
        trap "exit 1" HUP INT TERM
        mkdir -p "$folder"
        echo "create_main_cluster = false" >"$folder/pglock-setup.conf"
        if [ -n "$policy" ]; then
            printf "#!/bin/sh\nexit 101\n" >"$policy" # "do not start it", to invoke-rc.d
            chmod 755 "$policy"
        fi
        apt-get update -qq || : # one source of many may be down; whether that matters, the next line shows
        apt-get install -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@"
    ' sh "$@"
}

install_with_pacman() {
    # Only where there are no package lists yet: newer lists than the system would make it half upgraded.
    [ -e /var/lib/pacman/sync/core.db ] || as_root pacman -Sy
    as_root pacman -S --needed --noconfirm "$@"
}

check_rust() {
    if ! have cargo; then
        bin=${CARGO_HOME:-${HOME:-}/.cargo}/bin
        hint='install one with rustup'
        [ ! -x "$bin/cargo" ] || hint="put $bin into PATH"
        die "no Rust toolchain (cargo) found: $hint"
    fi
    wanted=$(sed -n 's/^rust-version = "1\.\([0-9]*\).*/\1/p' "$root/Cargo.toml")
    found=$(cargo --version) || die "'cargo --version' fails: repair the Rust toolchain"
    minor=${found#cargo 1.}
    minor=${minor%%.*}
    case $minor in
        *[!0-9]*) ;; # not a version as we know them: let cargo decide
        *) [ "$minor" -ge "${wanted:-0}" ] || die "pglock needs Rust 1.$wanted or newer, and this is $found: update it with rustup" ;;
    esac
}

case ${1:-} in
    '') ;;
    --pg-bin)
        pg_bin || die "no PostgreSQL server found: 'make setup' installs one, PG_BIN=dir names one"
        exit
        ;;
    *) die "unknown argument '$1'" ;;
esac

check_rust
check
[ -n "$missing" ] || exit 0

for manager in apt-get dnf apk pacman brew none; do
    ! have "$manager" || break
done
[ "$manager" != none ] || die "missing:$missing; there is no apt-get, dnf, apk, pacman or brew to install it with"
packages=$(package_names | tr '\n' ' ')
# Homebrew refuses to run as root.
[ "$manager" = brew ] || [ "$(id -u)" = 0 ] || have sudo ||
    die "only root can install, and there is no sudo; install with $manager: $packages"

printf 'setup: installing with %s: %s\n' "$manager" "$packages"
# shellcheck disable=SC2086 # a list of names
case $manager in
    apt-get) install_with_apt $packages ;;
    dnf) as_root dnf install -y $packages ;;
    apk) as_root apk add --no-cache $packages ;;
    pacman) install_with_pacman $packages ;;
    brew) brew install $packages ;;
esac </dev/null || die "$manager could not install: $packages"

check
[ -z "$missing" ] || die "$manager has installed its packages, and this is still missing:$missing"
