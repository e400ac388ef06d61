"""Agents that come and go: each visits the broker a few times, and leaves in one of four ways.

A program for a domU; tests/xen/crowd.py is its other end. It writes a line of JSON after each round of
visits, and one for each thing that went wrong. The line `rest` lets it stop after its round, the next line go
on. An agent is reduced to what the broker sees of it: a vchan, and a call by gRPC, whose octets are below.
The library of gRPC would take half a second of emulation for each visit.
"""

from __future__ import annotations

import enum
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from vmtoken.transport import libxenvchan
from vmtoken.transport.libxenvchan import Vchan, VchanClosed
from vmtoken.transport.vchan import STEADY, link_path

ANSWER_WITHIN = 120.0
"""Seconds from the start of a visit to the answer: the broker pauses for five, the rest is emulation."""

LIFE_WITHIN = 600
"""Seconds after which a process counts as hung."""

AGAIN = "again"
"""What a process says when it was not answered and tries again."""

LOOK_AGAIN = 0.3
"""Seconds between looks for the broker's channel."""


class Leave(enum.Enum):
    """How a visit ends."""

    CLOSED = "closed"
    """HTTP/2 says goodbye, then the channel is closed."""

    DROPPED = "dropped"
    """The channel is closed without a word, while a question is under way."""

    EXITED = "exited"
    """The process ends, and the kernel closes what it had open."""

    KILLED = "killed"
    """SIGKILL, while a question is under way."""


@dataclass(frozen=True)
class Visit:
    """A connection, a question that is answered, perhaps some time, and an end."""

    leave: Leave
    stay: float = 0.0


ROUND = (
    (Visit(Leave.CLOSED, STEADY + 0.5), Visit(Leave.DROPPED), Visit(Leave.CLOSED), Visit(Leave.EXITED)),
    (Visit(Leave.DROPPED), Visit(Leave.CLOSED), Visit(Leave.DROPPED), Visit(Leave.KILLED)),
)
"""The visits of each process. The broker's pause before the next one doubles with each that is short, from
50 ms to 5 s, and a long one ends that: seven short ones after a long one wait for 3 s in all."""

EXPECTED_STATUS = {Leave.EXITED: 0, Leave.KILLED: -signal.SIGKILL}

# HTTP/2 (RFC 9113): frames are length, type, flags, stream and payload.
DATA, HEADERS, SETTINGS, GOAWAY = 0, 1, 4, 7
KINDS = range(10)
END_STREAM, END_HEADERS = 0x1, 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CALL = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/vmtoken.v1.TokenService/ListTokens"),
    (b":authority", b"localhost"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)
EMPTY_MESSAGE = bytes(5)
"""gRPC's prefix of a message: not compressed, no octets."""


def main() -> None:
    """Rounds until dom0 has seen enough."""
    domid = int(subprocess.run(["xenstore-read", "domid"], capture_output=True, check=True).stdout)
    while True:
        began = time.monotonic()
        said = [line for life in ROUND for line in _lived(life, link_path(0, domid))]
        visits = [line for line in said if line != AGAIN]
        _say(visits=visits, again=said.count(AGAIN), seconds=time.monotonic() - began)
        if select.select([sys.stdin], [], [], 0)[0]:
            sys.stdin.readline()
            _say(resting=True)
            sys.stdin.readline()


