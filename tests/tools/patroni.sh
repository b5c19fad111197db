#!/bin/sh
# Runs pglock's failover trial on a real cluster: three Patroni nodes with etcd, and HAProxy in front, on loopback.
#
#   tests/tools/patroni.sh [SWITCHOVERS CRASHES SPLIT-BRAINS]     10, 5 and 3 by default; takes minutes
#
# etcd and HAProxy come from the system's packages (apt-get), Patroni from PyPI, into a folder that the servers' user can
# read: one below the home of root would not do.
set -eu
cd "$(dirname -- "$0")/../.."

die() {
    printf 'patroni: %s\n' "$*" >&2
    exit 1
}

have() {
    PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1
}

missing=
have etcd || missing="$missing etcd-server"
have haproxy || missing="$missing haproxy"
/usr/bin/python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    have apt-get || die "missing:$missing"
    [ "$(id -u)" = 0 ] || die "missing:$missing; install these as root"
    # shellcheck disable=SC2086 # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
fi
venv=/var/tmp/pglock-patroni-$(id -u)
if [ ! -x "$venv/bin/patroni" ]; then
    /usr/bin/python3 -m venv "$venv"
    "$venv/bin/pip" install -q 'patroni[etcd3]==4.1.5' 'psycopg[binary]'
fi
PG_BIN=$(sh tests/tools/setup.sh --pg-bin)
PATH=$PATH:/usr/sbin:/sbin
PATRONI_BIN=$venv/bin
export PG_BIN PATH PATRONI_BIN
exec cargo test --locked --test chaos -- run patroni "$@"
