from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from vmtoken.notify import notify, watchdog_interval


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket on which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")  # an abstract name of the kernel's choice, unix(7)
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + listener.getsockname()[1:].decode())
        yield listener


def test_state_reaches_systemd(systemd: socket.socket) -> None:
    notify("READY=1")
    assert systemd.recv(100) == b"READY=1"


@pytest.mark.timeout(10)
def test_systemd_that_does_not_read_holds_nobody_up(systemd: socket.socket) -> None:
    for _ in range(1000):
        notify("WATCHDOG=1")
    assert systemd.recv(100) == b"WATCHDOG=1"


def test_nothing_happens_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "process", "seconds"),
    [("30000000", None, 15.0), ("30000000", os.getpid(), 15.0), ("30000000", 1, None), (None, None, None)],
)
def test_watchdog_is_fed_twice_as_often_as_it_looks(
    monkeypatch: pytest.MonkeyPatch, microseconds: str | None, process: int | None, seconds: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", process)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))
    assert watchdog_interval() == seconds
