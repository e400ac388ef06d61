"""Pcscd: one pcscd, its readers and the cards that we have there, by way of a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from dom0_broker.backends.pcsc.connection import PcscConnection
from dom0_broker.backends.pcsc.messages import Returned, Snapshot, decode_connected, decode_event
from dom0_broker.backends.pcsc.settings import PcscdSettings
from dom0_broker.backends.process import DeviceProcess, NoAnswer
from vmtoken.errors import TokenUnavailable, VmTokenError

log = logging.getLogger(__name__)

_GIVE_BACK: Final = 5.0
"""Seconds for a card to be given back, or reset; a card that hangs is left to itself then."""

_INS: Final = 1
_GENERATE_KEY_PAIR: Final = frozenset((0x46, 0x47))
"""INS of ISO/IEC 7816-8 section 11.2."""

_KEY_PAIR: Final = 120.0
"""Seconds for a key pair at least: a slow card looks for the primes of an RSA key for more than a minute."""

_CONTROL: Final = "control"
"""Lane for calls that never block."""

_RESET_COMMAND: Final = 30.0
"""Seconds for the operator's own reset command."""

_AFTER_RESET: Final = 10.0
"""Seconds for a call that hung to come back after a reset."""


@dataclass(frozen=True, slots=True)
class _Hung:
    """A call that was given up."""

    reader: str
    seconds: float


