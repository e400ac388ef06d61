"""An operator who follows `docs/install-xen.md` in the machines of a lab."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from xenlab import DomU, Machine, product

from tests.support.debian import Package
from tests.xen.document import Block, blocks

DOCUMENT = list(blocks((product.REPOSITORY / "docs/install-xen.md").read_text()))

PACKAGES = "/root/packages"
"""Where the operator has put the packages; every command is run there."""

ALL = product.PACKAGES
APT_WITHIN = 900
"""Seconds; apt and the compiler of Python need a minute on a quiet machine, and seven on a busy one."""


@dataclass
class Operator:
    """Follows the document in dom0 and in a domU: the VM, or the service domain."""

    dom0: Machine
    vm: DomU
    followed: set[Block] = field(default_factory=set)

    def follow(self, section: str, *places: str, stdin: str = "y\n") -> list[str]:
        """Run the blocks of a section, in all places at once; what they print. apt is told to go on."""
        todo = [block for block in DOCUMENT if block.section == section and block.place in places]
        assert len(todo) == len(places), f"{section} has no longer one block for each of {places}"
        with ThreadPoolExecutor() as pool:
            printed = list(pool.map(lambda each: self._run(each, stdin), todo))
        self.followed |= set(todo)
        return printed

    def first_session(self) -> str:
        """What the server says in the VM's part of the first session."""
        (page,) = self.follow("The first session", "in the VM", stdin="GET / HTTP/1.0\r\n\r\n")
        return page

    def _run(self, block: Block, stdin: str) -> str:
        machine = self.dom0 if block.place == "in dom0" else self.vm
        script = ["bash", "-euxc", block.commands]
        return machine.run(script, stdin=stdin, directory=PACKAGES, seconds=APT_WITHIN).stdout


def put_packages(machine: Machine, names: Sequence[str], next_build: Path | None = None) -> None:
    """Copy packages into a machine, in place of earlier ones."""
    built = product.packages()
    machine.sh(f"mkdir -p {PACKAGES}; rm -f {PACKAGES}/*.deb")
    for name in names:
        (path,) = built.glob(f"{name}_*.deb")
        package = Package(path).as_next_build(next_build).path if next_build else path
        machine.write(f"{PACKAGES}/{package.name}", package.read_bytes())


def make_bare(machine: Machine, *names: str) -> None:
    """Without the product, which the images have, and with the packages that are to be installed."""
    put_packages(machine, names)
    machine.sh(f"apt purge --yes {' '.join(ALL)}", seconds=APT_WITHIN)
