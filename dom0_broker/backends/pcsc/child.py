"""The process that talks to one pcscd: its cards, and what comes and goes in its readers.

libpcsclite remembers its pcscd for the life of a process, and a card that hangs holds the thread that asked
it for ever. Each session has a context of its own, for one context carries one call at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

from dom0_broker.backends.child import Outlet, in_background, outlet, serve
from dom0_broker.backends.pcsc.messages import Connected, Reader, Returned, Snapshot
from dom0_broker.backends.pcsc.sentences import unavailable
from dom0_broker.backends.pcsc.winscard import (
    INVALID_PARAMETER,
    PNP_NOTIFICATION,
    Card,
    Context,
    PcscError,
    ReaderEvent,
    is_unaware,
)
from vmtoken.errors import TokenUnavailable

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
"""Seconds before pcscd is looked for again: doubled each time."""

_LOOK: Final = 5.0
"""Seconds after which readers are listed anew, should one have come between a list and the wait."""


class Sessions:
    """Cards that the broker has, by numbers that the broker gives. Each is used by one thread at a time."""

    def __init__(self, events: Outlet) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._open: dict[int, _Session] = {}
        self._asked: set[int] = set()
        """Sessions with a call under way."""

        self._given_up: set[int] = set()
        """For good: the call that was given up may only be read afterwards."""

    def connect(self, number: int, reader: str) -> Connected:
        """Have a card for ourselves alone."""
        with self._use(number, reader):
            session = _Session(reader)
            with self._lock:
                self._open[number] = session
            return Connected(session.atr, session.card.is_t0)

    def transmit(self, number: int, command: bytes) -> bytes:
        """One APDU."""
        session = self._session(number)
        with self._use(number, session.reader):
            return session.card.transmit(command)

    def reset(self, number: int) -> None:
        """Warm reset; a card that does not take that has its power cut."""
        session = self._session(number)
        with self._use(number, session.reader):
            try:
                session.card.reset()
            except PcscError:
                session.card.power_cycle()

    def disconnect(self, number: int, reset: bool) -> None:
        """Give a card back; it may be gone already."""
        with self._lock:
            session = self._open.pop(number, None)
        if session is not None:
            session.end(reset=reset)

    def give_up(self, number: int) -> None:
        """Nobody waits any more for the call under way: the session is over when that ever comes back."""
        with self._lock:
            self._given_up.add(number)
            is_asked = number in self._asked
        if not is_asked:
            self._end(number)

    def _session(self, number: int) -> _Session:
        with self._lock:
            session = self._open.get(number)
        if session is None:
            raise TokenUnavailable("The card was given back; it is opened again.")
        return session

    @contextlib.contextmanager
    def _use(self, number: int, reader: str) -> Iterator[None]:
        with self._lock:
            self._asked.add(number)
        try:
            yield
        except PcscError as error:
            raise unavailable(error.status, reader) from error
        finally:
            with self._lock:
                self._asked.discard(number)
                is_given_up = number in self._given_up
            if is_given_up:
                self._end(number)

    def _end(self, number: int) -> None:
        self.disconnect(number, reset=True)
        self._events.emit(Returned(number))


class _Session:
    """One card, on a context of its own."""

    def __init__(self, reader: str) -> None:
        self.reader = reader
        self._context = Context()  # releasing it gives its card back
        try:
            self.card: Card = self._context.connect(reader)
            self.atr = self.card.atr()
        except PcscError:
            self._context.release()
            raise

    def end(self, *, reset: bool) -> None:
        self.card.disconnect(reset=reset)
        self._context.release()


class Monitor:
    """Tells the broker of every reader and card that comes or goes, and of pcscd itself."""

    def __init__(self, events: Outlet) -> None:
        self._events = events
        self._last: Snapshot | None = None
        self._is_notified = True
        """Whether pcscd tells when readers come; else they are found by looking."""

    def run(self) -> None:
        """For ever; a pcscd that ends takes its context with it, and a new one is needed."""
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                with Context() as context:
                    self._watch(context)
            except PcscError as error:
                self._tell(Snapshot(problem=unavailable(error.status, "").message))
            lasted = time.monotonic() - began > _LONGEST_PAUSE
            pause = _FIRST_PAUSE if lasted else min(2 * pause, _LONGEST_PAUSE)
            time.sleep(pause)

    def _watch(self, context: Context) -> None:
        events: dict[str, ReaderEvent] = {}
        while True:
            names = context.readers()
            known = {name: events[name].state if name in events else is_unaware() for name in names}
            if self._is_notified and all(name in events for name in names):
                known[PNP_NOTIFICATION] = is_unaware()
            try:
                events = context.wait(known, _LOOK)
            except PcscError as error:
                if error.status != INVALID_PARAMETER or not self._is_notified:
                    raise
                self._is_notified = False  # as many readers as there can be leave no room for it
                continue
            events.pop(PNP_NOTIFICATION, None)
            self._tell(Snapshot(tuple(_reader(name, event) for name, event in events.items())))

    def _tell(self, snapshot: Snapshot) -> None:
        if snapshot != self._last:
            self._last = snapshot
            self._events.emit(snapshot)


def _reader(name: str, event: ReaderEvent) -> Reader:
    return Reader(name, event.changes, event.present, event.mute, event.in_use, event.atr)


def main() -> None:
    """Run until the broker is gone."""
    events = outlet()
    sessions = Sessions(events)
    in_background(Monitor(events).run, "monitor")
    serve(
        events,
        {
            "connect": sessions.connect,
            "transmit": sessions.transmit,
            "reset": sessions.reset,
            "disconnect": sessions.disconnect,
            "give_up": sessions.give_up,
        },
    )


if __name__ == "__main__":
    main()
