"""Between two ends of a connection: one interrupts it at a chosen octet, one writes down what passes."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_READ = 65_536
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close() sends a reset."""


@contextmanager
def interrupting_proxy(
    target: int, after: int, interrupt: Callable[[], bool], *, reset: bool = False
) -> Iterator[int]:
    """A TCP port that leads to `target`, for one connection; gives the port.

    Once `after` octets from the server have passed, `interrupt` is called; when it says no, the
    connection ends there, with a reset if asked for.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_proxy, args=(listener, target, after, interrupt, reset))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _proxy(
    listener: socket.socket, target: int, after: int, interrupt: Callable[[], bool], reset: bool
) -> None:
    try:
        client, _ = listener.accept()
    except OSError:  # nobody came
        return
    with client, socket.create_connection(("127.0.0.1", target)) as server:
        with contextlib.suppress(OSError):
            _splice(client, server, after, interrupt)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _splice(client: socket.socket, server: socket.socket, after: int, interrupt: Callable[[], bool]) -> None:
    left: int | None = after
    while True:
        if left == 0:
            left = None
            if not interrupt():
                return
        readable, _, _ = select.select([client, server], [], [])
        for source, sink in ((client, server), (server, client)):
            if source not in readable:
                continue
            limit = _READ if source is client or left is None else left
            data = source.recv(min(_READ, limit))
            if not data:
                return
            sink.sendall(data)
            if source is server and left is not None:
                left -= len(data)


class Recording:
    """All octets that crossed a link, in both directions, and what they hold."""

    def __init__(self) -> None:
        self.upwards = bytearray()
        self.downwards = bytearray()

    def holds(self, secret: bytes) -> bool:
        return secret in self.upwards or secret in self.downwards

    def __len__(self) -> int:
        return len(self.upwards) + len(self.downwards)


@contextmanager
def recording_relay(listen: Path, target: Path) -> Iterator[Recording]:
    """A Unix socket at `listen` that leads to the one at `target` and keeps a copy of everything."""
    recording = Recording()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(listen))
        listener.listen()
        connections: list[socket.socket] = []
        accepting = threading.Thread(target=_relay, args=(listener, target, recording, connections))
        accepting.start()
        try:
            yield recording
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            accepting.join()


def _relay(
    listener: socket.socket, target: Path, recording: Recording, connections: list[socket.socket]
) -> None:
    """Accept until the listener is shut down; two threads a connection."""
    pumps: list[threading.Thread] = []
    while True:
        try:
            below, _ = listener.accept()
        except OSError:
            break
        above = socket.socket(socket.AF_UNIX)
        connections += [below, above]
        try:
            above.connect(str(target))
        except OSError:
            below.close()
            continue
        pumps.append(_pump(below, above, recording.upwards.extend))
        pumps.append(_pump(above, below, recording.downwards.extend))
    for pump in pumps:
        pump.join()
    for connection in connections:
        connection.close()


def _pump(source: socket.socket, sink: socket.socket, keep: Callable[[bytes], object]) -> threading.Thread:
    def run() -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_READ):
                keep(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=run)
    thread.start()
    return thread
