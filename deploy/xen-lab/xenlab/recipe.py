"""What the lab is made of: Debian packages, kernel modules, boot lines. A change makes the images anew."""

from __future__ import annotations

SUITE = "bookworm"
MIRRORS = (
    f"deb http://deb.debian.org/debian {SUITE} main",
    f"deb http://deb.debian.org/debian-security {SUITE}-security main",
)

HOST_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "depmod": "kmod",
    "modprobe": "kmod",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
}
"""Programs that the host needs, and the Debian packages they are in."""

PACKAGES = tuple(
    """
    systemd-sysv udev kmod busybox-static iproute2 procps apt
    xen-utils-4.17 xenstore-utils libxenmisc4.17
    python3 python3-venv libstdc++6 ca-certificates adduser
    pcscd libccid
    openssl nginx-light
    """.split()  # noqa: SIM905 (a list of thirty names reads better so)
)
"""A machine that boots, the tools of Xen, what the product stands on, servers for tests: one set for dom0 and
domUs, as Debian's scripts know their role."""

HYPERVISOR = "xen-hypervisor-4.17-amd64"
KERNEL = "linux-image-amd64"
"""A package that depends on the kernel's real one."""

MODULES = tuple(
    """
    virtio_pci virtio_blk virtio_console virtio_rng ext4 crc32c_generic overlay loop
    xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs
    xen-blkfront xen-blkback xen-netfront xen-netback bridge af_packet
    xen-pciback xen-pcifront xhci-pci
    tls gcm ctr ccm ghash-clmulni-intel aesni-intel chacha20poly1305
    """.split()  # noqa: SIM905 (a list of thirty names reads better so)
)
"""Kernel modules in the images; what they depend on comes along."""

INITIAL_MODULES = ("virtio_pci", "virtio_blk", "xen-blkfront", "ext4", "crc32c_generic", "overlay")
"""Kernel modules that find and mount a root disk."""

MASKED_UNITS = tuple(
    """
    xendomains.service nginx.service pcscd.socket
    systemd-logind.service systemd-user-sessions.service getty-static.service getty@tty1.service
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-timesyncd.service
    systemd-random-seed.service systemd-pstore.service systemd-journal-flush.service hwclock.service
    systemd-ask-password-console.path systemd-ask-password-wall.path kmod-static-nodes.service
    modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@fuse.service
    modprobe@loop.service modprobe@efi_pstore.service sys-kernel-config.mount sys-kernel-debug.mount
    sys-kernel-tracing.mount sys-fs-fuse-connections.mount dev-mqueue.mount dev-hugepages.mount
    proc-sys-fs-binfmt_misc.automount apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
    fstrim.timer systemd-tmpfiles-clean.timer
    """.split()  # noqa: SIM905 (a list of thirty names reads better so)
)
"""Units that a machine which lives for minutes does not need; xendomains would save every domU at the end."""

MASKED_IN_DOMU = ("xen.service",)
"""Of the tools of Xen, which are in all images, and not in a domU of an operator."""

KERNEL_ARGUMENTS = (
    "console=hvc0 mitigations=off panic=-1 random.trust_cpu=on quiet net.ifnames=0 systemd.show_status=no"
)
"""For dom0 and domUs. No comma: it would separate modules in QEMU's -initrd."""

XEN_ARGUMENTS = (
    "console=com1 com1=115200 loglvl=warning guest_loglvl=warning spec-ctrl=no bootscrub=0 noreboot=1"
)

CPU = ",".join(
    """
    max -smap -smep -rdtscp
    -xsave -xsavec -xsaveopt -xsaves -xgetbv1 -pku -avx -avx2 -fma -f16c
    """.split()  # noqa: SIM905
)
"""What QEMU 7.2 emulates wrongly for Xen is left out. SMAP and SMEP apply to frames that Xen writes on the
stack of a PV kernel, and end dom0 at its first instructions. An intercepted RDTSCP is reported as RDTSC,
which ends a PVH guest. With XSAVE and AVX domUs calculate with wrong data, so that programs in them crash."""