class Pcscd:
    """Thread-safe; calls block, and no longer than they may."""

    def __init__(self, settings: PcscdSettings, changed: Callable[[Pcscd], None]) -> None:
        """`changed` is called in a thread of its own whenever `snapshot` or `hung` changed."""
        self.settings = settings
        self._changed = changed
        self._numbers = itertools.count(1)
        self._lock = threading.Condition()
        self._connections: dict[int, PcscConnection] = {}
        self._hung: dict[int, _Hung] = {}
        """By session."""

        self._turns: dict[str, threading.Lock] = {}
        self._closed = threading.Event()
        self.snapshot: Snapshot | None = None
        """None until pcscd was looked for the first time."""

        self._process = DeviceProcess(
            "dom0_broker.backends.pcsc.child",
            name=settings.name,
            environment={"PCSCLITE_CSOCK_NAME": settings.socket} if settings.socket else {},
            on_event=self._happened,
            on_end=self._ended,
        )

    def start(self) -> None:
        """Begin to look at the readers."""
        try:
            self._process.start()
        except TokenUnavailable as error:
            self._replace(Snapshot(problem=error.message))
            self._revive_later()

    def close(self) -> None:
        """Give everything back. May be called twice."""
        self._closed.set()
        self._process.close()

    @contextlib.contextmanager
    def turn(self, reader: str) -> Iterator[None]:
        """Wait until none of us looks at the card in a reader. Raises `TokenUnavailable`."""
        with self._lock:
            turn = self._turns.setdefault(reader, threading.Lock())
        if not turn.acquire(timeout=self.settings.timeout):
            raise TokenUnavailable(
                f"The card in the reader '{reader}' is still being looked at; try again.", retry_after=1.0
            )
        try:
            yield
        finally:
            turn.release()

    def connect(self, reader: str, timeout: float | None = None) -> PcscConnection:
        """A card for ourselves alone. Raises `TokenUnavailable`, at once for a reader that hangs.

        To be called in the reader's `turn`: two of us would take each other for another program.
        """
        problem = self.hung(reader)
        if problem is not None:
            raise problem
        session = next(self._numbers)
        answer = self._ask(reader, session, "connect", session, reader, timeout=timeout)
        connection = PcscConnection(self, session, reader, decode_connected(answer))
        with self._lock:
            self._connections[session] = connection
        return connection

    def connection(self, reader: str) -> PcscConnection | None:
        """The card that we have in a reader."""
        with self._lock:
            found = (each for each in self._connections.values() if each.reader == reader)
            return next(found, None)

    def hung(self, reader: str) -> TokenUnavailable | None:
        """Why nothing is asked of a reader; None when it is well."""
        with self._lock:
            hung = next((each for each in self._hung.values() if each.reader == reader), None)
        return None if hung is None else _hung_error(hung)

    def transmit(self, session: int, reader: str, command: bytes) -> bytes:
        """See `SessionCalls`."""
        timeout = self.settings.timeout
        if command[_INS] in _GENERATE_KEY_PAIR:
            timeout = max(timeout, _KEY_PAIR)
        answer: bytes = self._ask(reader, session, "transmit", session, command, timeout=timeout)
        return answer

    def reset(self, session: int, reader: str) -> None:
        """See `SessionCalls`."""
        self._ask(reader, session, "reset", session, timeout=_GIVE_BACK)

    def disconnect(self, session: int, reader: str, *, reset: bool) -> None:
        """See `SessionCalls`."""
        with self._lock:
            is_hung = session in self._hung
        try:
            if not is_hung:  # else it is given back when the call ever returns
                self._ask(reader, session, "disconnect", session, reset, timeout=_GIVE_BACK)
        except TokenUnavailable as error:
            log.info("card was not given back", extra={"reader": reader, "because": error.message})
        finally:
            with self._lock:
                self._connections.pop(session, None)

    def run_reset_command(self, reader: str) -> None:
        """The operator's way to get a reader going that hangs. Raises `TokenUnavailable`."""
        command = self.settings.reset_command
        if not command:
            raise TokenUnavailable(
                f"The card in the reader '{reader}' does not react to a reset; pull it out and put it in "
                "again, or give its pcscd a 'reset_command' in broker.toml."
            )
        try:
            subprocess.run(  # noqa: S603 - the operator's own words, no shell
                command, check=True, capture_output=True, timeout=_RESET_COMMAND, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise TokenUnavailable(
                f"The reset_command of {self.settings.name} failed ({_why(error)}): correct that option, "
                f"or pull the card out of the reader '{reader}' and put it in again."
            ) from error
        if not self._wait_until_well(reader):
            raise TokenUnavailable(
                f"The card in the reader '{reader}' still hangs after the reset_command; pull it out and "
                "put it in again."
            )

    def _ask(
        self, reader: str, session: int, method: str, *arguments: Any, timeout: float | None = None
    ) -> Any:
        """Each reader has a lane of its own."""
        seconds = timeout or self.settings.timeout
        try:
            return self._process.call(reader, method, *arguments, timeout=seconds)
        except NoAnswer:
            hung = _Hung(reader, seconds)
            self._quarantine(session, hung)
            raise _hung_error(hung) from None

    def _quarantine(self, session: int, hung: _Hung) -> None:
        """Nothing is asked of the reader until what hangs in it has come back."""
        log.error("card does not answer, its reader is set aside", extra={"reader": hung.reader})
        with self._lock:
            self._hung[session] = hung
        try:
            self._process.call(_CONTROL, "give_up", session, timeout=_GIVE_BACK)
        except TokenUnavailable:
            self._process.kill()  # not even that works: the process itself hangs
            self._ended()
        self._changed(self)

    def _wait_until_well(self, reader: str) -> bool:
        with self._lock:
            return self._lock.wait_for(
                lambda: all(each.reader != reader for each in self._hung.values()), _AFTER_RESET
            )

    def _happened(self, value: Any) -> None:
        match decode_event(value):
            case Snapshot() as snapshot:
                self._replace(snapshot)
            case Returned(session):
                with self._lock:
                    hung = self._hung.pop(session, None)
                    self._lock.notify_all()
                if hung is not None:
                    log.warning("card that hung is free again", extra={"reader": hung.reader})
                    self._changed(self)

    def _replace(self, snapshot: Snapshot) -> None:
        """The readers as they are now: cards that went take their connections with them."""
        present = {each.name for each in snapshot.readers if each.present}
        with self._lock:
            before, self.snapshot = self.snapshot, snapshot
            gone = [each for each in self._connections.values() if each.reader not in present]
        if snapshot.problem and (before is None or not before.problem):
            log.error(
                "pcscd is not there", extra={"library": self.settings.name, "because": snapshot.problem}
            )
        for connection in gone:
            connection.fail(self._gone(connection.reader, snapshot))
        self._changed(self)

    def _gone(self, reader: str, snapshot: Snapshot) -> VmTokenError:
        return TokenUnavailable(
            snapshot.problem or f"There is no card in the reader '{reader}' any more; put it in again."
        )

    def _ended(self) -> None:
        """The process is gone, and all that it held."""
        with self._lock:
            self._hung.clear()
            self._lock.notify_all()
        self._replace(Snapshot(problem=f"The process for {self.settings.name} ended; it is started again."))
        self._revive_later()

    def _revive_later(self) -> None:
        threading.Thread(target=self._revive, name=f"{self.settings.name} revival", daemon=True).start()

    def _revive(self) -> None:
        while not self._closed.is_set():
            try:
                self._process.start()
            except TokenUnavailable as error:
                self._closed.wait(error.retry_after or 1.0)
            else:
                return


def _hung_error(hung: _Hung) -> TokenUnavailable:
    return TokenUnavailable(
        f"The card in the reader '{hung.reader}' has not answered for {hung.seconds:g} seconds; it is left "
        "alone until it is pulled out, or until 'vmtokenctl token reset' helps.",
        retry_after=hung.seconds,
    )


def _why(error: Exception) -> str:
    match error:
        case subprocess.CalledProcessError():
            return f"exit code {error.returncode}"
        case subprocess.TimeoutExpired():
            return f"not done after {_RESET_COMMAND:g} seconds"
        case OSError():
            return error.strerror or type(error).__name__
    return type(error).__name__
