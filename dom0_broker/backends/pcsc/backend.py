"""PcscBackend: `pcsc:serial=HEX` is a card, whatever reader it is in."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

from dom0_broker.backends.base import NOTHING_KEPT, FoundToken, Kept, Pins, PinState
from dom0_broker.backends.pcsc.connection import PcscConnection
from dom0_broker.backends.pcsc.daemon import Pcscd
from dom0_broker.backends.pcsc.directory import CardDirectory, Entry, read_application
from dom0_broker.backends.pcsc.locator import CardLocator
from dom0_broker.backends.pcsc.settings import PcscdSettings
from vmtoken.cards import eap_tls_pins
from vmtoken.cards.discovery import CardApplication
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.cards.issuer import EapTlsIssuer
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
            raise Conflict("Cards in readers need pyscard; install it with: pip install 'vmtoken[pcsc]'")
        self._pin_reserve = pin_reserve
        self._watchers: list[Callable[[], None]] = []
        self._directory = CardDirectory(self._tell)
        self._daemons = [Pcscd(settings, self._directory.update) for settings in daemons]
        self._directory.begin(self._daemons)

    def create(self, locator: str, pins: Pins) -> NoReturn:
        """See `TokenBackend.create`."""
        raise Conflict(_NOT_OURS)

    def open(self, locator: str, user_pin: SecretBytes | None, kept: Kept = NOTHING_KEPT) -> HandshakeToken:
        """See `TokenBackend.open`."""
        connection, _ = self._card(CardLocator.parse(locator))
        return EapTlsCard(
            connection,
            user_pin,
            t0=connection.t0,
            extended=connection.extended,
            pin_reserve=self._pin_reserve,
        )

    def open_issuer(
        self, locator: str, operator_pin: SecretBytes | None, user_pin: SecretBytes | None = None
    ) -> EapTlsIssuer:
        """See `TokenBackend.open_issuer`."""
        connection, _ = self._card(CardLocator.parse(locator))
        return EapTlsIssuer(connection, operator_pin, t0=connection.t0, pin_reserve=self._pin_reserve)

    def connect(self, locator: str) -> PcscConnection:
        """The bare card, as after a reset."""
        connection, _ = self._card(CardLocator.parse(locator))
        connection.reset()
        return connection

    def pin_state(self, locator: str) -> PinState:
        """See `TokenBackend.pin_state`."""
        connection, _ = self._card(CardLocator.parse(locator))
        user, operator = eap_tls_pins.tries_left(connection, t0=connection.t0)
        return PinState(user, operator_tries_left=operator)

    def change_user_pin(self, locator: str, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """See `TokenBackend.change_user_pin`."""
        connection, _ = self._card(CardLocator.parse(locator))
        eap_tls_pins.change_user_pin(
            connection, old_pin, new_pin, t0=connection.t0, pin_reserve=self._pin_reserve
        )

    def unblock_user_pin(self, locator: str, code: SecretBytes, new_pin: SecretBytes) -> None:
        """See `TokenBackend.unblock_user_pin`."""
        connection, _ = self._card(CardLocator.parse(locator))
        eap_tls_pins.unblock_user_pin(
            connection, code, new_pin, t0=connection.t0, pin_reserve=self._pin_reserve
        )

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

    def _card(self, wanted: CardLocator) -> tuple[PcscConnection, CardApplication]:
        """The card that is meant, and nobody else's from now on. Raises `TokenUnavailable`."""
        entry = self._directory.find(wanted)
        daemon, reader = entry.daemon, entry.reader.name
        with daemon.turn(reader):
            if daemon.connection(reader) is not None:
                raise TokenUnavailable(
                    f"The card with {wanted} is in use by another token or command of this broker; "
                    "a card serves one at a time.",
                    retry_after=1.0,
                )
            connection = daemon.connect(reader)
        try:
            return connection, read_application(connection, wanted)
        except BaseException:
            connection.close()
            raise

    def _tell(self) -> None:
        for changed in self._watchers:
            changed()


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
    usable = [each for each in entry.applications if each.serial or each.certificates]
    if not usable:
        names = ", ".join(each.name for each in entry.applications)
        problem = entry.problem or "The card holds no application that is of use here."
        yield FoundToken("", place, atr, names, problem=problem)
    for application in usable:
        yield from _found(entry, application)


def _found(entry: Entry, application: CardApplication) -> Iterator[FoundToken]:
    hung = entry.daemon.hung(entry.reader.name)
    for slot, certificate in application.certificates.items() or [("", b"")]:
        serial = f"serial={application.serial}"
        name = serial if application.serial else f"cert={hashlib.sha256(certificate).hexdigest()}"
        yield FoundToken(
            f"pcsc:{name};slot={slot}" if slot else f"pcsc:{name}",
            entry.reader.name,
            entry.reader.atr,
            f"{application.name}, slot {slot.upper()}" if slot else application.name,
            application.serial,
            application.capabilities,
            certificate,
            PinState(application.tries_left),
            hung.message if hung else entry.problem,
        )
