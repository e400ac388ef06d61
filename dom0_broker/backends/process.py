"""DeviceProcess: a device library in a process of its own.

    process = DeviceProcess("dom0_broker.backends.pcsc.child", ["--socket", path], name="pcscd")
    answer = process.call("reader 1", "transmit", handle, apdu, timeout=30.0)

libpcsclite knows one pcscd a process, PKCS#11 one login a module and process; both can hang for ever or
crash. So they never run in the broker: what breaks is killed and started again, and nobody else notices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dom0_broker.backends.child import CONTROL_FD
from dom0_broker.backends.wire import Call, WireBroken, decode_answer, decode_event, receive, send
from vmtoken.errors import TokenUnavailable

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
"""Seconds before a process that ended is started again: doubled each time that it lived only shortly."""

_SETTLED: Final = 10.0
"""Seconds that a process has to live to count as one that works."""

_DYING: Final = 5.0
"""Seconds from SIGKILL to the end; more means that the kernel holds it (a hung driver): we go on without."""


class NoAnswer(TokenUnavailable):
    """The deadline of a call passed; the call may still be under way in the process."""


class ProcessEnded(TokenUnavailable):
    """The process ended before it answered."""


class DeviceProcess:
    """Started by the first call, and again when it ended. Calls block, from any thread."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
        on_event: Callable[[Any], None] = lambda event: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`name` is for people; `on_event` and `on_end` are called in a thread of their own."""
        isolation = "-I" if sys.flags.isolated else "-P"  # as we run ourselves, and never from the directory
        self._command = [sys.executable, isolation, "-m", module, *arguments]
        self._name = name
        self._environment = environment or {}
        self._on_event = on_event
        self._on_end = on_end
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._pause = 0.0
        self._not_before = 0.0
        self._closed = False

    def call(self, lane: str, method: str, *arguments: Any, timeout: float) -> Any:
        """What the method answers. `timeout` in seconds covers waiting for the lane too.

        Raises the `VmTokenError` that the method raised, `ProcessEnded`, or `NoAnswer`: then the call may
        still be under way inside, in a lane that nobody uses any more, and the next call gets a new one.
        """
        deadline = time.monotonic() + timeout
        running = self._started()
        return running.lane(lane).call(Call(method, arguments), timeout, deadline)

    def start(self) -> None:
        """Start it for the sake of its events. Raises `TokenUnavailable`."""
        self._started()

    def kill(self) -> None:
        """End it at once, with all calls under way; the next call starts another."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.end()

    def give_up(self) -> None:
        """End it as one that broke down: the next start waits for its pause, as after a crash."""
        running = self._running
        if running is not None:
            running.process.kill()

    def close(self) -> None:
        """End it for good. May be called twice."""
        self._closed = True
        self.kill()

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        running = self._running
        return running.process.pid if running is not None else None

    def _started(self) -> _Running:
        with self._lock:
            if self._running is not None:
                return self._running
            now = time.monotonic()
            if self._closed:
                raise TokenUnavailable(f"The process for {self._name} is not used any more.")
            if now < self._not_before:
                left = round(self._not_before - now, 3)
                raise TokenUnavailable(
                    f"The process for {self._name} ended unexpectedly and is started again soon.",
                    retry_after=left,
                )
            try:
                self._running = _Running(self._command, self._name, self._environment)
            except OSError as error:
                raise _no_room(self._name, error) from error
            threading.Thread(
                target=self._listen, args=(self._running,), name=f"{self._name} events", daemon=True
            ).start()
            return self._running

    def _listen(self, running: _Running) -> None:
        """Pass events on until the process ends."""
        with contextlib.suppress(WireBroken):
            while True:
                event = decode_event(receive(running.control))
                try:
                    self._on_event(event.value)
                except Exception:  # the edge of a thread: the next event may be one that helps
                    log.exception("event of a device process", extra={"library": self._name})
        self._ended(running)
        running.control.close()

    def _ended(self, running: _Running) -> None:
        with self._lock:
            expected = self._running is not running
            if not expected:
                self._running = None
                lived = time.monotonic() - running.started
                self._pause = (
                    0.0 if lived > _SETTLED else min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                )
                self._not_before = time.monotonic() + self._pause
        running.end()
        if not expected:
            code = running.process.returncode
            log.error("device process ended", extra={"library": self._name, "exit_code": code})
            self._on_end()


class _Running:
    """One process, from its start to its end."""

    def __init__(self, command: Sequence[str], name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.started = time.monotonic()
        self.control, theirs = socket.socketpair()
        self._lanes: dict[str, _Lane] = {}
        self._lock = threading.Lock()
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.enter_context(self.control)
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment, CONTROL_FD: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            unless_started.pop_all()

    def lane(self, name: str) -> _Lane:
        """The lane of that name, opened when it is first used and after a call that took too long."""
        with self._lock:
            lane = self._lanes.get(name)
            if lane is None or lane.broken:
                self._lanes[name] = lane = self._new_lane(name)
            return lane

    def end(self) -> None:
        """Kill it and wait for its end; everybody who waits for an answer is told."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_DYING)
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)
        with self._lock:
            lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            lane.break_off()

    def _new_lane(self, name: str) -> _Lane:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _no_room(self.name, error) from error
        with theirs:
            try:
                socket.send_fds(self.control, [name.encode()], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise _gone(self.name) from error
        return _Lane(ours, self.name)


class _Lane:
    """One call at a time; a call that takes too long breaks the lane."""

    def __init__(self, sock: socket.socket, process: str) -> None:
        self._sock = sock
        self._process = process
        self._lock = threading.Lock()
        self.broken = False

    def call(self, call: Call, timeout: float, deadline: float) -> Any:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise NoAnswer(
                f"The process for {self._process} was busy for {timeout:g} seconds.", retry_after=timeout
            )
        try:
            answer = self._exchange(call, deadline)
        except TimeoutError:
            self.break_off()
            raise NoAnswer(
                f"The process for {self._process} has not answered for {timeout:g} seconds.",
                retry_after=timeout,
            ) from None
        except WireBroken as error:
            self.break_off()
            raise _gone(self._process) from error
        finally:
            if self.broken:
                self._sock.close()
            self._lock.release()
        if answer.failure is not None:
            raise answer.failure.error()
        return answer.value

    def break_off(self) -> None:
        """Whoever waits for an answer gets none."""
        self.broken = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._lock.acquire(blocking=False):  # else the one who waits closes it
            self._sock.close()
            self._lock.release()

    def _exchange(self, call: Call, deadline: float) -> Any:
        if self.broken:
            raise WireBroken("broken off")
        self._sock.settimeout(max(0.001, deadline - time.monotonic()))
        send(self._sock, call)
        return decode_answer(receive(self._sock, deadline))


def _no_room(process: str, error: OSError) -> TokenUnavailable:
    """No descriptor, process or memory is left."""
    return TokenUnavailable(
        f"The process for {process} cannot be started or reached ({error.strerror}); end what takes so "
        "much, or raise the limits of the broker's unit.",
        retry_after=1.0,
    )


def _gone(process: str) -> ProcessEnded:
    return ProcessEnded(
        f"The process for {process} ended in the middle; it is started again.", retry_after=0.5
    )
