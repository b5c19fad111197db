#!/bin/sh
# Shows what pglock is for, with the built binary and a real PostgreSQL: a throwaway server in a temporary folder, on a
# free port of the loopback interface. Two "hosts", A and B, run the same job. What they print is shown as it comes, and
# checked: the demo fails when anything else happens than it says.
#
# PG_BIN=dir takes the server from another folder, PGLOCK_BIN=file another pglock.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)

die() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

cd "$root"
pglock=${PGLOCK_BIN:-${CARGO_TARGET_DIR:-target}/release/pglock}
[ -x "$pglock" ] || die "there is no $pglock: run 'make demo', which builds it first"
pglock=$(CDPATH='' cd -- "$(dirname -- "$pglock")" && pwd)/${pglock##*/}
pg_bin=$(sh tests/tools/setup.sh --pg-bin)

# The caller's own PostgreSQL must have no say in this.
# shellcheck disable=SC2046 # a list of names
unset -v PGLOCK_BIN $(env | sed -n 's/^\(PG[A-Z0-9_]*\)=.*/\1/p')
export LC_ALL=C

# --- Cleaning up, whatever happens

dir='' data='' A='' B='' pid='' wire=''

# cleanup STATUS: leaves nothing behind, and exits.
cleanup() {
    trap '' HUP INT TERM PIPE # a second ^C does not stop this half way
    trap - EXIT
    set +e
    exec 2>/dev/null 4>&- # a job that reads from 4 comes to its end
    rm -f "$dir/lasts"
    [ -z "$wire" ] || kill -KILL "$wire" # it may be stopped
    if [ -n "$A$B" ]; then
        # shellcheck disable=SC2086 # a list of process ids
        kill $A $B
        for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            is_alive "$A" || is_alive "$B" || break
            sleep 0.1
        done
        ! is_alive "$A" || kill -KILL "$A"
        ! is_alive "$B" || kill -KILL "$B"
    fi
    [ -z "$data" ] || as_server "$pg_bin/pg_ctl" stop -w -m immediate -D "$data" >/dev/null
    wait
    # What was interrupted may be writing there for a moment yet.
    [ -z "$dir" ] || rm -rf "$dir" || { sleep 1 && rm -rf "$dir"; }
    exit "$1"
}

is_alive() {
    [ -n "$1" ] && kill -0 "$1"
}

trap 'cleanup $?' EXIT
trap 'cleanup 129' HUP
trap 'cleanup 130' INT
trap 'cleanup 141' PIPE
trap 'cleanup 143' TERM

# --- The server

# as_server COMMAND: runs it as the user that the server runs as. PostgreSQL refuses to run as root, and initdb wants a
# user that has a name.
user=''
as_server() {
    if [ -z "$user" ]; then
        (cd / && "$@")
    elif [ -n "$setpriv" ]; then
        (cd / && setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups "$@")
    else
        # shellcheck disable=SC2016 # for the inner shell
        (cd / && su -s /bin/sh -c 'exec "$@"' -- "$user" sh "$@")
    fi
}

if [ "$(id -u)" = 0 ]; then
    user=nobody
    ! id postgres >/dev/null 2>&1 || user=postgres
    # BusyBox's setpriv cannot change the user.
    setpriv=yes
    as_server true 2>/dev/null || setpriv=''
    as_server true || die "cannot run PostgreSQL as the user $user: neither setpriv nor su works"
    as_server test -x "$pg_bin/initdb" || die "the user $user, who is to run the server, cannot reach $pg_bin"
fi

# A socket's path is limited to about 100 characters, and a root's TMPDIR may be closed to the server's user.
for base in "${TMPDIR:-/tmp}" /tmp; do
    dir=$(mktemp -d "$base/pglock-demo.XXXXXX" 2>/dev/null) || continue
    chmod 711 "$dir"
    case $dir in
        *[!A-Za-z0-9/._-]*) ;;
        *) [ ${#dir} -gt 75 ] || ! as_server test -x "$dir" || break ;;
    esac
    rmdir "$dir"
    dir=''
done
[ -n "$dir" ] || die "cannot make a folder in /tmp"

mkdir "$dir/server"
echo secret-password >"$dir/server/password"
chmod 700 "$dir/server"
[ -z "$user" ] || chown -R "$user" "$dir/server"
data=$dir/server/data
as_server "$pg_bin/initdb" -D "$data" -U postgres -A scram-sha-256 --pwfile="$dir/server/password" \
    -E UTF8 --no-locale -N >"$dir/initdb.log" 2>&1 || {
    cat "$dir/initdb.log" >&2
    die "initdb failed"
}

for try in 1 2 3 4 5 6 7 8 9 10; do
    # Below the ports that systems give to outgoing connections: only another server can be there. Whether one is, only
    # the attempt tells; then another port is tried.
    port=$((20000 + $(od -An -N2 -tu2 /dev/urandom) % 10000))
    log=$dir/server/log.$try
    ! as_server "$pg_bin/pg_ctl" start -w -D "$data" -l "$log" \
        -o "-h 127.0.0.1 -p $port -k $dir/server -F" >"$dir/pg_ctl.log" 2>&1 || break
    if [ "$try" = 10 ] || ! grep -qs 'could not bind' "$log"; then
        cat "$dir/pg_ctl.log" "$log" >&2 || :
        die "the server did not start"
    fi
done

# --- The hosts

mkdir "$dir/bin" "$dir/work"
ln -s "$pglock" "$dir/bin/pglock"
PATH=$dir/bin:$PATH
cd "$dir/work"
mkfifo events finish
exec 3<>events 4<>finish # for reading and writing: so neither opening nor writing blocks

cat >backup.sh <<'END'
# The job. It fails if it is running already, and it runs until the demo lets it end.
runs() {
    kill -0 "$1" 2>/dev/null && ! grep -qs '^State:.Z' "/proc/$1/status"
}
if [ -e running ] && runs "$(cat running)"; then
    echo 'backup: RUNS TWICE'
    exit 1
fi
echo $$ >running
trap 'echo "backup: is told to stop"; exit 1' TERM
echo 'backup: begins'
read -r line <finish
rm running
echo 'backup: ends'
END

# show HOST: shows what HOST prints, and says on 3 when something happens that the demo waits for.
show() {
    trap '' PIPE # with nobody left to show it to, there is still the demo to tell
    while IFS= read -r line; do
        printf '%s | %s\n' "$1" "$line" 2>/dev/null || break
        printf '%s\n' "$line" >>"$1.log"
        case $line in
            *'Obtaining lock with'*) echo "$1:waits" >&3 ;;
            'backup: begins') echo "$1:begins" >&3 ;;
            'backup: ends') echo "$1:ends" >&3 ;;
            'backup: is told to stop') echo "$1:stops" >&3 ;;
            'backup: RUNS TWICE') echo "$1:runs:twice" >&3 ;;
        esac
    done
    echo "$1:exits" >&3
}

