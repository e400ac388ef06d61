"""What tokens and issuers are made of the applications on a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dom0_broker.backends.base import Kept, PinState, TokenIssuer
from dom0_broker.backends.pcsc.sharing import SharedConnection
from dom0_broker.engine import EngineToken
from vmtoken.cards import eap_tls_pins, piv_pins
from vmtoken.cards.discovery import ApplicationKind
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.cards.issuer import EapTlsIssuer
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_codes import Slot
from vmtoken.cards.piv_issuer import PivIssuer
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import SignatureScheme
from vmtoken.token import HandshakeToken


class CardUse(Protocol):
    """What can be done with one application; the methods of `TokenBackend` say more.

    The card is held meanwhile. PIN commands close the connection, tokens and issuers with their own `close`.
    """

    def token(self, user_pin: SecretBytes | None, kept: Kept) -> HandshakeToken:
        """The application as a token."""
        ...

    def issuer(self, operator_pin: SecretBytes | None, user_pin: SecretBytes | None) -> TokenIssuer:
        """Personalisation."""
        ...

    def pin_state(self) -> PinState:
        """Tries left."""
        ...

    def change_user_pin(self, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """Another user PIN."""
        ...

    def unblock_user_pin(self, code: SecretBytes, new_pin: SecretBytes) -> None:
        """A user PIN with all its tries."""
        ...


def card_use(kind: ApplicationKind, connection: SharedConnection, slot: str, pin_reserve: int) -> CardUse:
    """What can be done with an application; `slot` counts for PIV only."""
    if kind is ApplicationKind.EAP_TLS:
        return EapTlsUse(connection, pin_reserve)
    return PivUse(connection, pin_reserve, Slot.of(slot) if slot else Slot.AUTHENTICATION)


@dataclass(frozen=True, slots=True)
class EapTlsUse:
    """The card runs the handshakes itself."""

    card: SharedConnection
    pin_reserve: int

    def token(self, user_pin: SecretBytes | None, kept: Kept) -> EapTlsCard:
        """See `CardUse.token`; the card keeps its certificates itself."""
        t0, extended = self.card.t0, self.card.extended
        return EapTlsCard(self.card, user_pin, t0=t0, extended=extended, pin_reserve=self.pin_reserve)

    def issuer(self, operator_pin: SecretBytes | None, user_pin: SecretBytes | None) -> EapTlsIssuer:
        """See `CardUse.issuer`."""
        return EapTlsIssuer(self.card, operator_pin, t0=self.card.t0, pin_reserve=self.pin_reserve)

    def pin_state(self) -> PinState:
        """See `CardUse.pin_state`."""
        user, operator = eap_tls_pins.tries_left(self.card, t0=self.card.t0)
        return PinState(user, operator_tries_left=operator)

    def change_user_pin(self, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """See `CardUse.change_user_pin`."""
        t0, reserve = self.card.t0, self.pin_reserve
        eap_tls_pins.change_user_pin(self.card, old_pin, new_pin, t0=t0, pin_reserve=reserve)

    def unblock_user_pin(self, code: SecretBytes, new_pin: SecretBytes) -> None:
        """See `CardUse.unblock_user_pin`."""
        t0, reserve = self.card.t0, self.pin_reserve
        eap_tls_pins.unblock_user_pin(self.card, code, new_pin, t0=t0, pin_reserve=reserve)


@dataclass(frozen=True, slots=True)
class PivUse:
    """The card signs, the handshakes run here. Each of its keys is a token; they share the card."""

    card: SharedConnection
    pin_reserve: int
    slot: Slot

    def token(self, user_pin: SecretBytes | None, kept: Kept) -> EngineToken:
        """See `CardUse.token`."""
        key = PivCard(
            self.card,
            user_pin,
            slot=self.slot,
            kept_chain=kept.chain,
            t0=self.card.t0,
            pin_reserve=self.pin_reserve,
        )
        self.card.release()
        return EngineToken(
            KeyInTurn(key, self.card),
            anchors=kept.anchors,
            serial=key.serial,
            application=key.application,
            assurance=key.assurance,
            traffic=lambda: key.traffic,
        )

    def issuer(self, operator_pin: SecretBytes | None, user_pin: SecretBytes | None) -> PivIssuer:
        """See `CardUse.issuer`; the operator PIN is the management key."""
        t0, reserve = self.card.t0, self.pin_reserve
        return PivIssuer(self.card, operator_pin, user_pin, slot=self.slot, t0=t0, pin_reserve=reserve)

    def pin_state(self) -> PinState:
        """See `CardUse.pin_state`; a management key has no counter."""
        return PinState(piv_pins.user_pin_tries_left(self.card, t0=self.card.t0))

    def change_user_pin(self, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """See `CardUse.change_user_pin`."""
        t0, reserve = self.card.t0, self.pin_reserve
        piv_pins.change_user_pin(self.card, old_pin, new_pin, t0=t0, pin_reserve=reserve)

    def unblock_user_pin(self, code: SecretBytes, new_pin: SecretBytes) -> None:
        """See `CardUse.unblock_user_pin`; the code is the PUK."""
        t0, reserve = self.card.t0, self.pin_reserve
        piv_pins.unblock_user_pin(self.card, code, new_pin, t0=t0, pin_reserve=reserve)


class KeyInTurn:
    """A `SigningKey` that has its card for each whole signature, and leaves it to other keys in between."""

    def __init__(self, key: PivCard, card: SharedConnection) -> None:
        self._key = key
        self._card = card

    @property
    def certificate_chain(self) -> Sequence[bytes]:
        """See `SigningKey.certificate_chain`."""
        return self._key.certificate_chain

    @property
    def schemes(self) -> Sequence[SignatureScheme]:
        """See `SigningKey.schemes`."""
        return self._key.schemes

    def sign(self, scheme: SignatureScheme, content: bytes) -> bytes:
        """See `SigningKey.sign`."""
        self._card.hold()
        try:
            return self._key.sign(scheme, content)
        finally:
            self._card.release()

    def close(self) -> None:
        """See `SigningKey.close`."""
        self._key.close()
