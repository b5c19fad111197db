#!/bin/sh
# Makes a package of a program that is built: tests/tools/package.sh deb|rpm shared|static TARGET-FOLDER. Run by `make deb` and `make rpm`.
#
# cargo-deb and cargo-generate-rpm do the work, by the tables of Cargo.toml; this lays out what goes in, as `make install` does it.
# DEBFULLNAME and DEBEMAIL say who answers for a Debian package, as with Debian's own tools; without them it is who made the
# last commit.
set -eu
format=$1 kind=$2 target=$(CDPATH='' cd -- "$3" && pwd)
cd "$(dirname -- "$0")/../.."

die() {
    printf 'package: %s\n' "$*" >&2
    exit 1
}

case $kind in
    shared) name=pglock goal=install ;;
    static) name=pglock-static goal=install-static ;;
    *) die "unknown kind '$kind'" ;;
esac

# tool NAME FLAG...: a packager, which cargo makes from the registry's sources where there is none.
tool() {
    PATH=$PATH:$target/tools/bin
    command -v "$1" >/dev/null || cargo install --quiet --locked --root "$target/tools" "$@" || die "cargo could not install $1"
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# The same package from the same commit, whenever it is made.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 946684800)}
export SOURCE_DATE_EPOCH

# Where the tables of Cargo.toml look: both packagers know release/ wherever the target folder is.
package=$target/release/package
rm -rf "$package"
# The shells of another system than this one are asked nothing.
zsh=/usr/share/zsh/site-functions
[ "$format" = rpm ] || zsh=/usr/share/zsh/vendor-completions
MAKEFLAGS='' make -s "$goal" CARGO_TARGET_DIR="$target" DESTDIR="$package" prefix=/usr zshcompletiondir="$zsh" \
    fishcompletiondir=/usr/share/fish/vendor_completions.d
gzip -9n "$package/usr/share/man/man1/pglock.1"

doc=$package/usr/share/doc/$name
[ "$format" = deb ] || doc=$package/usr/share/licenses/pglock
mkdir -p "$doc"

mkdir -p "$target/packages"
case $format in
    deb)
        maintainer=$(git log -1 --format='%an <%ae>' 2>/dev/null) || maintainer="root <root@$(uname -n)>"
        maintainer="${DEBFULLNAME:-${maintainer%% <*}} <${DEBEMAIL:-$(expr "$maintainer" : '.*<\(.*\)>')}>"
        # Debian wants all that there is to say of copyright in one file.
        cp LICENSE "$package/copyright"
        sh tests/tools/notices.sh "$kind" debian >>"$package/copyright"
        gzip -9n <CHANGELOG.md >"$doc/CHANGELOG.md.gz"
        gzip -9n >"$doc/changelog.gz" <<END
$name ($version) unstable; urgency=medium

  * What has changed is in CHANGELOG.md, beside this file.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH" 2>/dev/null || LC_ALL=C date -u -r "$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %T +0000')
END
        if [ "$kind" = static ]; then
            mkdir -p "$package/usr/share/lintian/overrides"
            cat >"$package/usr/share/lintian/overrides/$name" <<END
# That is what this package is for; the other one has neither.
$name: statically-linked-binary [usr/bin/pglock]
$name: embedded-library libssl [usr/bin/pglock]
$name: embedded-library openssl [usr/bin/pglock]
# The packager writes the field of a list that is empty.
$name: empty-field Depends
END
        fi
        tool cargo-deb --version 3.8.0 --no-default-features
        CARGO_TARGET_DIR=$target cargo deb --no-build --locked --maintainer "$maintainer" --output "$target/packages/" \
            "$([ "$kind" = shared ] && echo --no-strip || echo --variant=static)"
        ;;
    rpm)
        cp LICENSE "$doc/"
        sh tests/tools/notices.sh "$kind" >"$doc/NOTICES"
        tool cargo-generate-rpm --version 0.21.1
        cargo generate-rpm --target-dir "$target" --output "$target/packages/" --source-date "$SOURCE_DATE_EPOCH" \
            "$([ "$kind" = shared ] && echo --auto-req=auto || echo --variant=static)"
        ;;
    *) die "unknown format '$format'" ;;
esac
