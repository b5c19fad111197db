#!/bin/sh
# Shows that the programs depend on nothing but the sources: builds what is committed a second time, later, in another folder, with
# cargo's own files in another place, in another language, time zone and umask, and compares what comes of it with what is in
# the folder of this build: tests/tools/reproducible.sh TARGET-FOLDER. Run by `make reproducible`, which builds that first.
set -eu
target=$(CDPATH='' cd -- "$1" && pwd)
cd "$(dirname -- "$0")/../.."

die() {
    printf 'reproducible: %s\n' "$*" >&2
    exit 1
}

[ -z "$(git status --porcelain --untracked-files=no)" ] || die 'what is compared is a commit: commit the changes first'

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
git clone --quiet . "$dir/another"
git -C "$dir/another" checkout --quiet --detach "$(git rev-parse HEAD)"
# Nothing is fetched again: what cargo has is there by another path.
mkdir "$dir/cargo"
for file in "${CARGO_HOME:-$HOME/.cargo}"/*; do
    [ ! -e "$file" ] || ln -s "$file" "$dir/cargo/"
done

(
    cd "$dir/another"
    umask 077
    unset -v CARGO_TARGET_DIR
    env CARGO_HOME="$dir/cargo" TZ=Pacific/Auckland LC_ALL=C.UTF-8 make build static
) >"$dir/log" 2>&1 || {
    cat "$dir/log" >&2
    die 'the second build failed'
}

failed=''
for program in release/pglock static/pglock; do
    sum=$(sha256sum <"$target/$program")
    printf '%s  %s\n' "${sum%% *}" "$program"
    if ! cmp "$target/$program" "$dir/another/target/$program"; then
        failed="$failed $program"
        strings -a "$dir/another/target/$program" 2>/dev/null | grep -F "$dir" | head >&2 || :
    fi
done
[ -z "$failed" ] || die "not the same bytes:$failed"
printf 'The same bytes from another folder, at another time.\n'
