#!/bin/sh
# Prints the notices of what is linked into the program, which whoever hands it on hands on too.
#
#   tests/tools/notices.sh shared   of the program that `make` builds: the crates and Rust's own library
#   tests/tools/notices.sh static   of the one that `make static` builds: libpq, OpenSSL and the C library too
#
# A second word, debian, has it name the texts of licences that each Debian system has, which its packages are not to repeat.
set -eu
kind=$1 system=${2:-}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cd "$root"

die() {
    printf 'notices: %s\n' "$*" >&2
    exit 1
}

title() {
    printf '\n%s\n%s\n\n' "$1" "$(printf '%s' "$1" | sed 's/./=/g')"
}

# show TITLE FILE
show() {
    title "$1"
    [ -s "$2" ] || die "there is no notice of $1: $2"
    cat "$2"
}

# common NAME FILE: the text of a licence that Debian has as NAME.
common() {
    if [ "$system" = debian ]; then
        printf 'On Debian systems the text of this licence is in /usr/share/common-licenses/%s.\n' "$1"
    else
        [ -s "$2" ] || die "there is no text of the licence $1: $2"
        cat "$2"
    fi
}

# What is not for the program itself, but for building it, is not in it.
features=''
[ "$kind" = shared ] || features='--features static'
# shellcheck disable=SC2086 # one word or two
crates=$(cargo tree --locked --quiet --edges normal --prefix none $features --format '{p} {l}' | sed 's/ (\*)$//' | sort -u)
# shellcheck disable=SC2086
manifests=$(cargo metadata --locked --quiet --format-version 1 $features | grep -o '"manifest_path":"[^"]*"' | cut -d'"' -f4)

# folder CRATE VERSION: where its source is.
folder() {
    manifest=$(printf '%s\n' "$manifests" | grep -F "/$1-$2/Cargo.toml") || die "there is no source of $1 $2"
    dirname "$manifest"
}

cat <<END
Third-party notices of pglock ($kind)

pglock is under the MIT licence, in the file LICENSE. It contains the following, under licences of their own.
END

printf '%s\n' "$crates" | while read -r name version licence; do
    case $name in
        # Its own notice is LICENSE. That of libpq, which pq-src brings, is below.
        pglock | pq-src) continue ;;
    esac
    source=$(folder "$name" "${version#v}")
    # Of the two that are mostly offered, the short one.
    for file in LICENSE-MIT LICENSE LICENSE.txt LICENSE.md COPYING LICENSE-APACHE; do
        [ ! -s "$source/$file" ] || break
    done
    show "$name ${version#v} ($licence)" "$source/$file"
done

sysroot=$(rustc --print sysroot)
rust=$sysroot/share/doc/rust
title "The Rust standard library (MIT OR Apache-2.0)"
[ -s "$rust/COPYRIGHT-library.html" ] || die "there is no notice of the Rust standard library: $rust/COPYRIGHT-library.html"
# Who wrote what; each of the crates has the same words of the licence below, or ones that say the same.
sed -e 's/<[^>]*>//g' -e 's/&#60;/</g; s/&#62;/>/g; s/&#34;/"/g' -e "s/&#39;/'/g" \
    -e 's/^[^A-Za-z]*//' \
    "$rust/COPYRIGHT-library.html" |
    awk '/^File\/Directory:/ { print "" } /^[A-Za-z0-9_-]+-[0-9]+\.[0-9]+\.[0-9.a-z+-]*$/ { print ""; print }
        /^(File\/Directory|License|Copyright|Authors): *[^ ]/ { print }'
for licence in MIT Unicode-3.0; do
    show "The licence $licence of the Rust standard library" "$rust/licenses/$licence.txt"
done

if [ "$system" = debian ]; then
    title 'Other licences that are named above'
    common Apache-2.0 ''
    common LGPL-2.1 '' # for other systems than this
fi

[ "$kind" = static ] || exit 0

name=$(printf '%s\n' "$crates" | sed -n 's/^pq-src v\([^ ]*\) .*/\1/p')
source=$(folder pq-src "$name")
show "libpq ${name#*+libpq-} (PostgreSQL)" tests/tools/postgresql.licence
# Some of its files are older than it, and have words of their own.
title 'Files of libpq with a notice of their own'
grep -rlE --include='*.[ch]' 'Redistribution and use|Permission to use' "$source/source/src" | sort | while read -r file; do
    printf '%s\n\n' "${file#"$source/source/"}"
    awk '/\/\*/ { comment = ""; inside = 1 } inside { comment = comment $0 "\n" }
        /\*\// { if (comment ~ /Copyright/ && comment ~ /Redistribution|Permission to use/) print comment; inside = 0 }' "$file"
done

# The crate is there for the build only, and what it holds is in the program.
manifest=$(printf '%s\n' "$manifests" | grep '/openssl-src-[^/]*/Cargo.toml$') || die 'there is no source of OpenSSL'
version=${manifest%/Cargo.toml}
title "OpenSSL ${version##*+} (Apache-2.0)"
printf 'Copyright (c) 1998-2026 The OpenSSL Project Authors\nCopyright (c) 1995-1998 Eric A. Young, Tim J. Hudson\nAll rights reserved.\n\n'
common Apache-2.0 "${manifest%/Cargo.toml}/openssl/LICENSE.txt"

# The C library of the machine: its package has the notice, and Debian keeps the texts of licences apart.
case $(rustc -vV | sed -n 's/^host: //p') in
    *-gnu)
        for file in /usr/share/doc/libc6-dev/copyright /usr/share/doc/libc6/copyright /usr/share/licenses/glibc/LICENSES; do
            [ ! -s "$file" ] || break
        done
        show 'The GNU C library (LGPL-2.1-or-later)' "$file"
        for file in /usr/share/common-licenses/LGPL-2.1 /usr/share/licenses/glibc/COPYING.LIB /usr/share/licenses/spdx/LGPL-2.1-or-later.txt; do
            [ ! -s "$file" ] || break
        done
        title 'The GNU Lesser General Public License, version 2.1'
        common LGPL-2.1 "$file"
        cat <<END

The source of pglock, with which it can be linked with another version of the GNU C library, comes with it or from where it
came from: \`make static\` does that.
END
        ;;
    *-musl)
        show 'musl (MIT)' /usr/share/licenses/musl/COPYRIGHT
        ;;
    *) die 'no notice is known for the C library of this machine' ;;
esac
