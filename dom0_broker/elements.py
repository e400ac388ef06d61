"""Tokens by their URIs: the backend that a scheme names, given the PINs that the broker keeps."""

from __future__ import annotations

import contextlib
import functools
import secrets
import string
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from dom0_broker.backends.base import FoundToken, Pins, TokenBackend, TokenIssuer
from dom0_broker.backends.registry import SCHEMES
from dom0_broker.pins import PinKeeper
from dom0_broker.store import PinRole, TokenRecord
from vmtoken.errors import (
    InvalidRequest,
    NotFound,
    PinBlocked,
    PinMissing,
    PinRejected,
    TokenNotFound,
    TokenUnavailable,
    VmTokenError,
)
from vmtoken.secret import SecretBytes
from vmtoken.token import HandshakeToken

BackendFor = Callable[[str], TokenBackend]
"""The backend of a URI scheme. Raises `InvalidRequest` for one that is not known."""

_PIN_ALPHABET: Final = string.ascii_letters + string.digits
_PIN_LENGTH: Final = 8
"""Octets; the longest that a card of the draft takes."""


class Elements:
    """Makes, opens and deletes what is behind tokens. Methods block."""

    def __init__(
        self,
        backend_for: BackendFor,
        pins: PinKeeper,
        *,
        schemes: Sequence[str] = SCHEMES,
        changed: Callable[[str], None] = lambda scheme: None,
    ) -> None:
        """`changed` is called, in any thread, when tokens of a scheme came or went."""
        self._make = backend_for
        self._pins = pins
        self._schemes = schemes
        self._changed = changed
        self._lock = threading.Lock()
        self._backends: dict[str, TokenBackend] = {}
        """Made when first used, and once: a backend knows what it has open."""

    def open(self, record: TokenRecord) -> HandshakeToken:
        """The card behind a token, with its user PIN. Called in the token's thread.

        Raises `TokenNotFound` for one that was removed or retired while a handshake waited for it.
        """
        try:
            with self._turn(record) as (backend, locator):
                return self._pins.try_all(
                    record.name,
                    PinRole.USER,
                    lambda: backend.pin_state(locator),
                    lambda pin: backend.open(locator, pin, record.kept),
                )
        except NotFound as error:  # the store's: it keeps no PINs for what it does not know
            raise TokenNotFound(
                f"Token '{record.name}' is not there any more; the operator has to bind another one."
            ) from error

    @contextlib.contextmanager
    def issuing(self, record: TokenRecord) -> Iterator[TokenIssuer]:
        """For personalisation, with the PINs that the broker has. Raises `PinMissing` if one lacks."""
        roles = (PinRole.OPERATOR, PinRole.USER)
        with (
            self._turn(record) as (backend, locator),
            self._pins.presenting(record.name, roles, lambda: backend.pin_state(locator)) as pins,
        ):
            issuer = backend.open_issuer(locator, pins[PinRole.OPERATOR], pins[PinRole.USER])
            with contextlib.closing(issuer):
                yield issuer

    def create(self, record: TokenRecord, pins: Pins) -> None:
        """Make an element whose PINs are on the disk by now."""
        backend, locator = self._backend(record.uri)
        backend.create(locator, pins)

    def read_pins(self, record: TokenRecord) -> None:
        """Ask for the retry counters. Called in the token's thread, while the token is closed."""
        with self._turn(record) as (backend, locator):
            self._pins.told(record.name, backend.pin_state(locator))

    def set_pin(self, record: TokenRecord, role: PinRole, pin: SecretBytes, *, again: bool) -> str:
        """Try a PIN once, and keep it if the token takes it; errors as `open`.

        The answer is why the token could not take or refuse it, if so: the next opening then tries it.
        """
        with self._turn(record):
            self._settle(record)
            earlier = self._pins.propose(record.name, role, pin, again=again)
            try:
                self._try(record, role)
            except (PinRejected, PinBlocked, PinMissing, TokenUnavailable):
                self._pins.withdraw(record.name, role, earlier)
                raise
            except VmTokenError as error:
                return error.message
        return ""

    def change_user_pin(self, record: TokenRecord, new_pin: SecretBytes) -> None:
        """Have the token take another user PIN, and keep that. Called in the token's thread."""
        with self._turn(record) as (backend, locator):
            self._settle(record)
            self._pins.change(
                record.name,
                new_pin,
                lambda: backend.pin_state(locator),
                lambda old, new: backend.change_user_pin(locator, old, new),
            )

    def unblock_user_pin(self, record: TokenRecord, code: SecretBytes | None, new_pin: SecretBytes) -> None:
        """Have the token take a user PIN with all its tries, and keep that; `code` as `PinKeeper.unblock`."""
        with self._turn(record) as (backend, locator):
            self._settle(record)
            self._pins.unblock(
                record.name,
                code,
                new_pin,
                lambda: backend.pin_state(locator),
                lambda given, new: backend.unblock_user_pin(locator, given, new),
            )

    def discover(self) -> list[FoundToken]:
        """What could be made a token, over all schemes."""
        return [found for scheme in self._schemes for found in self._discover(scheme)]

    def is_present(self, record: TokenRecord) -> bool:
        """Whether a token is there, as far as that is known without asking it."""
        backend, locator = self._backend(record.uri)
        return backend.present(locator)

    def reset(self, record: TokenRecord) -> None:
        """Get a token that hangs going again; errors as `open`."""
        backend, locator = self._backend(record.uri)
        backend.reset(locator)

    def close(self) -> None:
        """Stop what watches and works in the background."""
        with self._lock:
            backends = list(self._backends.values())
        for backend in backends:
            backend.close()

    def delete(self, record: TokenRecord) -> None:
        """Destroy the element and its key; it may be gone already."""
        backend, locator = self._backend(record.uri)
        with contextlib.suppress(TokenNotFound):
            backend.delete(locator)

    def record(self, name: str, uri: str) -> TokenRecord:
        """What the store keeps of a token. Raises `InvalidRequest` for a URI that makes no sense."""
        backend, locator = self._backend(uri)
        backend.present(locator)
        return TokenRecord(name, uri)

    def pin_holder(self, uri: str) -> str:
        """What has the PINs of a token; empty while that cannot be told. Raises `InvalidRequest`."""
        backend, locator = self._backend(uri)
        backend.present(locator)
        try:
            return backend.pin_holder(locator)
        except VmTokenError:  # opening it tells why
            return ""

    def find_pin_holder(self, record: TokenRecord) -> None:
        """Have it known what has the PINs of a token; errors as `open`."""
        backend, locator = self._backend(record.uri)
        self._pins.find_holder(record.name, lambda: backend.pin_holder(locator))

    @contextlib.contextmanager
    def _turn(self, record: TokenRecord) -> Iterator[tuple[TokenBackend, str]]:
        """Backend and locator, while no other token of the same card is given a PIN. Errors as `open`."""
        self.find_pin_holder(record)
        with self._pins.turn(record.name):
            yield self._backend(record.uri)

    def _settle(self, record: TokenRecord) -> None:
        """If it is not known which PIN the token has, find out before there is one more. Errors as `open`."""
        backend, locator = self._backend(record.uri)
        if not self._pins.is_settled(record.name):
            with contextlib.suppress(VmTokenError):
                self.open(record).close()
        self._pins.settle(record.name, lambda: backend.pin_state(locator))

    def _try(self, record: TokenRecord, role: PinRole) -> None:
        if role is PinRole.OPERATOR:
            with self.issuing(record):
                return
        backend, locator = self._backend(record.uri)
        with self._pins.presenting(record.name, (role,), lambda: backend.pin_state(locator)) as pins:
            backend.open(locator, pins[role], record.kept).close()

    def _backend(self, uri: str) -> tuple[TokenBackend, str]:
        scheme, colon, locator = uri.partition(":")
        if not colon or not locator:
            raise InvalidRequest(f"The URI '{uri}' is not one of a token; an example is soft:web01.")
        return self._backend_for(scheme), locator

    def _backend_for(self, scheme: str) -> TokenBackend:
        with self._lock:
            backend = self._backends.get(scheme)
            if backend is None:
                self._backends[scheme] = backend = self._make(scheme)
                backend.watch(functools.partial(self._changed, scheme))
            return backend

    def _discover(self, scheme: str) -> Sequence[FoundToken]:
        try:
            return self._backend_for(scheme).discover()
        except VmTokenError as error:
            return [FoundToken("", f"{scheme}:", problem=error.message)]


def random_pins() -> Pins:
    """PINs of a new element that nobody sees."""
    return Pins(_random_pin(), _random_pin())


def _random_pin() -> SecretBytes:
    return SecretBytes("".join(secrets.choice(_PIN_ALPHABET) for _ in range(_PIN_LENGTH)).encode())
