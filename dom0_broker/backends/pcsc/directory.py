"""CardDirectory: which card is in which reader, over all pcscd."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dom0_broker.backends.pcsc.daemon import Pcscd
from dom0_broker.backends.pcsc.locator import CardLocator
from dom0_broker.backends.pcsc.messages import Reader
from dom0_broker.backends.pcsc.sentences import UNRESPONSIVE, unavailable
from dom0_broker.backends.pcsc.sharing import SharedConnection
from vmtoken.cards.discovery import (
    ApplicationKind,
    CardApplication,
    CardKey,
    application_on,
    applications_on,
)
from vmtoken.cards.piv_codes import Slot
from vmtoken.errors import TokenUnavailable

log = logging.getLogger(__name__)

_POWER_UP: Final = 5.0
"""Seconds for a card to be powered up when we look what it is."""

_PAUSES: Final = (0.2, 1.0, 3.0)
"""Seconds between tries to read a card that was in use or unsteady, as one that was just put in is."""

_FIRST_LOOK: Final = 10.0
"""Seconds for pcscd to say what is there, and for a card to say what it is."""


class CardReplaced(TokenUnavailable):
    """Another card than the one that was read is in the reader."""


@dataclass(eq=False, slots=True)
class Entry:
    """A card in a reader."""

    daemon: Pcscd
    reader: Reader
    applications: tuple[CardApplication, ...] = ()
    problem: str = ""
    """Why the card does not say what it is; empty when it does."""

    is_known: bool = False
    """Whether the card was read, with or without success."""

    def matching(self, wanted: CardLocator) -> CardApplication | None:
        """The application that a URI means."""
        return next((each for each in self.applications if _matches(each, wanted)), None)


class CardDirectory:
    """Reads each card once when it comes, in a thread of its own: one that hangs delays nobody."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is called in any thread when cards came, went, or became known."""
        self._changed = changed
        self._lock = threading.Condition()
        self._entries: dict[tuple[Pcscd, str], Entry] = {}
        self._last_seen: dict[CardLocator, tuple[Pcscd, str]] = {}
        self._daemons: Sequence[Pcscd] = ()

    def begin(self, daemons: Sequence[Pcscd]) -> None:
        """These are all of them; they are started."""
        self._daemons = daemons
        for daemon in daemons:
            daemon.start()

    def update(self, daemon: Pcscd) -> None:
        """Something changed behind a pcscd."""
        snapshot = daemon.snapshot
        present = {each.name: each for each in snapshot.readers if each.present} if snapshot else {}
        with self._lock:
            mine = {name: entry for (owner, name), entry in self._entries.items() if owner is daemon}
            for name in mine.keys() - present.keys():
                del self._entries[daemon, name]
            for name, reader in present.items():
                self._put(daemon, reader, mine.get(name))
            self._lock.notify_all()
        self._changed()

    def find(self, wanted: CardLocator) -> Entry:
        """Where a card is. Raises `TokenUnavailable` when it is nowhere."""
        deadline = time.monotonic() + _FIRST_LOOK
        with self._lock:
            while (entry := self._found(wanted)) is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._is_looking():
                    raise self._missing(wanted)
                self._lock.wait(left)
            self._last_seen[wanted] = entry.daemon, entry.reader.name
            return entry

    def doubt(self, entry: Entry) -> None:
        """A card is not what it was: pcscd misses one that is replaced between two of its looks."""
        with self._lock:
            key = entry.daemon, entry.reader.name
            if self._entries.get(key) is entry:
                entry = self._entries[key] = Entry(entry.daemon, entry.reader)
                self._start_reading(entry)

    def is_present(self, wanted: CardLocator) -> bool:
        """Whether a card is in a reader, as far as it is known just now."""
        with self._lock:
            return any(entry.matching(wanted) for entry in self._entries.values())

    def last_place(self, wanted: CardLocator) -> tuple[Pcscd, str] | None:
        """The reader that a card is in, or was in when it was last seen."""
        with self._lock:
            for (daemon, reader), entry in self._entries.items():
                if entry.matching(wanted):
                    return daemon, reader
            return self._last_seen.get(wanted)

    def cards(self) -> list[Entry]:
        """All cards, by pcscd and reader; those that nobody has are read again first."""
        self._wait_until_known()
        with self._lock:
            entries = [*self._entries.values()]
        threads = [
            self._start_reading(each)
            for each in entries
            if each.daemon.connection(each.reader.name) is None and not each.daemon.hung(each.reader.name)
        ]
        for thread in threads:
            thread.join(_FIRST_LOOK)
        with self._lock:
            return sorted(
                self._entries.values(), key=lambda entry: (entry.daemon.settings.socket, entry.reader.name)
            )

    def problems(self) -> Iterator[tuple[Pcscd, str]]:
        """Which pcscd do not answer, and why."""
        for daemon in self._daemons:
            if daemon.snapshot is not None and daemon.snapshot.problem:
                yield daemon, daemon.snapshot.problem

    def _put(self, daemon: Pcscd, reader: Reader, before: Entry | None) -> None:
        """The same card as before, or one to be read; one that was in use is tried again when it is free."""
        is_same = before is not None and before.reader.changes == reader.changes
        if before is not None and is_same:
            was_in_use, before.reader = before.reader.in_use, reader
            if not (before.problem and was_in_use and not reader.in_use):
                return
        entry = self._entries[daemon, reader.name] = Entry(daemon, reader)
        if reader.mute:
            entry.is_known = True
            entry.problem = unavailable(UNRESPONSIVE, reader.name).message
            return
        self._start_reading(entry)

    def _start_reading(self, entry: Entry) -> threading.Thread:
        thread = threading.Thread(
            target=self._read, args=(entry,), name=f"reading {entry.reader.name}", daemon=True
        )
        thread.start()
        return thread

    def _read(self, entry: Entry) -> None:
        """What is on the card; tried again a few times, for as long as it is there."""
        for pause in (*_PAUSES, None):
            problem, applications = _applications(entry)
            with self._lock:
                if self._entries.get((entry.daemon, entry.reader.name)) is not entry:
                    return
                if applications is not None:
                    entry.applications = applications
                entry.problem, entry.is_known = problem, True
                self._lock.notify_all()
            if pause is None or not problem or entry.daemon.hung(entry.reader.name):
                break
            time.sleep(pause)
        if problem:
            log.warning("card cannot be read", extra={"reader": entry.reader.name, "because": problem})
        self._changed()

    def _found(self, wanted: CardLocator) -> Entry | None:
        """Raises `TokenUnavailable` for two cards that say to be the same: either may be a copy."""
        found = [entry for entry in self._entries.values() if entry.matching(wanted)]
        if len(found) > 1:
            readers = " and ".join(f"'{entry.reader.name}'" for entry in found)
            raise TokenUnavailable(
                f"The cards in the readers {readers} all say that they have {wanted}; take "
                "the wrong ones out."
            )
        return found[0] if found else None

    def _is_looking(self) -> bool:
        return any(daemon.snapshot is None for daemon in self._daemons) or any(
            not entry.is_known for entry in self._entries.values()
        )

    def _wait_until_known(self) -> None:
        with self._lock:
            self._lock.wait_for(lambda: not self._is_looking(), _FIRST_LOOK)

    def _missing(self, wanted: CardLocator) -> TokenUnavailable:
        """The likeliest reason first."""
        troubles = [problem for _, problem in self.problems()]
        troubles += [entry.problem for entry in self._entries.values() if entry.problem]
        message = f"The card with {wanted} is in no reader; put it into one, any will do."
        if troubles:
            message += f" It may be this: {troubles[0]}"
        return TokenUnavailable(message, retry_after=1.0)


