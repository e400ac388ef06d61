"""PcscBackend: `pcsc:serial=HEX` is a card, whatever reader it is in."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

from dom0_broker.backends.base import NOTHING_KEPT, FoundToken, Kept, Pins, PinState, TokenIssuer
from dom0_broker.backends.pcsc.applications import CardUse, card_use
from dom0_broker.backends.pcsc.daemon import Pcscd
from dom0_broker.backends.pcsc.directory import (
    CardDirectory,
    CardReplaced,
    Entry,
    check_application,
    slot_meant,
)
from dom0_broker.backends.pcsc.locator import CardLocator
from dom0_broker.backends.pcsc.settings import PcscdSettings
from dom0_broker.backends.pcsc.sharing import CardTable, SharedConnection
from vmtoken.cards.discovery import ApplicationKind, CardApplication, CardKey
from vmtoken.errors import Conflict, TokenUnavailable
from vmtoken.secret import SecretBytes
from vmtoken.token import HandshakeToken

log = logging.getLogger(__name__)

_NOT_OURS: Final = (
    "A card is not made or destroyed by software; 'vmtokenctl token discover' shows those that are there."
)


class PcscBackend:
    """Cards in the readers of one pcscd or more. Thread-safe."""

    def __init__(
        self, daemons: Sequence[PcscdSettings] = (PcscdSettings(),), *, pin_reserve: int = 1
    ) -> None:
        """Begins to look at the readers. Raises `Conflict` when pyscard is not installed."""
        if importlib.util.find_spec("smartcard") is None:
            raise Conflict("Cards in readers need pyscard; install vmtoken with its extra 'pcsc'.")
        self._pin_reserve = pin_reserve
        self._watchers: list[Callable[[], None]] = []
        self._cards = CardTable()
        self._directory = CardDirectory(self._tell)
        self._daemons = [Pcscd(settings, self._directory.update) for settings in daemons]
        self._directory.begin(self._daemons)

    def create(self, locator: str, pins: Pins) -> NoReturn:
        """See `TokenBackend.create`."""
        raise Conflict(_NOT_OURS)

    def open(self, locator: str, user_pin: SecretBytes | None, kept: Kept = NOTHING_KEPT) -> HandshakeToken:
        """See `TokenBackend.open`."""
        return self._use(locator).token(user_pin, kept)

    def open_issuer(
        self, locator: str, operator_pin: SecretBytes | None, user_pin: SecretBytes | None = None
    ) -> TokenIssuer:
        """See `TokenBackend.open_issuer`."""
        return self._use(locator).issuer(operator_pin, user_pin)

    def connect(self, locator: str) -> SharedConnection:
        """The bare card, as after a reset; for itself alone."""
        connection, _, _ = self._card(CardLocator.parse(locator), single=True)
        with contextlib.ExitStack() as unless_reset:
            unless_reset.callback(connection.close)
            connection.reset()
            unless_reset.pop_all()
        return connection

    def pin_holder(self, locator: str) -> str:
        """See `TokenBackend.pin_holder`: the application, by the serial of the card."""
        wanted = CardLocator.parse(locator)
        if wanted.serial and wanted.slot:  # only PIV has slots
            return _pin_holder(ApplicationKind.PIV, wanted.serial)
        application = self._directory.find(wanted).matching(wanted)
        if application is None:
            raise _just_gone(wanted)
        return _pin_holder(application.kind, application.serial or _first_certificate(application))

    def pin_state(self, locator: str) -> PinState:
        """See `TokenBackend.pin_state`."""
        return self._use(locator).pin_state()

    def change_user_pin(self, locator: str, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """See `TokenBackend.change_user_pin`."""
        self._use(locator).change_user_pin(old_pin, new_pin)

    def unblock_user_pin(self, locator: str, code: SecretBytes, new_pin: SecretBytes) -> None:
        """See `TokenBackend.unblock_user_pin`."""
        self._use(locator).unblock_user_pin(code, new_pin)

    def discover(self) -> list[FoundToken]:
        """See `TokenBackend.discover`."""
        cards = [found for entry in self._directory.cards() for found in _found_on(entry)]
        return cards + [
            FoundToken("", daemon.settings.name, problem=problem)
            for daemon, problem in self._directory.problems()
        ]

    def present(self, locator: str) -> bool:
        """See `TokenBackend.present`."""
        return self._directory.is_present(CardLocator.parse(locator))

    def reset(self, locator: str) -> None:
        """See `TokenBackend.reset`: by PC/SC if the card lets us, else by the operator's command."""
        wanted = CardLocator.parse(locator)
        place = self._directory.last_place(wanted)
        if place is None:
            entry = self._directory.find(wanted)
            place = entry.daemon, entry.reader.name
        daemon, reader = place
        if daemon.hung(reader) or not _warm_reset(daemon, reader):
            daemon.run_reset_command(reader)
        self._tell()

    def watch(self, changed: Callable[[], None]) -> None:
        """See `TokenBackend.watch`."""
        self._watchers.append(changed)

    def close(self) -> None:
        """See `TokenBackend.close`."""
        self._watchers.clear()
        for daemon in self._daemons:
            daemon.close()

    def delete(self, locator: str) -> NoReturn:
        """See `TokenBackend.delete`."""
        raise Conflict(_NOT_OURS)

    def _use(self, locator: str) -> CardUse:
        connection, kind, slot = self._card(CardLocator.parse(locator))
        return card_use(kind, connection, slot, self._pin_reserve)

    def _card(
        self, wanted: CardLocator, *, single: bool = False
    ) -> tuple[SharedConnection, ApplicationKind, str]:
        """The card that is meant, held, with its application selected, and the slot. Errors as `open`."""
        entry = self._directory.find(wanted)
        application = entry.matching(wanted)
        if application is None:  # it was taken out meanwhile
            raise _just_gone(wanted)
        kind, slot = application.kind, slot_meant(application, wanted)
        single = single or kind is ApplicationKind.EAP_TLS
        connection = self._cards.borrow(entry.daemon, entry.reader.name, single=single)
        try:
            connection.hold()
            check_application(connection, kind, wanted, slot)
        except BaseException as error:
            connection.close()
            if isinstance(error, CardReplaced):
                self._directory.doubt(entry)
            raise
        return connection, kind, slot

    def _tell(self) -> None:
        for changed in self._watchers:
            changed()