# A real host would not share the demo's terminal. Here pglock would hand it to the job, and a ^C would get no further.
setsid=''
! command -v setsid >/dev/null || setsid=setsid

# host HOST COMMAND: types COMMAND there. It runs in the background, as process $A or $B.
host() {
    printf '%s $ %s\n' "$1" "$2"
    rm -f "$1.out" "$1.log"
    mkfifo "$1.out"
    show "$1" <"$1.out" &
    { eval "exec $setsid $2"; } >"$1.out" 2>&1 3>&- 4>&- &
    eval "$1=$!"
}

# expect EVENT...: waits for these events and for no others, in any order.
expect() {
    awaited=" $* "
    for _ in "$@"; do
        read -r event <&3
        case $awaited in
            *" $event "*) awaited="${awaited%%" $event "*} ${awaited#*" $event "}" ;;
            *) surprise "got $event instead of$awaited" ;;
        esac
    done
}

# ended HOST STATUS: checks the exit status of what was typed there.
ended() {
    eval "pid=\$$1; $1=''"
    status=0
    { wait "$pid" || status=$?; } 2>/dev/null # some shells say here that it was killed
    printf '%s $ echo $?\n%s | %s\n' "$1" "$1" "$status"
    [ "$status" = "$2" ] || surprise "the exit status on host $1 should have been $2"
}

succeeded() {
    ended "$1" 0
}

# skipped HOST: checks that the command was not run there.
skipped() {
    grep -q ' Could not obtain lock 1, skipping command$' "$1.log" || surprise "host $1 does not say that it skips"
    ! grep -q -e 'Executing' -e 'backup:' "$1.log" || surprise "host $1 should not have run the command"
}

surprise() {
    sed 's/^/server | /' "$log" >&2
    die "surprise: $*"
}

finish() {
    echo >&4
}

