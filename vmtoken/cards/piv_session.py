"""PivSession: the selected PIV application; what keys and issuers do with it is their own."""

from __future__ import annotations

from contextlib import AbstractContextManager

from vmtoken.cards import pins
from vmtoken.cards import piv_commands as commands
from vmtoken.cards import piv_objects as objects
from vmtoken.cards.misbehaviour import closed_on_error
from vmtoken.cards.pins import CardPin
from vmtoken.cards.piv_codes import DataObject, PinPolicy, Reference, Slot
from vmtoken.cards.piv_key import SlotCertificate, SlotKey
from vmtoken.cards.piv_objects import ApplicationTemplate
from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.channel import CardChannel
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWord, StatusWordError
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import SignatureScheme
from vmtoken.token import Traffic

USER_PIN = CardPin(Reference.APPLICATION_PIN, "user PIN", "unblock it with the PUK")

_STATE_LOST = frozenset(
    (
        StatusWord.SECURITY_STATUS_NOT_SATISFIED,
        StatusWord.CONDITIONS_NOT_SATISFIED,
        StatusWord.FILE_NOT_FOUND,
        StatusWord.INS_NOT_SUPPORTED,
        StatusWord.CLA_NOT_SUPPORTED,
    )
)
"""How a card that was reset answers: it has forgotten the PIN, or even the application."""

NO_SUCH_KEY = (
    StatusWord.WRONG_DATA,
    StatusWord.INCORRECT_P1_P2,
    StatusWord.FILE_NOT_FOUND,
    StatusWord.REFERENCED_DATA_NOT_FOUND,
)
"""How cards answer GENERAL AUTHENTICATE with an algorithm or a slot that they have no key for."""


class PivSession:
    """One PIV application on one connection.

    Methods raise what the card says; `closed_on_error` translates it and gives the card back.
    """

    def __init__(
        self,
        connection: CardConnection,
        user_pin: SecretBytes | None,
        *,
        t0: bool = False,
        pin_reserve: int = 1,
    ) -> None:
        """Select the application; raise `TokenUnavailable` if it is not there, with the connection closed.

        `t0` is for connections that speak T=0.
        """
        self.channel = CardChannel(connection, le_with_data=not t0)
        self._user_pin = user_pin
        self._pin_reserve = pin_reserve
        self._closed = False
        self._certificates: dict[Slot, bytes | None] = {}
        with self.closed_on_error():
            self.template = self._select()
            self.serial = self._serial()

    @property
    def traffic(self) -> Traffic:
        """APDUs and octets since the connection was made."""
        return Traffic(self.channel.apdus, self.channel.octets)

    def certificate(self, slot: Slot) -> SlotCertificate | None:
        """What is in a slot's certificate object; None if nothing is."""
        octets = self._certificates[slot] = commands.data(self.channel, slot.certificate_tag)
        certificate = objects.decode_certificate(octets) if octets else b""
        return SlotCertificate.of(slot, certificate) if certificate else None

    def verify_pin(self, slot: Slot) -> None:
        """Give the PIN if the slot's key needs it; `PinMissing`, `PinRejected`, `PinBlocked`."""
        if slot.pin_policy is not PinPolicy.NEVER:
            self._verify_pin()

    def sign(self, key: SlotKey, scheme: SignatureScheme, content: bytes) -> bytes:
        """What the card gives for a signature; `PublicKey.has_signed` tells whether it is one.

        A card that was reset gets its PIN again, once; errors as `verify_pin`.
        """
        if self._closed:
            raise TokenUnavailable("The card was closed; open it again.")
        challenge = key.challenge(scheme, content)
        try:
            return self._signature(key, challenge)
        except StatusWordError as error:
            if error.status not in _STATE_LOST:
                raise
        self._restore(key.slot)
        return self._signature(key, challenge)

    def closed_on_error(self) -> AbstractContextManager[None]:
        """A card that is gone or makes no sense is closed, and `TokenUnavailable`."""
        return closed_on_error(self.close)

    def close(self) -> None:
        """Give the connection back. May be called twice."""
        if not self._closed:
            self._closed = True
            self.channel.close()

    def _select(self) -> ApplicationTemplate:
        try:
            return commands.select(self.channel)
        except StatusWordError as error:
            if error.status != StatusWord.FILE_NOT_FOUND:
                raise
            raise TokenUnavailable("The card holds no PIV application; use a card that does.") from error

    def _serial(self) -> str:
        """The GUID of the CHUID; empty for a card without."""
        chuid = commands.data(self.channel, DataObject.CARD_HOLDER_UNIQUE_IDENTIFIER)
        return objects.guid(chuid) if chuid else ""

    def _signature(self, key: SlotKey, challenge: bytes) -> bytes:
        """VERIFY, where it must, comes directly before the signature."""
        if key.slot.pin_policy is PinPolicy.ALWAYS:
            self._verify_pin(always=True)
        return commands.signature(self.channel, key.algorithm, key.slot, challenge)

    def _restore(self, slot: Slot) -> None:
        """Select and give the PIN again, after making sure that it is still the same card.

        A key that by the standard needs no PIN gets it too, if there is one: the card just refused it.
        """
        self._select()
        if not self._is_same_card():
            raise TokenUnavailable("There is another card in the reader now; put the first one back.")
        if slot.pin_policy is PinPolicy.ONCE or self._user_pin is not None:
            self._verify_pin(always=True)

    def _is_same_card(self) -> bool:
        """Known by its GUID; without one, by the certificates that were read of it."""
        if self.serial or not self._certificates:
            return self._serial() == self.serial
        now = {slot: commands.data(self.channel, slot.certificate_tag) for slot in self._certificates}
        return now == self._certificates

    def _verify_pin(self, *, always: bool = False) -> None:
        pins.verify_pin(self.channel, USER_PIN, self._user_pin, reserve=self._pin_reserve, always=always)
