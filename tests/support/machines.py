"""Machines for the doctors: a directory that stands for the root, programs that say what a test wants."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.fakes.clock import FixedClock
from vmtoken.doctor.finding import Finding, Verdict
from vmtoken.doctor.machine import Account, Machine

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
STRANGER = Account("stranger", 54321, frozenset([54321]))
"""A user that is in no group of any file here."""


def machine(root: Path, says: Mapping[str, str] | None = None, now: datetime = NOON) -> Machine:
    """`says` is what programs write, by a word of their command line."""

    def output(command: Sequence[str]) -> str | None:
        return next((text for word, text in (says or {}).items() if word in " ".join(command)), None)

    return Machine(root, output, FixedClock(now.timestamp()))


def put(root: Path, path: str, text: str = "", mode: int = 0o644) -> Path:
    """A file below the root."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


def owner(path: Path) -> Account:
    """A user that owns a file, whoever runs the tests; root would be allowed anything."""
    if os.geteuid() == 0:
        os.chown(path, 54322, 54322)
    status = path.stat()
    return Account("owner", status.st_uid, frozenset([status.st_gid]))


def complaints(findings: Sequence[Finding]) -> list[tuple[str, Verdict]]:
    """What is not good. Each complaint has a cure."""
    assert all(finding.cure for finding in findings if finding.verdict is not Verdict.GOOD)
    return [(finding.check, finding.verdict) for finding in findings if finding.verdict is not Verdict.GOOD]
