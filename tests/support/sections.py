"""Reads vector files of the form `[name]`, then lines of `key = value`; `#` starts a comment."""

from __future__ import annotations

from pathlib import Path

VECTORS = Path(__file__).parent.parent / "vectors"


def sections(path: str) -> list[tuple[str, dict[str, str]]]:
    """The sections of a file in `tests/vectors`, in order."""
    found: list[tuple[str, dict[str, str]]] = []
    for line in (VECTORS / path).read_text().splitlines():
        if line.startswith("["):
            found.append((line.strip("[]"), {}))
        elif " =" in line and not line.startswith("#"):
            key, _, value = line.partition(" =")
            found[-1][1][key] = value.strip()
    return found
