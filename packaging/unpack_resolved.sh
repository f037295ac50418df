#!/bin/sh
# Unpack Debian's systemd-resolved into a directory, for tests, without installing it: an installed one takes over the
# machine's own resolv.conf.
#
#     packaging/unpack_resolved.sh DIRECTORY
set -eu
case $1 in /*) target=$1 ;; *) target=$PWD/$1 ;; esac
[ -x "$target/usr/bin/resolvectl" ] && exit 0
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
cd "$fresh"
apt-get -qq -o Acquire::Retries=3 -o APT::Sandbox::User=root download systemd-resolved
for package in ./*.deb; do
    dpkg-deb -x "$package" unpacked
done
mkdir -p "$(dirname "$target")"
mv unpacked "$target"
