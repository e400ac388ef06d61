"""Cards for tests: one that plays a script, one that keeps what passes by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vmtoken.iso7816.connection import CardConnection

Exchange = tuple[bytes, bytes]
"""A command and its answer, status word included."""


class ScriptedCard:
    """Answers the commands of a script in their order, and nothing else.

    A line is `command > answer`, both hexadecimal. `close` demands that the script was played to its end.
    """

    def __init__(self, script: str | Iterable[Exchange]) -> None:
        self._expected = list(_parse_script(script) if isinstance(script, str) else script)
        self._position = 0

    def transmit(self, command: bytes) -> bytes:
        assert self._position < len(self._expected), f"one command too many: {command.hex(' ')}"
        expected, answer = self._expected[self._position]
        assert command.hex(" ") == expected.hex(" "), f"command {self._position + 1} of the script"
        self._position += 1
        return answer

    def reset(self) -> None:
        self._position = 0

    def close(self) -> None:
        left = self._expected[self._position :]
        assert not left, f"{len(left)} commands were never sent, next is {left[0][0].hex(' ')}"


class RecordingCard:
    """Passes everything on to another card and keeps the exchanges."""

    def __init__(self, connection: CardConnection) -> None:
        self._connection = connection
        self.exchanges: list[Exchange] = []

    def transmit(self, command: bytes) -> bytes:
        answer = self._connection.transmit(command)
        self.exchanges.append((command, answer))
        return answer

    def reset(self) -> None:
        self._connection.reset()

    def close(self) -> None:
        self._connection.close()


def read_trace(path: Path) -> list[Exchange]:
    """The exchanges of a trace file: `Tx:` and `Rx:` lines with hexadecimal digits, `#` and `//` comments."""
    octets: list[list[str]] = []
    for line in path.read_text().splitlines():
        if line.startswith(("#", "//")):
            continue
        if line.startswith(("Tx:", "Rx:")):
            octets.append([line[3:]])
        elif line.strip():
            octets[-1].append(line)
    values = [bytes.fromhex(re.sub(r"\s", "", "".join(lines))) for lines in octets]
    return list(zip(values[::2], values[1::2], strict=True))


def _parse_script(script: str) -> Iterable[Exchange]:
    for line in script.splitlines():
        if line.strip():
            command, answer = line.split(">")
            yield bytes.fromhex(command), bytes.fromhex(answer)
