"""Disk images: Debian, the product and the lab's agent; one for dom0 and one for all domUs."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from xenlab import debian, frames, product, recipe
from xenlab.cache import cached, digest
from xenlab.host import require, run

BUILD = product.REPOSITORY / "build/xen-lab"
_LAB = Path(__file__).parents[1]
_FRAMES = Path(frames.__file__)
_INITRD = "initrd"
_FREE = 800
"""Megabytes of free space on dom0's disk, for logs, dumps and saved domains; sparse, so it costs nothing."""


@dataclass(frozen=True)
class Images:
    """Files that QEMU starts from."""

    xen: Path
    kernel: Path
    initrd: Path
    dom0: Path
    """Disk of dom0; holds the kernel and the RAM disk of domUs too."""

    domu: Path
    """Disk that all domUs share, read-only."""

    memory: Path | None = None
    """What the host had in memory when dom0's disk was like this: with it nothing boots (snapshot.py)."""

    domains: tuple[str, ...] = ()
    """The domUs that run in that memory."""


def build() -> Images:
    """The images for the tree as it is; LabUnavailable when this machine cannot make them."""
    require()
    parts = debian.parts()
    recipes = (*recipe.INITIAL_MODULES, *recipe.MASKED_UNITS, *recipe.MASKED_IN_DOMU)
    ours = [Path(__file__), Path(product.__file__), _FRAMES, _LAB / "guest"]
    key = digest([parts.name, *recipes, *ours, product.packages().name])
    disks = cached(BUILD, "disks", key, lambda directory: _build(parts, directory))
    return Images(
        xen=parts / debian.XEN,
        kernel=parts / debian.VMLINUX,
        initrd=disks / _INITRD,
        dom0=disks / "dom0.ext4",
        domu=disks / "domu.ext4",
    )


def _build(parts: Path, directory: Path) -> None:
    _make_initrd(parts, directory / _INITRD)
    for role in ("dom0", "domu"):
        print(f"xen-lab: making the disk of {role}", flush=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            root = Path(scratch) / role
            root.mkdir()
            _populate(root, parts, role)
            if role == "dom0":
                for kernel in (parts / debian.VMLINUX, directory / _INITRD):
                    shutil.copy2(kernel, root / "boot" / kernel.name)
            _make_disk(root, directory / f"{role}.ext4")


def _populate(root: Path, parts: Path, role: str) -> None:
    run(["tar", "--extract", "--file", parts / debian.ROOT, "--directory", root])
    run(["cp", "-a", "--no-target-directory", parts / debian.MODULES / "lib", root / "usr/lib"])
    product.install(root)
    _install_agent(root)
    _settle(root)
    if role == "domu":
        run(["systemctl", "--root", root, "mask", "--quiet", *recipe.MASKED_IN_DOMU])


def _make_initrd(parts: Path, initrd: Path) -> None:
    """The RAM disk that finds the root disk: busybox, a few modules, and the script `init`."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        (tree / "bin").mkdir()
        busybox = [
            "--extract",
            "--file",
            str(parts / debian.ROOT),
            "--strip-components=2",
            "./usr/bin/busybox",
        ]
        run(["tar", "--directory", tree, *busybox])
        debian.copy_modules(parts / debian.MODULES, recipe.INITIAL_MODULES, tree)
        shutil.copy2(_LAB / "guest/init", tree)
        run(["sh", "-c", f"cd {tree} && find . | cpio --quiet --create --format=newc > {initrd}"])


def _install_agent(root: Path) -> None:
    """What the lab itself needs in a machine."""
    home = root / "usr/lib/xenlab"
    home.mkdir()
    for name in ("agent.py", "setup", "hotplug", "minimal-init"):
        shutil.copy2(_LAB / "guest" / name, home)
    shutil.copy2(_FRAMES, home)
    for unit in ("xenlab-setup.service", "xenlab-agent.service"):
        shutil.copy2(_LAB / "guest" / unit, root / "etc/systemd/system")
        run(["systemctl", "--root", root, "enable", "--quiet", unit])
    drop_in = root / "etc/systemd/system/systemd-udev-trigger.service.d"
    drop_in.mkdir()
    shutil.copy2(_LAB / "guest/udev-trigger.conf", drop_in)
    settings = root / "etc/systemd/system.conf.d"
    settings.mkdir(exist_ok=True)
    shutil.copy2(_LAB / "guest/system.conf", settings / "xenlab.conf")
    with (root / "etc/default/xen").open("a") as defaults:
        defaults.write('XENCONSOLED_ARGS="--log=guest --log-dir=/var/log/xen/console"\n')
    (root / "var/log/xen/console").mkdir(parents=True, exist_ok=True)


def _settle(root: Path) -> None:
    """Do at build time what a first boot would do, and leave out what a machine of minutes does not need."""
    run(["systemctl", "--root", root, "mask", "--quiet", *recipe.MASKED_UNITS])
    (root / "etc/machine-id").write_text("0" * 31 + "1\n")
    (root / "etc/hostname").write_text("dom0\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    run(["chroot", root, "sed", "-i", "s,^root:[^:]*:,root::,", "/etc/shadow"])
    for directory in ("etc", "var"):
        (root / directory / ".updated").touch()


def _make_disk(root: Path, disk: Path) -> None:
    used = int(run(["du", "--summarize", "--block-size=1M", root]).split()[0])
    run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, disk, f"{used + _FREE}M"])
