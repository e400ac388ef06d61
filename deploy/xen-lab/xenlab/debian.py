"""What comes from Debian: a root file system, a kernel with the modules that the lab needs, a hypervisor."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tempfile
from pathlib import Path

from xenlab import recipe
from xenlab.cache import cached, digest, user_cache
from xenlab.errors import LabError
from xenlab.host import run

ROOT, VMLINUX, XEN, MODULES = "root.tar", "vmlinux", "xen", "modules"
"""What `parts` holds: MODULES is a directory with `lib/modules`."""

_XZ = b"\xfd7zXZ\x00"


def parts() -> Path:
    """The directory with all parts, from the cache of the user, or made now: about a minute and 300 MB."""
    inputs = (recipe.MIRRORS, recipe.PACKAGES, recipe.HYPERVISOR, recipe.KERNEL, recipe.MODULES)
    key = digest([Path(__file__), repr(inputs)])
    return cached(user_cache(), "debian", key, _build)


def _build(directory: Path) -> None:
    print("xen-lab: making the root file system from Debian packages", flush=True)
    downloads = directory / "downloads"
    downloads.mkdir()
    _bootstrap(directory / ROOT, downloads)
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch)
        for package in downloads.glob("*.deb"):
            run(["dpkg-deb", "--extract", package, unpacked])
        _unpack_hypervisor(unpacked, directory / XEN)
        _unpack_kernel(unpacked, directory / VMLINUX)
        copy_modules(unpacked, recipe.MODULES, directory / MODULES)
    shutil.rmtree(downloads)


def _bootstrap(root: Path, downloads: Path) -> None:
    """Make the root file system, and fetch kernel and hypervisor beside it: they boot from outside."""
    fetch = (
        f"cd {downloads} && export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG && apt-get download {recipe.HYPERVISOR} "
        f"$(apt-cache depends {recipe.KERNEL} | sed -n 's/.*Depends: //p' | head -n 1)"
    )
    unwanted = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    command = ["mmdebstrap", "--mode=root", "--variant=essential", *unwanted]
    command += ['--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io"]
    command += [f"--include={','.join(recipe.PACKAGES)}", f"--customize-hook={fetch}"]
    run([*command, recipe.SUITE, root, *recipe.MIRRORS], seconds=1500)


def _unpack_hypervisor(unpacked: Path, target: Path) -> None:
    """Unpacked it is a 32-bit ELF file with a multiboot header, which QEMU boots without a boot loader."""
    (compressed,) = unpacked.glob("boot/xen-4.17-amd64.gz")
    target.write_bytes(gzip.decompress(compressed.read_bytes()))


def _unpack_kernel(unpacked: Path, target: Path) -> None:
    """Take the ELF file out of the bzImage, so that nothing is decompressed under emulation."""
    (image,) = unpacked.glob("boot/vmlinuz-*")
    data = image.read_bytes()
    offset = -1
    while (offset := data.find(_XZ, offset + 1)) >= 0:
        try:
            kernel = lzma.LZMADecompressor().decompress(data[offset:])
        except lzma.LZMAError:
            continue
        if kernel.startswith(b"\x7fELF"):
            target.write_bytes(kernel)
            return
    raise LabError(f"{image.name} holds no kernel compressed with xz, which is what the lab can unpack")


def copy_modules(root: Path, names: tuple[str, ...], target: Path) -> None:
    """Copy modules and what they depend on from `lib/modules` of one root file system to another."""
    (source,) = (root / "lib/modules").iterdir()
    version = source.name
    if not (source / "modules.dep").exists():
        run(["depmod", "--basedir", root, version])
    show = ["modprobe", "--dirname", str(root), "--set-version", version, "--show-depends", "--all", *names]
    modules = [Path(line.split()[1]) for line in run(show).splitlines() if line.startswith("insmod ")]
    indexes = [source / f"modules.{name}" for name in ("builtin", "builtin.modinfo", "order")]
    for path in {*modules, *indexes}:
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    run(["depmod", "--basedir", target, version])
