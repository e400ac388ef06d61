"""What a document tells its reader to do: the commands of its code blocks, and where each belongs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PLACE = re.compile(r"# (where you build|in dom0|in the VM|in the service domain)$")


@dataclass(frozen=True)
class Block:
    """Commands that a reader types one after another."""

    section: str
    place: str
    """The comment above them: `in dom0`, `in the VM`, `in the service domain`, `where you build`."""

    commands: str


def blocks(markdown: str) -> Iterator[Block]:
    """The indented blocks of a document; ValueError for one that does not say where it belongs."""
    section, commands = "", list[str]()
    for line in [*markdown.splitlines(), "# the end"]:
        if line.startswith("    "):
            commands.append(line.strip())
            continue
        if not line and commands:
            continue  # an empty line within a block, or after it
        if commands:
            yield from _by_place(section, commands)
            commands = []
        if heading := re.match(r"#+ (.*)", line):
            section = heading[1]


def _by_place(section: str, lines: list[str]) -> Iterator[Block]:
    starts = [number for number, line in enumerate(lines) if _PLACE.match(line)]
    if starts[:1] != [0]:
        raise ValueError(f"{section}: {lines[0]!r} does not say in which machine")
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield Block(section, lines[start].removeprefix("# "), "\n".join(lines[start + 1 : end]))
