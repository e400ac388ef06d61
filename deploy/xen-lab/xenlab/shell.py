"""A person's shell in dom0 or in a domU, over the second line to dom0's agent."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from xenlab.errors import LabError
from xenlab.frames import LONGEST_PAYLOAD, Header
from xenlab.images import BUILD
from xenlab.lab import Lab
from xenlab.remote import Channel, Machine, Process

RUNNING = BUILD / "running"
"""A link to the sockets of the lab that runs for people, as long as it does."""

LIFETIME = 8 * 3600.0
"""Seconds that a lab for people lives at most: a working day."""


@contextmanager
def offered(lab: Lab) -> Iterator[None]:
    """Let people attach to the lab."""
    RUNNING.unlink(missing_ok=True)
    RUNNING.symlink_to(lab.sockets)
    try:
        yield
    finally:
        RUNNING.unlink(missing_ok=True)


def is_offered() -> bool:
    """Whether a lab runs that people can attach to."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(RUNNING / "shell")) == 0


def attach(name: str) -> int:
    """Run an interactive shell in a machine until the person leaves it; gives its exit code."""
    channel = Channel(RUNNING / "shell")
    try:
        if not channel.greet(seconds=10):
            raise LabError("the lab does not answer")
        machine = _find(Machine(channel, "dom0"), name)
        size = shutil.get_terminal_size()
        script = f"stty rows {size.lines} cols {size.columns}; cd; exec bash --login"
        process = _Terminal(machine, ["script", "--quiet", "--flush", "--command", script, "/dev/null"], {
            "environment": {"TERM": os.environ.get("TERM", "dumb"), "PS1": rf"\u@{name}:\w\$ "},
        })  # fmt: skip
        with _raw_terminal():
            threading.Thread(target=_type, args=(process,), daemon=True).start()
            return process.wait(LIFETIME)
    finally:
        channel.close()


def _find(dom0: Machine, name: str) -> Machine:
    if name == "dom0":
        return dom0
    config = dom0.run(["cat", f"/etc/xen/{name}.cfg"], check=False).stdout
    if match := re.search(r"xenlab\.address=([0-9.]+)", config):
        return Machine(dom0.channel, name, match[1])
    raise LabError(f"the lab has no domain {name}")


class _Terminal(Process):
    """A process whose output goes to the person's terminal."""

    def take(self, header: Header, payload: bytes) -> None:
        if header["event"] == "output":
            sys.stdout.buffer.write(payload)
            sys.stdout.buffer.flush()
        else:
            super().take(header, payload)


def _type(process: Process) -> None:
    while data := os.read(sys.stdin.fileno(), LONGEST_PAYLOAD):
        process.write(data)
    process.close_input()


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Pass every key on, also Ctrl-C, while the block lasts."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