# The network between host A and the server, which can be cut: a relay that passes on what comes, until it is stopped. It says
# on which port it listens.
cat >wire.pl <<'END'
use strict;
use IO::Select;
use IO::Socket::INET;
my $server = shift;
my $door = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die $!;
print $door->sockport, "\n";
close STDOUT;
my $all = IO::Select->new($door);
my %other;
while (my @ready = $all->can_read) {
    for my $from (@ready) {
        if ($from == $door) {
            my $client = $door->accept or next;
            my $to = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$server") or next;
            @other{$client, $to} = ($to, $client);
            $all->add($client, $to);
        } elsif ($other{$from}) {
            my $to = $other{$from};
            my $bytes;
            next if sysread($from, $bytes, 65536) and syswrite($to, $bytes);
            delete @other{$from, $to};
            $all->remove($from, $to);
            close $_ for $from, $to;
        }
    }
}
END

# A pglock that hangs must not hang the demo. The file ends this when the demo has ended.
: >"$dir/lasts"
(
    tries=600
    while [ "$tries" -gt 0 ] && [ -e "$dir/lasts" ]; do
        sleep 0.1
        tries=$((tries - 1))
    done
    [ "$tries" -gt 0 ] || echo nothing:in:60:seconds >&3
) &

# --- The scenarios

version=$("$pg_bin/postgres" --version)
cat <<END
PostgreSQL ${version##*(PostgreSQL) } runs in $dir.
backup.sh stands for a job that must not run twice at a time: it fails if it does. Both hosts have typed

    export PGLOCK_HOST=127.0.0.1 PGLOCK_PORT=$port
    export PGLOCK_PASS="secret-password"

1. Non-blocking: both hosts start the same job. One runs it, the other skips it.

END
export PGLOCK_HOST=127.0.0.1 PGLOCK_PORT="$port"
export PGLOCK_PASS="secret-password"

host A 'pglock --user postgres sh backup.sh'
expect A:begins
host B 'pglock --user postgres sh backup.sh'
expect B:exits
succeeded B
skipped B
finish
expect A:ends A:exits
succeeded A

cat <<END

2. Blocking: the second host waits for the first. Both run the job, one after the other.

END
host A 'pglock --user postgres --wait 10 sh backup.sh'
expect A:waits A:begins
host B 'pglock --user postgres --wait 10 sh backup.sh'
expect B:waits
finish
expect A:ends A:exits B:begins
succeeded A
finish
expect B:ends B:exits
succeeded B

cat <<END

3. Blocking, but the lock stays taken for longer than the second host waits. It gives up and skips the job.

END
host A 'pglock --user postgres sh backup.sh'
expect A:begins
before=$(date +%s)
host B 'pglock --user postgres --wait 2 sh backup.sh'
expect B:waits B:exits
waited=$(($(date +%s) - before))
succeeded B
skipped B
[ "$waited" -ge 2 ] || surprise "host B should have waited for 2 seconds, and waited for $waited"
finish
expect A:ends A:exits
succeeded A

cat <<END

4. The holder's pglock is killed, as nobody could foresee. Its guardian kills the job before the lock is free, and host B is next.

END
host A 'pglock --user postgres --lockname nightly sh backup.sh'
expect A:begins
host B 'pglock --user postgres --lockname nightly --wait 60 sh backup.sh'
expect B:waits
printf 'A $ kill -KILL %s\n' "$A"
kill -KILL "$A"
expect A:exits B:begins
ended A 137
finish
expect B:ends B:exits
succeeded B

cat <<END

5. The network of the holder is cut: host A goes through a wire that the demo stops. With a lease of 5 seconds its pglock, which
   hears nothing any more, stops the job after 3; the server, which hears nothing either, gives the lock up after 5.

END
mkfifo wire
perl wire.pl "$port" >wire 3>&- 4>&- &
wire=$!
read -r wire_port <wire || die 'there is no wire: perl did not start'
host A "pglock --user postgres --lockname nightly --ttl 5 --grace 1 --port $wire_port sh backup.sh"
expect A:begins
host B 'pglock --user postgres --lockname nightly --ttl 5 --grace 1 --wait 60 sh backup.sh'
expect B:waits
printf 'the network of host A is cut\n'
before=$(date +%s)
kill -STOP "$wire"
expect A:stops
printf 'A stops its job, %s seconds after the cut\n' $(($(date +%s) - before))
expect A:exits B:begins
waited=$(($(date +%s) - before))
printf 'B is next, %s seconds after the cut\n' "$waited"
[ "$waited" -le 7 ] || surprise "host B should have had the lock after 5 seconds, and had it after $waited"
ended A 124
finish
expect B:ends B:exits
succeeded B

# Anything that happened without being expected would come before this.
echo demo:ends >&3
expect demo:ends
printf '\nAll five went as they should.\n'
