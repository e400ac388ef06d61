"""Commands in dom0 and domUs, asked from the host: run to their end, or started and watched.

Every call that waits has a time limit in seconds and raises when it is over: nothing here can hang.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xenlab import frames
from xenlab.errors import LabError
from xenlab.frames import Header

PATIENCE = float(os.environ.get("XEN_LAB_PATIENCE", "1"))
"""How many times longer than usual things may take: for a machine that is busy with something else."""

RUN_WITHIN = 90.0 * PATIENCE
"""Seconds for a command unless the caller says otherwise: ten times what slow ones take under emulation."""

PYTHON = "/usr/lib/vmtoken/bin/python3"
"""The Python of the installed product, in dom0 and domUs."""

_SHOWN = 4000
"""Characters of output in an error: enough for a traceback."""


class Unreachable(LabError):
    """The machine of a command did not answer, or went away while the command ran."""


class CommandFailed(LabError):
    """A command ended with an exit code that is not 0, or not in time, or without what was waited for."""

    def __init__(self, process: Process, what: str) -> None:
        output = process.output[-_SHOWN:]
        super().__init__(f"{process.machine}: {shlex.join(process.argv)} {what}; its output:\n{output}")
        self.process = process


@dataclass(frozen=True)
class Completed:
    """What a command that has ended said."""

    stdout: str
    stderr: str
    returncode: int
    """Exit code, or minus the number of the signal that ended it."""


class Channel:
    """The line between the host and the agent in dom0; commands of all machines share it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._processes: dict[str, Process] = {}
        self._greeted = threading.Event()
        self.is_closed = False
        threading.Thread(target=self._receive, name="lab channel", daemon=True).start()

    def greet(self, seconds: float) -> bool:
        """Whether dom0's agent answers in time; ends what an earlier host left running."""
        self._greeted.clear()
        self.send({"op": "hello", "id": self.new_id()})
        return self._greeted.wait(seconds)

    def send(self, header: Header, payload: bytes = b"") -> None:
        """Send one request."""
        try:
            with self._lock:
                self._socket.sendall(frames.encode(header, payload))
        except OSError as error:
            raise Unreachable(f"the lab is gone: {error.strerror}") from error

    def open(self, process: Process) -> None:
        """Give a process its answers from now on."""
        self._processes[process.id] = process

    def new_id(self) -> str:
        """An id that no process of this channel has."""
        return str(next(self._ids))

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self) -> None:
        try:
            while True:
                header, payload = frames.read(self._socket.recv)
                if header["event"] == "hello":
                    self._greeted.set()
                elif process := self._processes.get(header["id"]):
                    process.take(header, payload)
        except (EOFError, OSError):
            pass
        self.is_closed = True
        for process in list(self._processes.values()):
            process.take({"event": "lost", "why": "the lab is gone"}, b"")

    def forget(self, process: Process) -> None:
        """The process has ended."""
        self._processes.pop(process.id, None)


class Process:
    """A command that runs in a machine of the lab."""

    def __init__(self, machine: Machine, argv: Sequence[str], options: Header) -> None:
        self.machine = machine
        self.argv = list(argv)
        self.id = machine.channel.new_id()
        self._pid: int | None = None
        self._streams = {"stdout": bytearray(), "stderr": bytearray()}
        self._all = bytearray()
        self._code: int | None = None
        self._lost: str | None = None
        self._changed = threading.Condition()
        machine.channel.open(self)
        self._send({"op": "start", "argv": self.argv, **options})

    # What it said.

    @property
    def stdout(self) -> str:
        """Its standard output until now."""
        return self._streams["stdout"].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Its standard error until now."""
        return self._streams["stderr"].decode(errors="replace")

    @property
    def output(self) -> str:
        """Both streams until now, as they came."""
        return self._all.decode(errors="replace")

    @property
    def stdout_octets(self) -> bytes:
        """Its standard output until now, as it is."""
        return bytes(self._streams["stdout"])

    @property
    def pid(self) -> int:
        """Its process number in the machine; Unreachable when it could not be started."""
        self._wait_until(lambda: self._pid is not None or self.has_ended, RUN_WITHIN)
        self._raise_if_lost()
        assert self._pid is not None
        return self._pid

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, or its machine has."""
        return self._code is not None or self._lost is not None

    # What to do with it.

    def wait(self, seconds: float = RUN_WITHIN) -> int:
        """Wait for its end and give its exit code; a process that does not end is killed: CommandFailed."""
        if not self._wait_until(lambda: self.has_ended, seconds):
            self.signal(signal.SIGKILL)
            raise CommandFailed(self, f"did not end within {seconds:.0f} s")
        self._raise_if_lost()
        assert self._code is not None
        return self._code

    def wait_for(self, pattern: str, seconds: float = RUN_WITHIN) -> re.Match[str]:
        """Wait until its output, both streams, holds something that matches."""
        compiled = re.compile(pattern, re.MULTILINE)
        self._wait_until(lambda: self.has_ended or compiled.search(self.output), seconds)
        if match := compiled.search(self.output):
            return match
        self._raise_if_lost()
        ended = f"ended with exit code {self._code}" if self.has_ended else f"went on for {seconds:.0f} s"
        raise CommandFailed(self, f"{ended} and did not write {pattern!r}")

    def write(self, data: str | bytes) -> None:
        """Write to its standard input."""
        octets = data.encode() if isinstance(data, str) else data
        for start in range(0, len(octets), frames.LONGEST_PAYLOAD):
            self._send({"op": "input"}, octets[start : start + frames.LONGEST_PAYLOAD])

    def close_input(self) -> None:
        """End its standard input."""
        self._send({"op": "eof"})

    def signal(self, number: int) -> None:
        """Signal it and all that it started."""
        self._send({"op": "signal", "number": int(number)})

    def stop(self, seconds: float = 20) -> int:
        """End it: politely, then by force. Gives its exit code."""
        if not self.has_ended:
            self.signal(signal.SIGTERM)
            if not self._wait_until(lambda: self.has_ended, seconds):
                self.signal(signal.SIGKILL)
        return self.wait(seconds)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if not self.has_ended:
            self.signal(signal.SIGKILL)
            self.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.has_ended:
            self.signal(signal.SIGKILL)
            self._wait_until(lambda: self.has_ended, 10)

    # What comes from the machine.

    def take(self, header: Header, payload: bytes) -> None:
        """Take one answer of the agent."""
        with self._changed:
            match header["event"]:
                case "started":
                    self._pid = header["pid"]
                case "output":
                    self._streams[header["stream"]] += payload
                    self._all += payload
                case "exit":
                    self._code = header["code"]
                case "failed" | "lost":
                    self._lost = header["why"]
            self._changed.notify_all()
        if self.has_ended:
            self.machine.channel.forget(self)

    def _send(self, header: Header, payload: bytes = b"") -> None:
        self.machine.channel.send({**header, **self.machine.route, "id": self.id}, payload)

    def _wait_until(self, condition: Callable[[], object], seconds: float) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(condition, seconds))

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise Unreachable(f"{self.machine}: {shlex.join(self.argv)}: {self._lost}")


