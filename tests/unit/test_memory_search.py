"""The search in a machine's memory (tests/xen/memory_search.py) finds what is there, wherever it lies."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.xen.memory_search import found_in, pieces

PAGE = 4096
SECRET = bytes(range(100, 132))


def memory() -> bytes:
    """Three pages of noise, one of zeroes, three of noise."""
    noise = random.Random(1).randbytes
    return noise(3 * PAGE) + bytes(PAGE) + noise(3 * PAGE)


@pytest.mark.parametrize("at", [0, 1, 4000, PAGE - 16, 5 * PAGE + 7, 7 * PAGE - 32])
def test_secret_is_found_wherever_it_lies(tmp_path: Path, at: int) -> None:
    octets = bytearray(memory())
    octets[at : at + len(SECRET)] = SECRET
    assert holds(tmp_path, octets, SECRET)


@pytest.mark.parametrize("before", range(1, 32))
def test_secret_that_pages_divide_is_found(tmp_path: Path, before: int) -> None:
    """Its other half is in a page that may be anywhere."""
    octets = bytearray(memory())
    octets[PAGE - before : PAGE] = SECRET[:before]
    octets[5 * PAGE : 5 * PAGE + 32 - before] = SECRET[before:]
    assert holds(tmp_path, octets, SECRET)


@pytest.mark.parametrize("octet", [0, 10])
def test_short_secret_with_octets_that_grep_cannot_search_is_found(tmp_path: Path, octet: int) -> None:
    secret = bytearray(SECRET[:16])
    secret[3] = secret[8] = secret[9] = secret[15] = octet
    octets = bytearray(memory())
    octets[500:516] = secret
    assert holds(tmp_path, octets, bytes(secret))


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    assert not holds(tmp_path, memory(), SECRET)


def test_pages_of_zeroes_are_not_searched(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(memory())
    assert found_in(tmp_path / "dump", pieces(SECRET)) == (set(), 6 * PAGE)


def holds(directory: Path, octets: bytes, secret: bytes) -> bool:
    (directory / "dump").write_bytes(octets)
    return bool(pieces(secret) & found_in(directory / "dump", pieces(secret))[0])
