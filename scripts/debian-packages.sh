#!/bin/sh
# The servers and tools from Debian that tests and benchmarks run against.
# Installs what is missing as root with apt; otherwise says in one line what to install.
set -eu

packages="openssl gnutls-bin nginx-light nodejs freeradius eapoltest"

missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing from Debian:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null
    # shellcheck disable=SC2086 # one word a package
    apt-get install -y -q --no-install-recommends $missing >/dev/null
else
    echo "tests against real servers need: apt-get install$missing" >&2
    [ -z "${CI:-}" ] || exit 1
fi
