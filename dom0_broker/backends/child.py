"""The inside of a device process: answers calls, one thread a lane, until the broker is gone.

serve({"transmit": transmit, "open": open_reader})     # in the main thread; does not return
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from dom0_broker.backends.wire import (
    MAX_FRAME,
    Answer,
    Call,
    Event,
    Failure,
    WireBroken,
    decode_call,
    receive,
    send,
)
from dom0_broker.core_dumps import forbid_core_dumps
from vmtoken.errors import VmTokenError

log = logging.getLogger(__name__)

Handler = Callable[..., Any]

CONTROL_FD: Final = "VMTOKEN_CONTROL_FD"
"""Environment variable: the descriptor of the control socket."""


class Outlet:
    """Events to the broker, from any thread."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()

    def emit(self, value: Any) -> None:
        """Tell the broker something that it did not ask for; nobody listens any more is no error."""
        with self._lock:
            try:
                send(self._control, Event(value))
            except WireBroken:
                os._exit(0)


def outlet() -> Outlet:
    """The way to the broker. Once a process."""
    forbid_core_dumps()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a broker in a terminal: it ends us in order
    return Outlet(socket.socket(fileno=int(os.environ.pop(CONTROL_FD))))


def serve(events: Outlet, handlers: Mapping[str, Handler]) -> NoReturn:
    """Answer calls; a handler may block as long as it likes, its lane alone waits."""
    control = events._control
    while True:
        name, descriptors = _next_lane(control)
        if not name:
            os._exit(0)  # the broker closed us, or is gone; threads may hang in a library
        lane = socket.socket(fileno=descriptors[0])
        threading.Thread(target=_serve_lane, args=(lane, handlers), name=name.decode(), daemon=True).start()


def in_background(work: Callable[[], None], name: str) -> None:
    """Run `work` in a thread; should it break down, the process ends, and the broker starts another."""

    def run() -> None:
        try:
            work()
        except Exception as error:  # the edge of a thread, which nobody waits for
            print(f"{sys.argv[0]}: {name}: {type(error).__name__}", file=sys.stderr)  # noqa: T201
            os._exit(1)

    threading.Thread(target=run, name=name, daemon=True).start()


def _next_lane(control: socket.socket) -> tuple[bytes, list[int]]:
    """Name and descriptor; no name at the end, which is an error when events of ours were not read."""
    try:
        name, descriptors, _, _ = socket.recv_fds(control, MAX_FRAME, 1)
    except OSError:
        return b"", []
    return name, descriptors


def _serve_lane(lane: socket.socket, handlers: Mapping[str, Handler]) -> None:
    with lane:
        try:
            while True:
                call = decode_call(receive(lane))
                send(lane, _answer(call, handlers))
        except WireBroken:
            return  # the broker waits no longer


def _answer(call: Call, handlers: Mapping[str, Handler]) -> Answer:
    try:
        return Answer(handlers[call.method](*call.arguments))
    except VmTokenError as error:
        return Answer(failure=Failure.of(error))
    except Exception as error:  # the edge of the process: its parent hears of it
        print(f"{sys.argv[0]}: {call.method}: {type(error).__name__}", file=sys.stderr)  # noqa: T201
        return Answer(
            failure=Failure.of(VmTokenError(f"A device process broke down in {call.method}; see the log."))
        )