def _lived(visits: tuple[Visit, ...], path: str) -> list[str]:
    """How a process that made these visits left each time that it was answered, and `AGAIN`."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        _live(visits, path, writer)
    os.close(writer)
    with os.fdopen(reader) as lines:
        said = lines.read().split()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status != EXPECTED_STATUS[visits[-1].leave]:
        _say(error=f"a process ended with {status}")
    return said


def _live(visits: tuple[Visit, ...], path: str, said: int) -> NoReturn:
    """The life of a process; the last visit ends it."""
    signal.alarm(LIFE_WITHIN)
    try:
        for visit in visits:
            agent = _answered(path, said)
            os.write(said, f"{visit.leave.value}\n".encode())
            time.sleep(visit.stay)
            agent.leave(visit.leave)
    except BaseException as error:
        _say(error=repr(error))
    os._exit(1)


def _answered(path: str, said: int) -> Agent:
    """One that has asked, and was answered. Raises `OSError` when none was in time.

    An agent that comes before the broker has seen the end of the one before gets that one's rings. It comes
    again, as `vmtoken.transport.vchan.connect` does.
    """
    deadline = time.monotonic() + ANSWER_WITHIN
    while True:
        agent = Agent(path, deadline)
        try:
            agent.ask()
            return agent
        except VchanClosed:
            if time.monotonic() > deadline:
                raise
        agent.close()
        os.write(said, f"{AGAIN}\n".encode())


class Agent:
    """A connection to the broker."""

    def __init__(self, path: str, deadline: float) -> None:
        self._deadline = deadline
        self._vchan = self._connected(path)
        self._received = b""

    def ask(self) -> None:
        """Which tokens there are. Raises `VchanClosed`, also for rings that another one has used."""
        if self._vchan.used:
            raise VchanClosed
        self._write(PREFACE + _frame(SETTINGS) + _question(1))
        if DATA not in list(self._kinds()):
            raise LookupError("the call failed")

    def leave(self, leave: Leave) -> None:
        """Does not return when that is by the end of the process."""
        match leave:
            case Leave.CLOSED:
                self._write(_frame(GOAWAY, payload=bytes(8)))
            case Leave.DROPPED:
                self._write(_question(3))
            case Leave.EXITED:
                os._exit(0)
            case Leave.KILLED:
                self._write(_question(3))
                os.kill(os.getpid(), signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Close the channel, without a word."""
        self._vchan.close()

    def _connected(self, path: str) -> Vchan:
        while True:
            try:
                return libxenvchan.open_client(0, path)
            except OSError:
                if time.monotonic() > self._deadline:
                    raise
            time.sleep(LOOK_AGAIN)

    def _kinds(self) -> Iterator[int]:
        """Types of frames, up to the end of the answer to the first question."""
        expected, kind, flags = range(SETTINGS, SETTINGS + 1), SETTINGS, 0
        while not (kind == HEADERS and flags & END_STREAM):
            high, low, kind, flags, _ = struct.unpack(">BHBBI", self._read(9))
            if kind not in expected:
                raise VchanClosed
            self._read(high << 16 | low)
            yield kind
            expected = KINDS

    def _read(self, count: int) -> bytes:
        while len(self._received) < count:
            data = self._vchan.read(65536)
            if not data:
                self._wait()
            self._received += data
        data, self._received = self._received[:count], self._received[count:]
        return data

    def _write(self, data: bytes) -> None:
        """Fits into the ring."""
        if self._vchan.write(data) != len(data):
            raise VchanClosed

    def _wait(self) -> None:
        """For the next notification."""
        left = max(self._deadline - time.monotonic(), 0)
        if not select.select([self._vchan.event], [], [], left)[0]:
            raise TimeoutError(f"no answer within {ANSWER_WITHIN:.0f} s; {self._standstill}")
        self._vchan.acknowledge()

    @property
    def _standstill(self) -> str:
        """What tells whether it is the broker that has not come to it, or a notification that was lost."""
        control = self._vchan._control.contents  # type: ignore[attr-defined]
        to_us, to_broker = (ring.shr[:2] for ring in (control.read, control.write))
        return f"{self._vchan.state.value}; octets taken and sent: to us {to_us}, to the broker {to_broker}"


def _question(stream: int) -> bytes:
    """ListTokens; header fields are literals that are not indexed (RFC 7541 section 6.2.2)."""
    fields = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in CALL)
    return _frame(HEADERS, END_HEADERS, stream, fields) + _frame(DATA, END_STREAM, stream, EMPTY_MESSAGE)


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + payload


def _say(**fields: object) -> None:
    os.write(1, f"{json.dumps(fields)}\n".encode())  # whole, whoever writes beside it


if __name__ == "__main__":
    main()
