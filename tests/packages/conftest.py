"""The packages, built once for all tests here; and systems that they are installed in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import Chroot, Package, build, debian


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    return build(tmp_path_factory.mktemp("packages") / "deb")


@pytest.fixture(scope="session")
def newer(packages: dict[str, Package], tmp_path_factory: pytest.TempPathFactory) -> list[Package]:
    """The same packages, as the next build would call them."""
    directory = tmp_path_factory.mktemp("newer")
    return [package.as_next_build(directory) for package in packages.values()]


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chroot]:
    """A clean Debian 12."""
    with debian(Path(tmp_path_factory.mktemp("debian"))) as chroot:
        yield chroot
