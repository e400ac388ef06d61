"""The product, installed into a root file system as an operator would install it.

This is the one place that knows how: today wheels in a private environment.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from xenlab.cache import cached, digest, user_cache
from xenlab.host import run

REPOSITORY = Path(__file__).parents[3]
ENVIRONMENT = "/usr/lib/vmtoken"
"""The private environment in a machine of the lab."""

PROGRAMS = {
    "dom0": ("vmtoken-broker", "vmtokenctl"),
    "domu": ("vmtoken-agent", "vmtoken"),
}
"""What is on the PATH of a machine, by its role."""

_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "vmtoken", "dom0_broker", "guest_agent")
_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
_PLATFORMS = (
    "manylinux_2_34_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
"""What the C library of Debian 12 (2.36) takes."""


def sources() -> list[Path]:
    """What the installed product is made from."""
    return [REPOSITORY / name for name in (*_SOURCES, "constraints.txt")]


def install(root: Path, role: str) -> None:
    """Install the product into the root file system of a machine that is `dom0` or `domu`."""
    with tempfile.TemporaryDirectory(dir=root / "tmp") as scratch:
        wheels = Path(scratch)
        shutil.copytree(_dependencies(), wheels, dirs_exist_ok=True)
        _build_wheel(wheels)
        _install_wheels(root, Path("/") / wheels.relative_to(root))
    for program in PROGRAMS[role]:
        (root / "usr/bin" / program).symlink_to(f"{ENVIRONMENT}/bin/{program}")


def _dependencies() -> Path:
    """Wheels for the Python of Debian 12, as constraints.txt pins them, and pip to install them."""

    def download(directory: Path) -> None:
        print("xen-lab: fetching the wheels that the product needs", flush=True)
        wanted = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
        wanted += [f"--platform={name}" for name in _PLATFORMS]
        pinned = ["--constraint", str(REPOSITORY / "constraints.txt"), "pip", *_requirements()]
        run([*_PIP, "download", "--dest", directory, *wanted, *pinned], seconds=900)

    key = digest([REPOSITORY / "constraints.txt", *_requirements(), *_PLATFORMS])
    return cached(user_cache(), "wheels", key, download)


def _requirements() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return sorted(project["dependencies"])


def _build_wheel(target: Path) -> None:
    """Build from a copy: setuptools leaves files in the tree that it builds from."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in _SOURCES:
            source = REPOSITORY / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, tree / name)
        run([*_PIP, "wheel", "--no-deps", "--wheel-dir", target, tree])


def _install_wheels(root: Path, wheels: Path) -> None:
    """In the root file system, with its own Python and without a network."""
    run(["chroot", root, "python3", "-m", "venv", "--without-pip", ENVIRONMENT])
    (pip,) = (root / wheels.relative_to("/")).glob("pip-*.whl")
    python = [
        "chroot",
        str(root),
        "env",
        "-i",
        "PATH=/usr/bin:/bin",
        "HOME=/root",
        f"{ENVIRONMENT}/bin/python",
    ]
    offline = ["--quiet", "--no-index", "--no-cache-dir", "--find-links", str(wheels)]
    run([*python, wheels / pip.name / "pip", "install", *offline, "vmtoken"])
