"""What a daemon tells systemd (sd_notify(3)): ready, stopping, alive. Nothing without `NOTIFY_SOCKET`."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send a state such as `READY=1`, `STOPPING=1`, `WATCHDOG=1` or `STATUS=...`, without waiting."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket, unix(7)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        notifier.setblocking(False)  # a service manager that hangs must not stop the event loop
        with contextlib.suppress(BlockingIOError):
            notifier.sendto(state.encode(), address)


def watchdog_interval() -> float | None:
    """Seconds between two signs of life: half of what systemd waits for (sd_watchdog_enabled(3)), or None."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6
