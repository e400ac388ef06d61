"""A pcscd of our own with virtual readers, beside whatever else runs on the machine.

    with pcscd(directory, readers=2) as daemon:
        with daemon.readers[0].holding(card, atr):
            subprocess.run(["opensc-tool", "--atr"], env={**os.environ, **daemon.environment})

The client library remembers its pcscd for the life of a process: a process that is to talk to this one
needs `environment` from its start.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dom0_broker.backends.software.vpcd import VirtualCard
from tests.support.directories import short_directory
from tests.support.processes import Child
from tests.support.tools import lacks
from vmtoken.iso7816.atr import AnswerToReset
from vmtoken.iso7816.connection import CardConnection

PCSCD = Path("/usr/sbin/pcscd")
VPCD = Path("/usr/lib/pcsc/drivers/serial/libifdvpcd.so")
MAX_READERS = 16
"""PCSCLITE_MAX_READERS_CONTEXTS of Debian's pcscd."""

_SLOTS = 2
"""Debian's vpcd makes two readers of one entry, on neighbouring ports."""

_PORTS = range(20_000, 32_000, _SLOTS)
"""Below the ephemeral ones, which the kernel gives away between our look and pcscd's."""

_READY_WITHIN = 10.0
_LISTENING_FD = 3
"""SD_LISTEN_FDS_START, sd_listen_fds(3)."""

_ACTIVATED = f"""
import os, sys
os.dup2(int(sys.argv[1]), {_LISTENING_FD}, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""

_LIST_READERS = """
from smartcard.scard import *
status, context = SCardEstablishContext(SCARD_SCOPE_SYSTEM)
if status == SCARD_S_SUCCESS:
    print("\\n".join(SCardListReaders(context, [])[1]))
"""

_READER_CONF = """\
FRIENDLYNAME "{name}"
DEVICENAME /dev/null:0x{port:04X}
LIBPATH {library}
CHANNELID 0x{port:04X}
"""


@dataclass(frozen=True)
class VirtualReader:
    """A slot of a virtual reader."""

    name: str
    """As PC/SC shows it."""

    port: int

    @contextlib.contextmanager
    def holding(
        self, card: CardConnection, atr: bytes = AnswerToReset.of_card().encode()
    ) -> Iterator[VirtualCard]:
        """A card in the slot as long as the block lasts, unless it is removed before."""
        virtual = VirtualCard(card, atr, self.port)
        powered = threading.Event()
        thread = threading.Thread(
            target=virtual.play, args=(powered.set,), name=f"card in {self.name}", daemon=True
        )
        thread.start()
        try:
            assert powered.wait(_READY_WITHIN), f"{self.name} has not powered its card up"
            yield virtual
        finally:
            virtual.remove()
            thread.join(_READY_WITHIN)


class Pcscd:
    """A private pcscd, started as by systemd's socket activation, on a socket of our own."""

    def __init__(self, directory: Path, readers: int) -> None:
        assert 0 < readers <= MAX_READERS
        self._directory = directory
        self._socket_path = short_directory() / "pcscd.comm"
        self._configuration = directory / "readers.d"
        self._wanted = readers
        self._starts = 0
        self._is_new = True
        self._child: Child | None = None
        self._socket: socket.socket | None = None
        self.readers: list[VirtualReader] = []

    @property
    def socket_path(self) -> Path:
        return self._socket_path

    @property
    def environment(self) -> Mapping[str, str]:
        """For a process that is to talk to this pcscd."""
        return {"PCSCLITE_CSOCK_NAME": str(self._socket_path)}

    def start(self) -> None:
        """Start it, or start it again with the same readers; wait until it has them all."""
        for _ in range(3):
            if not self.readers:
                self._choose_readers()
            self._run()
            if self._has_all_readers():
                self._is_new = False
                return
            self.stop()
            if self._is_new:
                self.readers = []  # somebody was faster at a port
        raise AssertionError(f"pcscd has not all its readers; its output:\n{self.log}")

    def stop(self) -> None:
        """End it as systemd does: SIGTERM, and no socket left to connect to."""
        if self._socket is not None:
            self._socket.close()
            self._socket_path.unlink(missing_ok=True)
            self._socket = None
        if self._child is not None:
            self._child.stop()
            self._child = None

    def kill(self) -> None:
        """End it as a crash does."""
        assert self._child is not None
        self._child.kill()
        self.stop()

    @property
    def log(self) -> str:
        path = self._log_path
        return path.read_text(errors="replace") if path.exists() else ""

    def reader_names(self) -> list[str]:
        """As a client of its own sees them."""
        command = [sys.executable, "-c", _LIST_READERS]
        environment = {**os.environ, **self.environment}
        listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return listed.stdout.splitlines()

    @property
    def _log_path(self) -> Path:
        return self._directory / f"pcscd-{self._starts}.log"

    def _run(self) -> None:
        self._starts += 1
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._socket_path))
        self._socket.listen(64)
        number = self._socket.fileno()
        command = [sys.executable, "-c", _ACTIVATED, str(number), str(PCSCD), "-f", "-c", self._configuration]
        self._child = Child(command, self._log_path, pass_fds=[number])

    def _choose_readers(self) -> None:
        shutil.rmtree(self._configuration, ignore_errors=True)
        self._configuration.mkdir()
        for entry in range(-(-self._wanted // _SLOTS)):
            name, port = f"Virtual {entry:02}", _free_ports()
            library = self._directory / f"libifdvpcd-{entry}.so"
            shutil.copy(VPCD, library)  # two entries with one library would share their cards
            text = _READER_CONF.format(name=name, port=port, library=library)
            (self._configuration / f"{entry:02}").write_text(text)
            self.readers += [VirtualReader(f"{name} 00 {slot:02}", port + slot) for slot in range(_SLOTS)]
        del self.readers[self._wanted :]

    def _has_all_readers(self) -> bool:
        deadline = time.monotonic() + _READY_WITHIN
        wanted = {reader.name for reader in self.readers}
        while not wanted <= set(self.reader_names()):
            assert self._child is not None
            if self._child.has_ended or time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@contextlib.contextmanager
def pcscd(directory: Path, readers: int = 2) -> Iterator[Pcscd]:
    """A pcscd with so many readers, as long as the block lasts; skips where there is none, fails in CI."""
    require_pcscd()
    daemon = Pcscd(directory, readers)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


def require_pcscd() -> None:
    """pcscd, vpcd and pyscard are needed here: without them the test is skipped, in CI it fails."""
    missing = [str(path) for path in (PCSCD, VPCD) if not path.exists()]
    try:
        import smartcard  # noqa: F401 - whether it is there
    except ImportError:
        missing.append("pyscard")
    if missing:
        lacks(", ".join(missing))


def _free_ports() -> int:
    """The first of `_SLOTS` free ports."""
    while True:
        first = random.choice(_PORTS)
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in range(first, first + _SLOTS):
                probes.enter_context(socket.create_server(("0.0.0.0", port)))
            return first
