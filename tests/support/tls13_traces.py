"""Reads the traces of RFC 8448 in tests/vectors/tls13; tests/vectors/README.md describes the format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.sections import sections

TRACES = (
    "simple-1-rtt",
    "resumed-0-rtt",
    "hello-retry-request",
    "client-authentication",
    "compatibility-mode",
)


@dataclass(frozen=True)
class Step:
    """What one side does, as the RFC words it, with the octets that it shows."""

    side: str
    action: str
    values: dict[str, bytes]

    def __getitem__(self, name: str) -> bytes:
        return self.values[name]

    @property
    def label(self) -> bytes:
        """The label between quotation marks, without its prefix."""
        return self.action.split('"')[1].removeprefix("tls13 ").encode()

    @property
    def message(self) -> bytes:
        """The handshake message that the step constructs; its name is the name of the value."""
        (message,) = self.values.values()
        return message


def trace(name: str) -> list[Step]:
    """The steps of one trace that show octets, in the order of the RFC."""
    return [
        Step(*title.split(": ", 1), {key: bytes.fromhex(value) for key, value in values.items()})
        for title, values in sections(f"tls13/rfc8448-{name}.txt")
    ]


def steps(*beginnings: str) -> Iterator[tuple[str, Step]]:
    """All steps of all traces whose action begins like that, with a name for the test."""
    for name in TRACES:
        for number, step in enumerate(trace(name)):
            if step.action.startswith(beginnings):
                yield f"{name}-{number}-{step.side} {step.action}", step
