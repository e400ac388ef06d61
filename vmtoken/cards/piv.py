"""PivCard: a key on a PIV card (NIST SP 800-73-4) that signs TLS handshakes of the broker."""

from __future__ import annotations

from collections.abc import Sequence

from vmtoken.cards.piv_codes import Slot
from vmtoken.cards.piv_key import SlotCertificate, SlotKey
from vmtoken.cards.piv_session import NO_SUCH_KEY, PivSession
from vmtoken.errors import TokenNotReady
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWordError
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import SignatureScheme
from vmtoken.token import Assurance, Traffic


class PivCard:
    """A `SigningKey`: the key of one slot. Calls come from one thread at a time.

    Methods raise `TokenUnavailable` when the card is gone or makes no sense; it is then closed.
    """

    def __init__(
        self,
        connection: CardConnection,
        user_pin: SecretBytes | None,
        *,
        slot: Slot = Slot.AUTHENTICATION,
        kept_chain: Sequence[bytes] = (),
        assurance: Assurance = Assurance.CARD_SIGNATURE,
        t0: bool = False,
        pin_reserve: int = 1,
    ) -> None:
        """Select the application, give the PIN where the slot needs it, read the certificate.

        `kept_chain`, DER and leaf first, is what the broker keeps for a card that holds a leaf at most.
        With `pin_reserve` tries left or fewer the PIN is not tried. Raises `PinMissing`, `PinRejected`,
        `PinBlocked`, `TokenNotReady`, `TokenUnavailable`; the connection is then closed.
        """
        self._card = PivSession(connection, user_pin, t0=t0, pin_reserve=pin_reserve)
        self._slot = slot
        self._assurance = assurance
        with self._card.closed_on_error():
            on_card = self._card.certificate(slot)
            self._chain, self._key = _identity(slot, on_card, tuple(kept_chain))
            self._card.verify_pin(slot)

    @property
    def serial(self) -> str:
        """Hexadecimal GUID of the CHUID; empty for a card without one, which only its certificate names."""
        return self._card.serial

    @property
    def application(self) -> str:
        """For people."""
        return f"PIV, slot {self._slot}"

    @property
    def assurance(self) -> Assurance:
        """What the reader's kind allows; a card that says to be software is believed."""
        return Assurance.SOFTWARE if self._card.template.is_software else self._assurance

    @property
    def traffic(self) -> Traffic:
        """APDUs and octets since the card was opened."""
        return self._card.traffic

    @property
    def certificate_chain(self) -> Sequence[bytes]:
        """DER, leaf first; empty while there is no certificate."""
        return self._chain

    @property
    def schemes(self) -> Sequence[SignatureScheme]:
        """What the key can do, best first; empty while there is no certificate."""
        return self._key.schemes if self._key and self._chain else ()

    def sign(self, scheme: SignatureScheme, content: bytes) -> bytes:
        """See `SigningKey.sign`; whoever calls it verifies the signature before anybody else sees it."""
        if self._key is None or scheme not in self.schemes:
            raise ValueError(f"the key in slot {self._slot} of the card does not sign with {scheme.name}")
        with self._card.closed_on_error():
            try:
                return self._card.sign(self._key, scheme, content)
            except StatusWordError as error:
                if error.status not in NO_SUCH_KEY:
                    raise
                raise TokenNotReady(
                    f"The card has no key in slot {self._slot} that fits the certificate; install the "
                    "certificate of the key that is there, or generate one."
                ) from error

    def close(self) -> None:
        """See `SigningKey.close`."""
        self._card.close()


def _identity(
    slot: Slot, on_card: SlotCertificate | None, kept_chain: tuple[bytes, ...]
) -> tuple[tuple[bytes, ...], SlotKey | None]:
    """The chain and its key: the one kept for the card counts, as long as the card does not contradict it."""
    if on_card is not None and on_card.is_placeholder:
        is_awaited = not kept_chain or SlotCertificate.of(slot, kept_chain[0]).key != on_card.key
        return ((), on_card.key) if is_awaited else (kept_chain, on_card.key)
    if not kept_chain:
        return ((), None) if on_card is None else ((on_card.octets,), on_card.key)
    key = SlotCertificate.of(slot, kept_chain[0]).key
    if on_card is not None and on_card.key != key:
        raise TokenNotReady(
            f"The card has another certificate in slot {slot} than the one kept for it, for another key; "
            "install the certificate of this key."
        )
    return kept_chain, key