class Machine:
    """dom0, or a domU."""

    def __init__(self, channel: Channel, name: str, address: str | None = None) -> None:
        self.channel = channel
        self.name = name
        self.address = address
        """IPv4 address on the bridge of the lab; None for dom0."""

    def __str__(self) -> str:
        return self.name

    @property
    def route(self) -> Header:
        """What a request for this machine says about the way there."""
        return {"to": self.address} if self.address else {}

    def run(
        self,
        argv: Sequence[str],
        *,
        seconds: float = RUN_WITHIN,
        check: bool = True,
        stdin: str | bytes = b"",
        environment: Mapping[str, str] | None = None,
        directory: str = "/root",
    ) -> Completed:
        """Run a command to its end; with `check` an exit code that is not 0 raises CommandFailed."""
        process = self.start(argv, environment=environment, directory=directory)
        process.write(stdin)
        process.close_input()
        code = process.wait(seconds)
        if check and code != 0:
            raise CommandFailed(process, f"ended with exit code {code}")
        return Completed(process.stdout, process.stderr, code)

    def start(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: str = "/root",
    ) -> Process:
        """Start a command and watch it; use it in `with`, which ends it."""
        return Process(self, argv, {"environment": dict(environment or {}), "directory": directory})

    def sh(self, script: str, *, seconds: float = RUN_WITHIN, check: bool = True) -> str:
        """Run a shell script and give what it printed."""
        return self.run(["sh", "-euc", script], seconds=seconds, check=check).stdout

    def python(self, source: str, *arguments: str, seconds: float = RUN_WITHIN) -> str:
        """Run Python source with the installed product on its path, and give what it printed."""
        return self.run([PYTHON, "-c", source, *arguments], seconds=seconds).stdout

    def start_python(self, source: str, *arguments: str, directory: str = "/root") -> Process:
        """Start Python source with the installed product on its path; its output is not buffered."""
        return self.start([PYTHON, "-u", "-c", source, *arguments], directory=directory)

    def write(self, path: str, data: str | bytes, mode: int = 0o644) -> None:
        """Make a file."""
        self.run(["sh", "-euc", 'cat > "$0"; chmod "$1" "$0"', path, f"{mode:o}"], stdin=data)

    def read(self, path: str) -> bytes:
        """A file's content."""
        process = self.start(["cat", path])
        if process.wait() != 0:
            raise CommandFailed(process, "failed")
        return process.stdout_octets

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file or a directory of the host to a path in the machine."""
        rename = f"s,^{re.escape(source.name)},{Path(target).name},"
        tar = ["tar", "--create", "--directory", str(source.parent), "--transform", rename, source.name]
        packed = subprocess.run(tar, capture_output=True, check=True, timeout=RUN_WITHIN).stdout
        self.run(["tar", "--extract", "--directory", str(Path(target).parent)], stdin=packed, seconds=120)

    def wait_until(self, script: str, seconds: float = RUN_WITHIN) -> None:
        """Run a shell script again and again until its exit code is 0."""
        waiting = self.start(["sh", "-c", f"until {{ {script}\n}} do sleep 0.3; done"])
        try:
            waiting.wait(seconds)
        except CommandFailed as error:
            raise LabError(f"{self}: {script!r} did not become true within {seconds:.0f} s") from error
