"""The Debian packages, built once; and a clean Debian to install them in."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.servers import ROOT
from tests.support.tools import tool

NAMES = ("vmtoken-common", "vmtoken-broker", "vmtoken-agent")
PATIENCE = 900
"""Seconds for a build or a bootstrap: both download, on machines that do other things too."""

_FIELDS = re.compile(r"(?P<mode>\S{10}) (?P<owner>\S+)\s+\d+ \S+ \S+ \.(?P<path>/.*?)(?: -> (?P<target>.*))?")


@dataclass(frozen=True)
class Entry:
    """A file of a package, as `dpkg-deb --contents` lists it."""

    mode: str
    owner: str
    path: str
    target: str | None


@dataclass(frozen=True)
class Package:
    """A .deb file."""

    path: Path

    def field(self, name: str) -> str:
        return run("dpkg-deb", "--field", self.path, name).strip()

    @functools.cached_property
    def entries(self) -> list[Entry]:
        listing = run("dpkg-deb", "--contents", self.path).splitlines()
        matches = [_FIELDS.fullmatch(line) for line in listing]
        assert all(matches), listing
        return [Entry(**match.groupdict()) for match in matches if match]

    def unpack(self, directory: Path) -> Path:
        run("dpkg-deb", "--extract", self.path, directory)
        return directory

    def control_file(self, name: str) -> str:
        return run("dpkg-deb", "--info", self.path, name)

    def as_next_build(self, directory: Path) -> Package:
        """The same package with a higher version."""
        version = self.field("Version")
        tree = self.unpack(directory / self.path.stem)
        run("dpkg-deb", "--control", self.path, tree / "DEBIAN")
        control = tree / "DEBIAN/control"
        control.write_text(control.read_text().replace(version, f"{version}.next"))
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, directory)
        shutil.rmtree(tree)
        (built,) = directory.glob(f"{self.field('Package')}_*.deb")
        return Package(built)


def build(directory: Path) -> dict[str, Package]:
    """The packages of HEAD, by name; what builds them is needed."""
    for name in ("dpkg-buildpackage", "dh", "dpkg-deb"):
        tool(name)
    run(ROOT / "deploy/debian/build", directory, seconds=PATIENCE)
    packages = [Package(path) for path in directory.glob("*.deb")]
    return {package.field("Package"): package for package in packages}


def run(*command: str | Path, seconds: float = 120, succeeds: bool = True) -> str:
    """What a command writes; one that fails shows all of it."""
    ended = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
    )
    assert not succeeds or ended.returncode == 0, f"{command[0]} failed:\n{ended.stdout[-4000:]}"
    return ended.stdout


class Chroot:
    """A Debian system in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, seconds: float = 120, succeeds: bool = True) -> str:
        """Run a program inside, as root and with a clean environment."""
        return run(*self.command(*command), seconds=seconds, succeeds=succeeds)

    def command(self, *command: str, user: str = "root") -> Sequence[str]:
        """The words that run a program inside, as one of its users."""
        identity = ["--userspec", f"{user}:{user}"] if user != "root" else []
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/"]
        return ["chroot", *identity, str(self.root), *clean, *command]

    def path(self, path: str) -> Path:
        """A file inside, as seen from outside."""
        return self.root / path.lstrip("/")

    def install(self, packages: Sequence[Package]) -> str:
        """Install packages at once, or upgrade to them; all that they depend on is there."""
        for package in packages:
            shutil.copy(package.path, self.root / "root")
        names = [f"/root/{package.path.name}" for package in packages]
        return self.run("dpkg", "--install", *names, seconds=PATIENCE)


@contextmanager
def debian(root: Path) -> Iterator[Chroot]:
    """A Debian 12 with what the packages depend on, from the mirrors that this machine uses."""
    tool("mmdebstrap")
    if os.geteuid() != 0:
        why = "a Debian in a directory can only be made and entered by root"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    include = "--include=python3,libpcsclite1,systemd-standalone-sysusers,systemd-standalone-tmpfiles"
    quiet = ["--quiet", "--mode=root", "--variant=minbase", '--aptopt=APT::Install-Recommends "false"']
    unneeded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("locale", "info")]
    run("mmdebstrap", *quiet, *unneeded, include, "bookworm", root, *_sources(), seconds=PATIENCE)
    chroot = Chroot(root)
    run("mount", "--types", "proc", "proc", root / "proc")
    run("mount", "--bind", "/dev", root / "dev")
    try:
        yield chroot
    finally:
        run("umount", root / "dev")
        run("umount", root / "proc")


def _sources() -> list[str]:
    """Debian's own of the sources of apt, as one-line entries."""
    targets = run(
        "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"
    ).splitlines()
    sites = {tuple(line.split()) for line in targets}
    debian_sites = [(site, release) for site, release in sites if release.startswith("bookworm")]
    return [f"deb {site} {release} main" for site, release in sorted(debian_sites)]
