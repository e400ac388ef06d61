"""What every backend offers; the registry chooses one by URI scheme, and none imports another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.secret import SecretBytes
from vmtoken.token import HandshakeToken


@dataclass(frozen=True, slots=True)
class Pins:
    """The PINs of a new element."""

    user: SecretBytes
    operator: SecretBytes


@dataclass(frozen=True, slots=True)
class Kept:
    """Certificates that the broker keeps for a token that cannot: DER."""

    chain: tuple[bytes, ...] = ()
    """Leaf first; empty: what the token itself holds counts."""

    anchors: tuple[bytes, ...] = ()
    """CA certificates that servers are verified with."""


NOTHING_KEPT: Final = Kept()


@dataclass(frozen=True, slots=True)
class PinState:
    """How many tries of the PINs are left, without spending one."""

    tries_left: int | None
    """None while it is verified, or when the token does not tell."""

    tries: int | None = None
    """How many there are after a right one; None when the token does not tell."""

    operator_tries_left: int | None = None
    """Of the operator PIN; None when the token does not tell, or has no counter for it."""


@dataclass(frozen=True, slots=True)
class FoundToken:
    """Something that could be made a token: what `discover` finds."""

    uri: str
    """For 'vmtokenctl token add'; names serial or certificate, never a reader."""

    place: str
    """Where it is just now, for people: the reader, the PKCS#11 slot, a file."""

    atr: bytes = b""
    """Answer to reset (ISO/IEC 7816-3 section 8); empty where there is none."""

    application: str = ""
    """For people: 'EAP-TLS card, profile 1', 'PIV, slot 9A', 'SoftHSM v2'; empty for one of no use here."""

    serial: str = ""
    capabilities: tuple[str, ...] = ()
    """For people: 'TLS 1.3', 'ECDSA_SECP256R1_SHA256', 'personalisation'."""

    certificate: bytes = b""
    """The leaf, DER; empty without one."""

    pin: PinState = PinState(None)
    problem: str = ""
    """A sentence that says why it cannot be used just now; empty when all is well."""


class TokenIssuer(Protocol):
    """Personalisation under the operator PIN. Methods raise `TokenUnavailable` when the card is gone."""

    @property
    def keeps_certificates(self) -> bool:
        """Whether chain and anchors stay in the token; else the broker gives them to `open` as `Kept`."""
        ...

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

    def destroy_key(self) -> None:
        """Key and certificates are gone for good. Raises `Conflict` where that cannot be."""
        ...

    def close(self) -> None:
        """Give the card back. May be called twice."""
        ...


class TokenBackend(Protocol):
    """Tokens of one URI scheme. `locator` is what follows the colon. Methods block."""

    def create(self, locator: str, pins: Pins) -> None:
        """Make a new element. Raises `AlreadyExists`; `Conflict` where elements are not made by software."""
        ...

    def open(self, locator: str, user_pin: SecretBytes | None, kept: Kept = NOTHING_KEPT) -> HandshakeToken:
        """Raises `TokenNotFound`, `TokenNotReady`, `TokenUnavailable`, or what became of the PIN."""
        ...

    def open_issuer(
        self, locator: str, operator_pin: SecretBytes | None, user_pin: SecretBytes | None = None
    ) -> TokenIssuer:
        """Errors as `open`. `operator_pin` is the management key of a PIV card; PKCS#11 uses the user PIN."""
        ...

    def pin_holder(self, locator: str) -> str:
        """What has the PINs and counts their tries: the same text for every key of it, for good.

        It has a colon in it. Errors as `open`, while it has to be asked and is not there.
        """
        ...

    def pin_state(self, locator: str) -> PinState:
        """Ask for the tries of the user PIN that are left; spends none. Errors as `open`."""
        ...

    def change_user_pin(self, locator: str, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """Raises `PinRejected`, `PinBlocked` (also for the reserve), `InvalidRequest`, or as `open`."""
        ...

    def unblock_user_pin(self, locator: str, code: SecretBytes, new_pin: SecretBytes) -> None:
        """A new user PIN with all its tries, even if the old one is blocked; errors are about the code.

        It is the operator PIN of an EAP-TLS card, the PUK of a PIV card, the SO PIN of a PKCS#11 token.
        """
        ...

    def discover(self) -> Sequence[FoundToken]:
        """What is there and could be made a token, in a lasting order; owned tokens are not disturbed."""
        ...

    def present(self, locator: str) -> bool:
        """Whether it is there, as far as that is known without asking it. Raises `InvalidRequest`."""
        ...

    def reset(self, locator: str) -> None:
        """Get a card or module that hangs going again, as far as that is possible. Errors as `open`."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called, from any thread, whenever tokens came or went."""
        ...

    def close(self) -> None:
        """Stop what watches or works in the background. May be called twice."""
        ...

    def delete(self, locator: str) -> None:
        """Destroy an element and its key. Raises `TokenNotFound`, `Conflict`."""
        ...
