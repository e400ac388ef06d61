#!/bin/sh
# What tests and benchmarks need from Debian: servers to talk to, the smart card stack with its virtual reader,
# what builds pyscard, which has no wheel for Linux, and what builds and tries the Debian packages.
# With the argument `xen`: what builds and boots the Xen lab (docs/xen-lab.md).
# Installs what is missing as root with apt; otherwise says in one line what to install.
set -eu

packages="openssl gnutls-bin nginx-light nodejs freeradius eapoltest
    pcscd vsmartcard-vpcd libpcsclite-dev pkg-config gcc
    softhsm2 p11-kit p11-kit-modules opensc opensc-pkcs11 yubico-piv-tool
    libxenmisc4.17
    debhelper dpkg-dev lintian man-db mmdebstrap python3-dev python3-pip python3-venv systemd
    swtpm swtpm-tools libtpm2-pkcs11-1 libtpm2-pkcs11-tools tpm2-tools
    tpm2-abrmd libtss2-tcti-tabrmd0 dbus-daemon"
purpose="tests against real servers and cards need"
if [ "${1:-}" = xen ]; then
    packages="qemu-system-x86 mmdebstrap cpio e2fsprogs kmod git
        debhelper dpkg-dev python3-dev python3-pip python3-venv gcc libpcsclite-dev pkg-config"
    purpose="the Xen lab needs"
fi

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
    echo "$purpose: apt-get install$missing" >&2
    [ -z "${CI:-}" ] || exit 1
fi
