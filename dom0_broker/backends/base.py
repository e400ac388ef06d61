"""What every backend offers; the registry chooses one by URI scheme, and none imports another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.secret import SecretBytes
from vmtoken.token import HandshakeToken


@dataclass(frozen=True, slots=True)
class Pins:
    """The PINs of a new element."""

    user: SecretBytes
    operator: SecretBytes


class TokenIssuer(Protocol):
    """Personalisation under the operator PIN. Methods raise `TokenUnavailable` when the card is gone."""

    def generate_key(self, algorithm: KeyAlgorithm) -> bytes:
        """A key pair made on the card; its SubjectPublicKeyInfo, DER."""
        ...

    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo of the key that is there, DER. Raises `Conflict` without one."""
        ...

    def certificate_request(self, subject: str, dns_names: Sequence[str] = ()) -> bytes:
        """PKCS#10, DER, signed inside the card. `subject` as in RFC 4514."""
        ...

    def install_certificate_chain(self, chain: Sequence[bytes]) -> None:
        """DER, leaf first. Raises `Conflict` if it does not match the key."""
        ...

    def install_trust_anchors(self, anchors: Sequence[bytes]) -> None:
        """DER; they replace those that are there."""
        ...

    def set_user_pin(self, new_pin: SecretBytes, operator_pin: SecretBytes) -> None:
        """A new user PIN with all its tries, even if the old one is blocked."""
        ...

    def change_operator_pin(self, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """Raises `PinRejected` or `PinBlocked` if the old one is wrong."""
        ...

    def close(self) -> None:
        """Give the card back. May be called twice."""
        ...


class TokenBackend(Protocol):
    """Tokens of one URI scheme. `locator` is what follows the colon. Methods block."""

    def create(self, locator: str, pins: Pins) -> None:
        """Make a new element. Raises `AlreadyExists`; `Conflict` where elements are not made by software."""
        ...

    def open(self, locator: str, user_pin: SecretBytes | None) -> HandshakeToken:
        """Raises `TokenNotFound`, `TokenNotReady`, `TokenUnavailable`, or what became of the PIN."""
        ...

    def open_issuer(self, locator: str, operator_pin: SecretBytes | None) -> TokenIssuer:
        """Errors as `open`."""
        ...

    def delete(self, locator: str) -> None:
        """Destroy an element and its key. Raises `TokenNotFound`, `Conflict`."""
        ...
