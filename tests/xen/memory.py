"""A guest's whole memory, and what is found in it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from xenlab import DomU, Machine
from xenlab.remote import PYTHON

from tests.support.tapped_broker import Derivation, derivations
from tests.xen.links import HOME
from tests.xen.stage import Stage

_HERE = Path(__file__).parent
_SUPPORT = _HERE.parent / "support"

TAP = f"{HOME}.tap"
"""Where a tapped broker writes what it derives; outside of what a stage clears when it begins."""

TAPPED_BROKER = (PYTHON, "/root/tapped_broker.py", TAP)
_DUMP_WITHIN = 240.0
"""Seconds to dump or to search 320 MiB."""


def install_tapped_broker(dom0: Machine) -> None:
    """Put it where `TAPPED_BROKER` finds it."""
    dom0.write("/root/tapped_broker.py", (_SUPPORT / "tapped_broker.py").read_text())
    dom0.write(TAP, "", mode=0o600)


class Tap:
    """What the tapped broker has derived since this was made."""

    def __init__(self, dom0: Machine, scratch: Path) -> None:
        self._dom0 = dom0
        self._copy = scratch / "derivations"
        self._begin = len(self._all())

    def derived(self) -> list[Derivation]:
        """In order, until now."""
        return self._all()[self._begin :]

    def _all(self) -> list[Derivation]:
        self._copy.write_bytes(self._dom0.read(TAP))
        return list(derivations(self._copy))


@dataclass(frozen=True)
class GuestMemory:
    """The memory of a domU, as it was at one moment, searched once."""

    found: frozenset[bytes]
    searched: int
    """Octets, without pages of zeroes."""

    @classmethod
    def of(cls, domain: DomU, secrets: Collection[bytes]) -> GuestMemory:
        """Dump it from dom0 and look for each of the secrets in it."""
        pipe = f"/root/{domain}.core"
        domain.dom0.run(["mkfifo", pipe])
        try:
            program = (_HERE / "memory_search.py").read_text()
            with domain.dom0.start([PYTHON, "-c", program, pipe]) as search:
                search.write(json.dumps([secret.hex() for secret in secrets]))
                search.close_input()
                domain.dom0.run(["xl", "dump-core", domain.name, pipe], seconds=_DUMP_WITHIN)
                assert search.wait(_DUMP_WITHIN) == 0, search.output
                answer = json.loads(search.stdout)
        finally:
            domain.dom0.run(["rm", "-f", pipe])
        return cls(frozenset(map(bytes.fromhex, answer["found"])), answer["searched"])


def kept_by(stage: Stage, token: str) -> tuple[list[bytes], list[bytes]]:
    """The private key of a token in the forms that it may have, and all PINs of the stage's broker."""
    program = (_SUPPORT / "kept_keys.py").read_text()
    kept = json.loads(stage.dom0.python(program, f"{HOME}/state", token))
    return [bytes.fromhex(text) for text in kept["keys"]], [bytes.fromhex(text) for text in kept["pins"]]
