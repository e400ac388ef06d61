"""vmtoken-broker that writes down every key derivation of its cards, for a test to know what must stay.

Run as a program: the path of the file, then the broker's own arguments. All of TLS derives its
secrets with HMAC, so that is where to listen: one line of JSON a call.
"""

from __future__ import annotations

import hmac
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAM = (Path(sys.executable), Path(__file__))


@dataclass(frozen=True)
class Derivation:
    """One call of HMAC."""

    key: bytes
    message: bytes
    output: bytes


def derivations(tap: Path) -> Iterator[Derivation]:
    """What the broker has derived until now."""
    for line in tap.read_text().splitlines():
        yield Derivation(*(bytes.fromhex(value) for value in json.loads(line)))


def main() -> int:
    """The broker, with a tap."""
    tap = Path(sys.argv.pop(1)).open("a", buffering=1)  # noqa: SIM115  # open as long as the process lives
    plain = hmac.digest

    def tapped(key: bytes, message: bytes, digest: str) -> bytes:
        output = plain(key, message, digest)
        tap.write(json.dumps([bytes(value).hex() for value in (key, message, output)]) + "\n")
        return output

    hmac.digest = tapped
    from dom0_broker.__main__ import main as broker

    return broker()


if __name__ == "__main__":
    sys.exit(main())
