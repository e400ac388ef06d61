"""CardSession: a selected application with a PIN given; what tokens and issuers do with it is their own."""

from __future__ import annotations

from vmtoken.cards import commands, pins
from vmtoken.cards.codes import CLA, PinReference
from vmtoken.cards.misbehaviour import card_errors
from vmtoken.cards.pins import CardPin
from vmtoken.cards.profile import Fci
from vmtoken.errors import TokenNotReady, TokenUnavailable
from vmtoken.iso7816.channel import CardChannel, Chaining
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWord, StatusWordError
from vmtoken.secret import SecretBytes
from vmtoken.token import Traffic


class CardSession:
    """One application on one connection. Methods raise what the card says; `card_errors` translates it."""

    def __init__(self, channel: CardChannel, fci: Fci | None) -> None:
        self.channel = channel
        self.fci = fci
        """None for a plain card of the draft."""

    @classmethod
    def open(cls, connection: CardConnection, *, t0: bool = False, extended: bool = False) -> CardSession:
        """Select the application; raise `TokenUnavailable`, with the connection closed, if it is not there.

        `t0` is for connections that speak T=0, `extended` for readers that carry extended APDUs.
        """
        channel = CardChannel(connection, chaining=Chaining.P1, le_with_data=not t0)
        try:
            with card_errors():
                fci = _selected(channel)
        except TokenUnavailable:
            connection.close()
            raise
        if extended and fci is not None:
            channel.limits = fci.limits
        return cls(channel, fci)

    @property
    def traffic(self) -> Traffic:
        """APDUs and octets since the connection was made."""
        return Traffic(self.channel.apdus, self.channel.octets)

    def required_profile(self) -> Fci:
        """The FCI; raise `TokenNotReady` for a plain card, which cannot hand over a key block."""
        if self.fci is None:
            raise TokenNotReady(
                "The card has the EAP-TLS application without our profile and can authenticate to an EAP "
                "server, but cannot give the keys of a TLS session; use a card with the profile."
            )
        return self.fci

    def verify_pin(self, reference: PinReference, pin: SecretBytes | None, *, reserve: int = 1) -> None:
        """Give a PIN unless `reserve` tries or fewer are left; `PinMissing`, `PinRejected`, `PinBlocked`."""
        pins.verify_pin(self.channel, _PINS[reference], pin, reserve=reserve)

    def check_tries(self, reference: PinReference, *, reserve: int = 1) -> None:
        """Raise `PinBlocked` if `reserve` tries of a PIN are left, or fewer."""
        pins.check_tries(self.channel, _PINS[reference], reserve=reserve)

    def use_preferred_identity(self) -> bytes:
        """Choose the card's first identity; raise `TokenNotReady` if it has none."""
        try:
            label = commands.preferred_identity(self.channel)
        except StatusWordError as error:
            if error.status != StatusWord.REFERENCED_DATA_NOT_FOUND:
                raise
            raise TokenNotReady(
                "The card has no identity yet; the operator has to personalise it."
            ) from error
        commands.set_identity(self.channel, label)
        return label

    def certificate_chain(self) -> tuple[bytes, ...]:
        """DER, leaf first; empty if the card has none or does not give it out."""
        try:
            return commands.profile_data(self.channel).chain
        except StatusWordError:
            return ()

    def close(self) -> None:
        """Give the connection back."""
        self.channel.close()


def _selected(channel: CardChannel) -> Fci | None:
    try:
        return commands.select(channel)
    except StatusWordError as error:
        if error.status != StatusWord.FILE_NOT_FOUND:
            raise
        raise TokenUnavailable("The card holds no EAP-TLS application; use a card that does.") from error


_PINS = {
    PinReference.USER: CardPin(PinReference.USER, "user PIN", "unblock it with the operator PIN", CLA),
    PinReference.OPERATOR: CardPin(
        PinReference.OPERATOR, "operator PIN", "whoever issued the card can help", CLA
    ),
}
