"""Tokens by their URIs: the backend that a scheme names, and the PINs that the store keeps sealed."""

from __future__ import annotations

import contextlib
import functools
import secrets
import string
from collections.abc import Callable
from typing import Final

from dom0_broker.backends.base import Pins, TokenBackend, TokenIssuer
from dom0_broker.safe import Safe
from dom0_broker.store import TokenRecord
from vmtoken.errors import InvalidRequest, TokenNotFound
from vmtoken.secret import SecretBytes
from vmtoken.token import HandshakeToken

BackendFor = Callable[[str], TokenBackend]
"""The backend of a URI scheme. Raises `InvalidRequest` for one that is not known."""

_PIN_ALPHABET: Final = string.ascii_letters + string.digits
_PIN_LENGTH: Final = 8
"""Octets; the longest that a card of the draft takes."""


class Elements:
    """Makes, opens and deletes what is behind tokens. Methods block."""

    def __init__(self, backend_for: BackendFor, safe: Safe) -> None:
        self._backend_for = functools.cache(backend_for)  # a backend knows what it has open
        self._safe = safe

    def open(self, record: TokenRecord) -> HandshakeToken:
        """The card behind a token, with its user PIN. Called in the token's thread."""
        backend, locator = self._backend(record.uri)
        pin = self._pin(record.sealed_user_pin, _user(record.name))
        return backend.open(locator, pin, record.kept)

    def open_issuer(self, record: TokenRecord) -> TokenIssuer:
        """For personalisation, with the PINs that the broker has. Raises `PinMissing` if one lacks."""
        backend, locator = self._backend(record.uri)
        operator = self._pin(record.sealed_operator_pin, _operator(record.name))
        user = self._pin(record.sealed_user_pin, _user(record.name))
        return backend.open_issuer(locator, operator, user)

    def plan(self, name: str, uri: str) -> TokenRecord:
        """The record of an element to be made, with random PINs that nobody sees."""
        return self.record(name, uri, _random_pin(), _random_pin())

    def create(self, record: TokenRecord) -> None:
        """Make a planned element, whose PINs are on the disk by now."""
        backend, locator = self._backend(record.uri)
        user = self._pin(record.sealed_user_pin, _user(record.name))
        operator = self._pin(record.sealed_operator_pin, _operator(record.name))
        assert user is not None, "planned with both PINs"
        assert operator is not None
        backend.create(locator, Pins(user, operator))

    def delete(self, record: TokenRecord) -> None:
        """Destroy the element and its key; it may be gone already."""
        backend, locator = self._backend(record.uri)
        with contextlib.suppress(TokenNotFound):
            backend.delete(locator)

    def record(
        self, name: str, uri: str, user_pin: SecretBytes | None, operator_pin: SecretBytes | None
    ) -> TokenRecord:
        """What the store keeps of a token. Raises `InvalidRequest` for a URI of no known scheme."""
        self._backend(uri)
        user = self._safe.seal(user_pin, _user(name)) if user_pin else None
        operator = self._safe.seal(operator_pin, _operator(name)) if operator_pin else None
        return TokenRecord(name, uri, user, operator)

    def _backend(self, uri: str) -> tuple[TokenBackend, str]:
        scheme, colon, locator = uri.partition(":")
        if not colon or not locator:
            raise InvalidRequest(f"The URI '{uri}' is not one of a token; an example is soft:web01.")
        return self._backend_for(scheme), locator

    def _pin(self, sealed: bytes | None, purpose: str) -> SecretBytes | None:
        return None if sealed is None else self._safe.open(sealed, purpose)


def _user(name: str) -> str:
    return f"user PIN of token {name}"


def _operator(name: str) -> str:
    return f"operator PIN of token {name}"


def _random_pin() -> SecretBytes:
    return SecretBytes("".join(secrets.choice(_PIN_ALPHABET) for _ in range(_PIN_LENGTH)).encode())
