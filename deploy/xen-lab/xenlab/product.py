"""The product, installed into a root file system as an operator installs it: from its Debian packages.

This is the one place that knows how.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from xenlab.cache import cached, digest
from xenlab.host import run

REPOSITORY = Path(__file__).parents[3]

PACKAGES = ("vmtoken-common", "vmtoken-broker", "vmtoken-agent")
"""In every machine: dom0 has the agent too, for trials on one machine, and a domU can be a service domain."""

_UNITS = ("vmtoken-broker.service", "vmtoken-agent.service")
_SOURCES = (
    "pyproject.toml", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE",
    "vmtoken", "dom0_broker", "guest_agent", "scripts",
    "deploy/debian", "deploy/etc", "deploy/policy.d", "deploy/xen",
)  # fmt: skip
"""What the packages are made from."""


def packages() -> Path:
    """The directory with the packages of the tree as it is; files that git does not know are not in them."""

    def build(directory: Path) -> None:
        print("xen-lab: building the Debian packages of the product", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch) / "vmtoken"
            commit = run(["git", "-C", REPOSITORY, "stash", "create"]).strip() or "HEAD"
            commit = run(["git", "-C", REPOSITORY, "rev-parse", commit]).strip()
            run(["git", "clone", "--quiet", "--shared", "--no-checkout", REPOSITORY, tree])
            run(["git", "-C", tree, "checkout", "--quiet", commit])
            run([tree / "deploy/debian/build", directory / "deb"], seconds=1500)
        shutil.copytree(directory / "deb", directory, dirs_exist_ok=True)
        shutil.rmtree(directory / "deb")

    key = digest(REPOSITORY / name for name in _SOURCES)
    return cached(REPOSITORY / "build/xen-lab", "packages", key, build)


def install(root: Path) -> None:
    """Install the product into the root file system of a machine.

    Its units are there and disabled: a test starts those that it is about.
    """
    with tempfile.TemporaryDirectory(dir=root / "tmp") as scratch:
        names = []
        for package in PACKAGES:
            (archive,) = packages().glob(f"{package}_*.deb")
            shutil.copy2(archive, scratch)
            names.append(Path("/") / Path(scratch).relative_to(root) / archive.name)
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"]
        run(["chroot", root, *environment, "dpkg", "--install", *names])
    present = [unit for unit in _UNITS if (root / "lib/systemd/system" / unit).exists()]
    run(["systemctl", "--root", root, "disable", "--quiet", *present])
