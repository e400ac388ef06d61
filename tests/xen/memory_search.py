"""Searches a file as big as a machine's memory for secrets, and says which of them it holds.

A program for dom0: the path of a dump is its argument, the secrets come on standard input as a JSON list
of hexadecimal strings; those found go to standard output likewise, with the number of octets searched.

A secret may lie across two pages, and the pages of a process are strewn over the memory. So pieces of 16
octets are searched, one of which is whole wherever a secret of 32 octets is divided. grep does it, which
wants lines, and patterns without a newline or a zero: a page is a line, and 0 and 10 count as 1 and 11.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PIECE = 16
"""Octets."""

_PAGE = 4096
_CHUNK = 256 * _PAGE
_PLAIN = bytes.maketrans(b"\0\n", b"\1\v")


def pieces(secret: bytes) -> set[bytes]:
    """What to look for; less than 16 octets at its end are left out."""
    plain = secret.translate(_PLAIN)
    return {plain[end - PIECE : end] for end in range(PIECE, len(plain) + 1, PIECE)} or {plain}


def found_in(dump: Path, wanted: set[bytes]) -> tuple[set[bytes], int]:
    """Those of the pieces that are in a file, and how many octets of it are not in pages of zeroes."""
    with tempfile.TemporaryDirectory() as scratch:
        patterns, matches = Path(scratch, "patterns"), Path(scratch, "matches")
        patterns.write_bytes(b"\n".join(sorted(wanted)))
        command = ["grep", "--text", "--only-matching", "--fixed-strings", "--file", str(patterns)]
        with matches.open("wb") as output:
            grep = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, env={**os.environ, "LC_ALL": "C"}
            )
            assert grep.stdin
            searched = _feed(dump, grep.stdin)
            grep.stdin.close()
            if grep.wait() > 1:
                raise RuntimeError("grep failed")
        return set(matches.read_bytes().split(b"\n")) - {b""}, searched


def _feed(dump: Path, search: IO[bytes]) -> int:
    searched = 0
    with dump.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for page in _used_pages(chunk):
                search.write(page.translate(_PLAIN) + b"\n")
                searched += len(page)
    return searched


def _used_pages(chunk: bytes) -> Iterator[bytes]:
    zeroes = bytes(_PAGE)
    for start in range(0, len(chunk), _PAGE):
        page = chunk[start : start + _PAGE]
        if page != zeroes:
            yield page


def main() -> None:
    """Search, and say what was found."""
    secrets = [bytes.fromhex(text) for text in json.load(sys.stdin)]
    found, searched = found_in(Path(sys.argv[1]), set().union(*map(pieces, secrets)))
    held = [secret.hex() for secret in secrets if pieces(secret) & found]
    print(json.dumps({"found": held, "searched": searched}))


if __name__ == "__main__":
    main()