def _just_gone(wanted: CardLocator) -> TokenUnavailable:
    return TokenUnavailable(f"The card with {wanted} has just gone; put it in again.", retry_after=1.0)


def _pin_holder(kind: ApplicationKind, name: str) -> str:
    """Each application on a card has PINs of its own."""
    return f"pcsc:{kind.value} {name}"


def _first_certificate(application: CardApplication) -> str:
    """What a card without a serial is known by to all who look at it now: its first certificate."""
    first = min(slot for slot, key in application.keys.items() if key.certificate)
    return _fingerprint(application.keys[first])


def _fingerprint(key: CardKey) -> str:
    return hashlib.sha256(key.certificate).hexdigest()


def _warm_reset(daemon: Pcscd, reader: str) -> bool:
    """Whether the card took it; a token that has it open begins anew."""
    held = daemon.connection(reader)
    try:
        if held is not None:
            held.reset()
            held.fail(
                TokenUnavailable(
                    f"The card in the reader '{reader}' was reset by the operator.", retry_after=0.1
                )
            )
            return True
        with daemon.turn(reader):
            connection = daemon.connect(reader)
            try:
                connection.reset()
            finally:
                connection.close()
    except TokenUnavailable as error:
        log.warning("card does not take a reset", extra={"reader": reader, "because": error.message})
        return False
    return True


def _found_on(entry: Entry) -> Iterator[FoundToken]:
    place, atr = entry.reader.name, entry.reader.atr
    usable = [each for each in entry.applications if each.serial or each.keys]
    if not usable:
        names = ", ".join(each.name for each in entry.applications)
        problem = entry.problem or "The card holds no application that is of use here."
        yield FoundToken("", place, atr, names, problem=problem)
    for application in usable:
        yield from _found(entry, application)


def _found(entry: Entry, application: CardApplication) -> Iterator[FoundToken]:
    """One for each key of a PIV card, or for the slot that its first key goes into."""
    is_piv = application.kind is ApplicationKind.PIV
    no_key = CardKey(b"", ())
    hung = entry.daemon.hung(entry.reader.name)
    for slot, key in application.keys.items() or [("9a" if is_piv else "", no_key)]:
        yield FoundToken(
            _uri(application, slot, key),
            entry.reader.name,
            entry.reader.atr,
            f"{application.name}, slot {slot.upper()}" if slot else application.name,
            application.serial,
            (*key.capabilities, *application.capabilities),
            key.certificate,
            PinState(application.tries_left),
            hung.message if hung else entry.problem,
        )


def _uri(application: CardApplication, slot: str, key: CardKey) -> str:
    name = f"serial={application.serial}" if application.serial else f"cert={_fingerprint(key)}"
    return f"pcsc:{name};slot={slot}" if slot else f"pcsc:{name}"
