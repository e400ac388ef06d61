"""Runs commands for the host: in dom0 over virtio-serial ports, in a domU over TCP from dom0.

The frames are described in frames.py, which is installed beside this file. Needs nothing but Python, and
nothing of the product: it must work when the product does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import frames
from frames import Header

PORT = 7
"""TCP port of the agent in a domU."""

_CONNECT_WITHIN = 3.0
"""Seconds for a TCP connection to a domU; the host tries again as long as it wants."""

_DRAIN = 1.0
"""Seconds for the last output of a process that has ended: a daemon that it left may hold the pipe."""

Send = Callable[..., None]


class Link:
    """A peer that asks for processes: the host, or dom0 on behalf of the host."""

    def __init__(self, receive: Callable[[int], bytes], send: Callable[[bytes], object]) -> None:
        self._receive = receive
        self._send = send
        self._lock = threading.Lock()
        self._processes: dict[str, Process] = {}
        self._domains: dict[str, Domain] = {}

    def send(self, header: Header, payload: bytes = b"") -> None:
        """Send one frame whole; a peer that is gone is not told."""
        with self._lock, contextlib.suppress(OSError):
            self._send(frames.encode(header, payload))

    def serve(self) -> None:
        """Do what the peer asks until it is gone, then end what it left."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._handle(*frames.read(self._receive))
        self._reset()

    def _handle(self, header: Header, payload: bytes) -> None:
        if "to" in header:
            self._forward(header.pop("to"), header, payload)
        elif header["op"] == "hello":
            self._reset()
            self.send({"event": "hello", "id": header["id"]})
        elif header["op"] == "start":
            self._start(header)
        elif process := self._processes.get(header["id"]):
            process.handle(header, payload)

    def _start(self, header: Header) -> None:
        self._processes = {
            name: process for name, process in self._processes.items() if not process.has_ended
        }
        try:
            self._processes[header["id"]] = Process(header, self.send)
        except OSError as error:
            why = f"{header['argv'][0]}: {error.strerror}"
            self.send({"event": "failed", "id": header["id"], "why": why})

    def _forward(self, address: str, header: Header, payload: bytes) -> None:
        domain = self._domains.pop(address, None)
        if header["op"] == "forget" or (domain and domain.is_gone):
            if domain:
                domain.close()
            domain = None
        if header["op"] != "forget":
            self._domains[address] = domain or Domain(address, self.send)
            self._domains[address].send(header, payload)

    def _reset(self) -> None:
        for process in self._processes.values():
            process.signal(signal.SIGKILL)
        for domain in self._domains.values():
            domain.close()
        self._processes.clear()
        self._domains.clear()


class Process:
    """A process that runs for a peer, in a session of its own."""

    def __init__(self, header: Header, send: Send) -> None:
        self._id = header["id"]
        self._send = send
        self._process = subprocess.Popen(
            header["argv"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **header.get("environment", {})},
            cwd=header.get("directory", "/root"),
            start_new_session=True,
        )
        send({"event": "started", "id": self._id, "pid": self._process.pid})
        threading.Thread(target=self._wait, daemon=True).start()

    def handle(self, header: Header, payload: bytes) -> None:
        """Do one request that is about this process."""
        assert self._process.stdin
        match header["op"]:
            case "input":
                with contextlib.suppress(BrokenPipeError, ValueError):
                    self._process.stdin.write(payload)
                    self._process.stdin.flush()
            case "eof":
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
            case "signal":
                self.signal(header["number"])

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be asked of it any more."""
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        """Signal the process and all that it started, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if not self.has_ended:
                os.killpg(self._process.pid, number)

    def _wait(self) -> None:
        assert self._process.stdin
        streams = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        pumps = [threading.Thread(target=self._pump, args=each, daemon=True) for each in streams.items()]
        for pump in pumps:
            pump.start()
        code = self._process.wait()
        for pump in pumps:
            pump.join(_DRAIN)
        self._send({"event": "exit", "id": self._id, "code": code})
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _pump(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            while data := os.read(stream.fileno(), frames.LONGEST_PAYLOAD):
                self._send({"event": "output", "id": self._id, "stream": name}, data)


class Domain:
    """The agent of a domU, as dom0 reaches it; its frames go to the host as they are."""

    def __init__(self, address: str, answer: Send) -> None:
        self._answer = answer
        self._open: set[str] = set()
        self.is_gone = False
        self._socket = socket.socket()
        self._socket.settimeout(_CONNECT_WITHIN)
        self._error = self._socket.connect_ex((address, PORT))
        self._socket.settimeout(None)
        if not self._error:
            threading.Thread(target=self._relay, daemon=True).start()

    def send(self, header: Header, payload: bytes) -> None:
        """Pass a request on, or answer that it cannot be."""
        self._open.add(header["id"])
        try:
            if self._error:
                raise OSError(self._error, os.strerror(self._error))
            self._socket.sendall(frames.encode(header, payload))
        except OSError as error:
            self._lost(error.strerror or str(error))

    def close(self) -> None:
        """Forget the domain; what still runs there is answered as lost."""
        self._lost("the domain is gone")
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _relay(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                header, payload = frames.read(self._socket.recv)
                if header["event"] in ("exit", "failed"):
                    self._open.discard(header["id"])
                self._answer(header, payload)
        self._lost("connection closed")

    def _lost(self, why: str) -> None:
        self.is_gone = True
        while self._open:
            self._answer({"event": "lost", "id": self._open.pop(), "why": why})


def serve_ports(paths: list[Path]) -> None:
    """Serve the host on each virtio-serial port, for ever."""
    threads = [threading.Thread(target=_serve_port, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve_port(path: Path) -> None:
    port = os.open(path, os.O_RDWR)

    def receive(length: int) -> bytes:
        while not (data := os.read(port, length)):
            time.sleep(0.1)  # no host on the other end: the port is at its end until one comes
        return data

    Link(receive, lambda data: _write(port, data)).serve()


def _write(port: int, data: bytes) -> None:
    while data:
        data = data[os.write(port, data) :]


def serve_tcp() -> None:
    """Serve dom0, for ever."""
    with socket.create_server(("", PORT)) as listener:
        while True:
            connection, _ = listener.accept()
            link = Link(connection.recv, connection.sendall)
            threading.Thread(target=link.serve, daemon=True).start()


if __name__ == "__main__":
    ports = sorted(Path("/dev").glob("vport*"))  # a domU has none
    serve_ports(ports) if ports else serve_tcp()
