#!/bin/sh
# Packs the static program and what belongs to it: tests/tools/dist.sh TARGET-FOLDER HOST-TRIPLE. Run by `make dist`.
set -eu
target=$1 host=$2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
name=pglock-$version-$host
dist=$target/dist

rm -rf "$dist"
mkdir -p "$dist/$name/completions"
cp "$target/static/pglock" LICENSE README.md CHANGELOG.md "$dist/$name/"
chmod 755 "$dist/$name/pglock"
sh tests/tools/notices.sh static >"$dist/$name/NOTICES"
"$target/static/pglock" --generate man >"$dist/$name/pglock.1"
"$target/static/pglock" --generate bash >"$dist/$name/completions/pglock.bash"
"$target/static/pglock" --generate zsh >"$dist/$name/completions/_pglock"
"$target/static/pglock" --generate fish >"$dist/$name/completions/pglock.fish"
cd "$dist"
# The same archive from the same files, whoever packs them and when.
date=$(git -C "$OLDPWD" log -1 --format=%cI 2>/dev/null) || date=2000-01-01
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="$date" -cf - "$name" | gzip -9n >"$name.tar.gz"
rm -r "$name"
sha256sum "$name.tar.gz" >"$name.tar.gz.sha256"
printf 'packed %s\n' "$dist/$name.tar.gz"