def slot_meant(application: CardApplication, wanted: CardLocator) -> str:
    """The slot of a PIV card that a URI names, or its certificate is in; empty for the usual one."""
    if wanted.slot or not wanted.certificate:
        return wanted.slot
    return next(slot for slot, key in application.keys.items() if _is_of(key, wanted))


def check_application(
    connection: SharedConnection, kind: ApplicationKind, wanted: CardLocator, slot: str
) -> None:
    """Make sure that this is the card that is meant, before it is told a PIN. Raises `CardReplaced`."""
    slots = [Slot.of(slot)] if wanted.certificate else []
    found = application_on(connection, kind, t0=connection.t0, slots=slots)
    if found is None or not _matches(found, wanted):
        raise CardReplaced(
            f"The card in the reader '{connection.reader}' was replaced by another one; put that with "
            f"{wanted} back."
        )


def _applications(entry: Entry) -> tuple[str, tuple[CardApplication, ...] | None]:
    """A problem, or what is on the card; neither when a token of ours has the card by now."""
    daemon, reader = entry.daemon, entry.reader.name
    try:
        with daemon.turn(reader):
            if daemon.connection(reader) is not None:
                return "", None
            connection = daemon.connect(reader, _POWER_UP)
            try:
                return "", applications_on(connection, t0=connection.t0)
            finally:
                connection.leave()
    except TokenUnavailable as error:
        return error.message, None


def _matches(application: CardApplication, wanted: CardLocator) -> bool:
    """A slot names a PIV card, and so does a certificate: others tell theirs under their PIN only."""
    is_piv = application.kind is ApplicationKind.PIV
    if wanted.serial:
        return application.serial == wanted.serial and (is_piv or not wanted.slot)
    keys = application.keys
    meant = [keys[wanted.slot]] if wanted.slot in keys else [] if wanted.slot else list(keys.values())
    return any(_is_of(key, wanted) for key in meant)


def _is_of(key: CardKey, wanted: CardLocator) -> bool:
    return bool(key.certificate) and hashlib.sha256(key.certificate).hexdigest() == wanted.certificate
