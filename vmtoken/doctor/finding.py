"""What a check finds, and how it is told."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class Verdict(enum.Enum):
    """How things are."""

    GOOD = "good"
    WARNING = "warning"
    """It works, and may not for long, or not as well as it could."""

    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, in one sentence; its cure is one more, empty when nothing is wrong."""

    check: str
    verdict: Verdict
    text: str
    cure: str = ""


Check = Callable[[], Iterable[Finding]]
"""One check, with what it looks at given already."""


def good(check: str, text: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check, Verdict.GOOD, text)


def warning(check: str, text: str, cure: str) -> Finding:
    """Something should be looked after."""
    return Finding(check, Verdict.WARNING, text, cure)


def wrong(check: str, text: str, cure: str) -> Finding:
    """Something does not work."""
    return Finding(check, Verdict.WRONG, text, cure)


def examine(checks: Iterable[Check]) -> list[Finding]:
    """What all checks find. A file that cannot be read does not keep the others from being made."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except OSError as error:
            function: Any = getattr(check, "func", check)  # what is within a partial
            name = function.__name__.strip("_").replace("_", "-")
            text = f"{error.filename or 'Something'} cannot be looked at: {error.strerror}."
            findings.append(wrong(name, text, "Run this as root, or correct the permissions."))
    return findings


def exit_code(findings: Iterable[Finding]) -> int:
    """1 when something is wrong; warnings are not."""
    return 1 if any(finding.verdict is Verdict.WRONG for finding in findings) else 0


def as_text(findings: Sequence[Finding]) -> str:
    """For people: a line a finding, the cure below it, and what it comes to."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict.value:<8} {finding.check:<14} {_printable(finding.text)}")
        if finding.cure:
            lines.append(f"{'':<24}-> {_printable(finding.cure)}")
    counted = {verdict: sum(each.verdict is verdict for each in findings) for verdict in Verdict}
    ends = (
        f"{counted[Verdict.WRONG]} wrong, {counted[Verdict.WARNING]} to look after, {len(findings)} checked."
    )
    return "\n".join([*lines, ends])


def as_json(findings: Sequence[Finding]) -> str:
    """For programs: a list of objects."""
    return json.dumps(
        [
            {"check": each.check, "verdict": each.verdict.value, "text": each.text, "cure": each.cure}
            for each in findings
        ],
        indent=2,
    )


def _printable(text: str) -> str:
    """Untrusted text, such as a name in a certificate, must not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
