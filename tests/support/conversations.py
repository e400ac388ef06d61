"""What a client says to each kind of test server, over any stream: what did you see, and send this back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

from tests.support.processes import Child

CHUNK = 16_000
"""Octets sent before they are read back: no buffer on the way fills up, and it fits one record."""


class Stream(Protocol):
    """An open TLS session on the client's side."""

    def send(self, data: bytes) -> None:
        """Send all of it."""
        ...

    def receive(self) -> bytes:
        """At least one octet; nothing after the server's close_notify."""
        ...


@dataclass(frozen=True)
class Seen:
    """A session as the server saw it."""

    version: str
    resumed: bool
    client: str
    """Common name of the client's certificate."""

    alpn: str | None = None
    server_name: str | None = None
    """Both None when the server does not say; some forget the name in a resumed session of TLS 1.2."""


class Conversation(Protocol):
    """How one kind of server is talked to."""

    def seen(self) -> Seen:
        """What the server saw. To be asked once, first."""
        ...

    def echo(self, data: bytes) -> None:
        """Send `data` (letters and digits) and check that the server sends the same back."""
        ...


class EndOfStream(AssertionError):
    """The server ended the session in the middle of a conversation."""


class Reading:
    """Reads exact amounts from a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    def exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        return self._take(count)

    def until(self, end: bytes) -> bytes:
        """Up to and with `end`."""
        while (position := self._buffer.find(end)) < 0:
            self._fill()
        return self._take(position + len(end))

    def _fill(self) -> None:
        data = self.stream.receive()
        if not data:
            raise EndOfStream(f"the stream ended after {bytes(self._buffer[-200:])!r}")
        self._buffer += data

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


class Greeting:
    """Our own servers: a line of JSON, then an echo."""

    def __init__(self, stream: Stream, _child: Child) -> None:
        self._reading = Reading(stream)

    def seen(self) -> Seen:
        report: dict[str, Any] = json.loads(self._reading.until(b"\n"))
        return Seen(
            version=_version(report["version"]),
            resumed=report["resumed"],
            client=report["client"],
            alpn=report["alpn"],
            server_name=report["server_name"],
        )

    def echo(self, data: bytes) -> None:
        for chunk in _chunks(data):
            self._reading.stream.send(chunk)
            assert self._reading.exactly(len(chunk)) == chunk


class ReversedLines:
    """`openssl s_server -rev`: each line comes back reversed; the rest is in its log."""

    def __init__(self, stream: Stream, child: Child) -> None:
        self._reading = Reading(stream)
        self._child = child

    def seen(self) -> Seen:
        self.echo(b"ready")
        log = self._child.log.rpartition("CONNECTION ESTABLISHED")[2]
        return Seen(
            version=_version(_found(r"Protocol version: (\S+)", log)),
            resumed="Signature type:" not in log,
            client=_found(r"Peer certificate: CN = (\S+)", log),
        )

    def echo(self, data: bytes) -> None:
        for chunk in _chunks(data):
            self._reading.stream.send(chunk + b"\n")
            assert self._reading.until(b"\n") == chunk[::-1] + b"\n"


class GnutlsEcho:
    """`gnutls-serv --echo`: commands in asterisks, an echo of other lines; what it saw is in its log."""

    def __init__(self, stream: Stream, child: Child) -> None:
        self._reading = Reading(stream)
        self._child = child

    def seen(self) -> Seen:
        self.echo(b"ready")
        log = self._child.log.rpartition("* Accepted connection")[2]
        alpn = re.search(r"Application protocol: (\S+)", log)
        return Seen(
            version=_version(_found(r"- Version: (\S+)", log)),
            resumed="*** This is a resumed session" in log,
            client=_found(r"Subject: CN=(\S+)", log),
            alpn=alpn[1] if alpn else "",
            server_name=_found(r"Given server name\[1\]: (\S+)", log),
        )

    def echo(self, data: bytes) -> None:
        for chunk in _chunks(data):
            self._reading.stream.send(chunk + b"\n")
            assert self._reading.until(b"\n") == chunk + b"\n"

    def rehandshake(self) -> None:
        """Have the server renegotiate (TLS 1.2) or update its keys (TLS 1.3)."""
        self._reading.stream.send(b"**REHANDSHAKE**\n")
        assert b"Success" in self._reading.until(b"\n")


class Http:
    """nginx: a page that says what it saw, and a place to put and fetch a file."""

    def __init__(self, stream: Stream, _child: Child) -> None:
        self._reading = Reading(stream)

    def seen(self) -> Seen:
        report: dict[str, str] = json.loads(self.request("GET", "/seen"))
        return Seen(
            version=_version(report["version"]),
            resumed=report["resumed"] == "r",
            client=report["client"].removeprefix("CN="),
            alpn=report["alpn"],
            server_name=report["server_name"],
        )

    def echo(self, data: bytes) -> None:
        self.request("PUT", "/bulk/file", data)
        assert self.request("GET", "/bulk/file") == data

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """One HTTP/1.1 request; gives the body of the answer."""
        head = f"{method} {path} HTTP/1.1\r\nHost: server.example\r\nContent-Length: {len(body)}\r\n\r\n"
        self._reading.stream.send(head.encode())
        for chunk in _chunks(body):
            self._reading.stream.send(chunk)
        answer = self._reading.until(b"\r\n\r\n").decode("latin-1")
        assert answer.startswith("HTTP/1.1 20"), answer
        length = re.search(r"(?i)^content-length: (\d+)", answer, re.MULTILINE)
        return self._reading.exactly(int(length[1]) if length else 0)


def _chunks(data: bytes) -> list[bytes]:
    return [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in {text!r}"
    return match[1]


def _version(spelled: str) -> str:
    """TLSv1.3, TLS 1.3 and TLS1.3 are the same."""
    return _found(r"TLSv?\s?(1\.\d)", spelled)
