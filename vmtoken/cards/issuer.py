"""EapTlsIssuer: personalisation of a card with our profile, under its operator PIN."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from vmtoken.cards import commands
from vmtoken.cards.codes import CLA, DataObject, Features, KeyAlgorithm, PinReference
from vmtoken.cards.eap_tls_pins import PIN_RULE
from vmtoken.cards.misbehaviour import card_errors, refusals
from vmtoken.cards.profile import encode_certificates
from vmtoken.cards.session import CardSession
from vmtoken.errors import Conflict, InvalidRequest, TokenNotReady, VmTokenError
from vmtoken.iso7816 import commands as iso7816
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWord
from vmtoken.secret import SecretBytes

_DEFAULT_LABEL = b"vmtoken"


class EapTlsIssuer:
    """Makes keys and stores certificates for the card's preferred identity; adds one if there is none.

    Methods raise `TokenUnavailable` when the card is gone, `InvalidRequest` or `Conflict` when it
    refuses what it is given.
    """

    def __init__(
        self,
        connection: CardConnection,
        operator_pin: SecretBytes | None,
        *,
        label: bytes = _DEFAULT_LABEL,
        t0: bool = False,
        pin_reserve: int = 1,
    ) -> None:
        """Select the application and give the operator PIN; errors as `EapTlsCard`."""
        self._card = CardSession.open(connection, t0=t0)
        self._closed = False
        try:
            with card_errors():
                features = self._card.required_profile().features
                if Features.PERSONALISATION not in features:
                    raise Conflict("The card cannot be personalised over its interface; its maker does that.")
                self._card.verify_pin(PinReference.OPERATOR, operator_pin, reserve=pin_reserve)
                self._use_identity(label)
        except VmTokenError:
            self.close()
            raise

    @property
    def keeps_certificates(self) -> bool:
        """The card has room for them."""
        return True

    def generate_key(self, algorithm: KeyAlgorithm) -> bytes:
        """A fresh key pair on the card; its SubjectPublicKeyInfo, DER. The old certificate is gone."""
        meaning = f"The card makes no {algorithm.name} keys; choose another algorithm."
        with _refusals({StatusWord.FUNCTION_NOT_SUPPORTED: meaning}):
            return commands.generate_key(self._card.channel, algorithm)

    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo of the key that is there, DER."""
        with _refusals({}):
            return commands.public_key(self._card.channel)

    def certificate_request(self, subject: str, dns_names: Sequence[str] = ()) -> bytes:
        """PKCS#10, DER, signed inside the card; `subject` as in RFC 4514."""
        if any(not name.isascii() or not 1 <= len(name) <= 255 for name in dns_names):
            raise InvalidRequest(
                "A DNS name is 1 to 255 ASCII characters; write an international name in its xn-- form."
            )
        meaning = f"The card cannot make a request for {subject!r}; correct the names in it."
        with _refusals({StatusWord.WRONG_DATA: meaning}):
            return commands.certificate_request(self._card.channel, subject, dns_names)

    def install_certificate_chain(self, chain: Sequence[bytes]) -> None:
        """DER, leaf first. Raises `Conflict` if it does not match the key."""
        self._put(
            DataObject.CERTIFICATE_CHAIN,
            encode_certificates(chain),
            "The certificate chain does not parse, is out of order or belongs to another key; "
            "give the one issued for the request of this card, leaf first.",
        )

    def install_trust_anchors(self, anchors: Sequence[bytes]) -> None:
        """DER; they replace those that are there."""
        self._put(
            DataObject.TRUST_ANCHORS,
            encode_certificates(anchors),
            "The trust anchors cannot be read; give X.509 certificates of CAs.",
        )

    def destroy_key(self) -> None:
        """The card has no command for it: a fresh key takes the place of the old one and its certificate."""
        self.generate_key(KeyAlgorithm.ECDSA_P256)

    def install_private_key(self, pkcs8: SecretBytes) -> None:
        """Import a key, PKCS#8 DER: software elements only, `Conflict` elsewhere."""
        if Features.KEY_IMPORT not in self._card.required_profile().features:
            raise Conflict("The card takes no private key; generate one on it.")
        self._put(
            DataObject.PRIVATE_KEY,
            pkcs8.reveal(),
            "The private key cannot be used; generate one on the card instead.",
        )

    def set_eap_server_name(self, name: str) -> None:
        """Whom the card expects as an EAP peer when its Start names nobody."""
        self._put(
            DataObject.SERVER_NAME,
            name.encode("ascii"),
            f"The card does not take {name!r} for a server; give a DNS name or an IP address.",
        )

    def change_operator_pin(self, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """Raises `PinRejected` or `PinBlocked` if the old one is wrong."""
        with _refusals({StatusWord.WRONG_DATA: PIN_RULE}):
            iso7816.change_reference_data(
                self._card.channel, PinReference.OPERATOR, old_pin, new_pin, cla=CLA
            )

    def close(self) -> None:
        """Give the card back. May be called twice."""
        if not self._closed:
            self._closed = True
            self._card.close()

    def _use_identity(self, label: bytes) -> None:
        try:
            self._card.use_preferred_identity()
        except TokenNotReady:
            commands.add_identity(self._card.channel, label)
            commands.set_identity(self._card.channel, label)

    def _put(self, reference: DataObject, data: bytes, meaning: str) -> None:
        if not data:
            raise InvalidRequest("There is nothing to store; give at least one certificate.")
        with _refusals({StatusWord.WRONG_DATA: meaning}):
            commands.put_data(self._card.channel, reference, data)


def _refusals(meanings: dict[StatusWord, str]) -> AbstractContextManager[None]:
    known = {
        StatusWord.CONDITIONS_NOT_SATISFIED: "The card has no key yet; generate one first.",
        StatusWord.NOT_ENOUGH_MEMORY: "The card has no room for that; give fewer or shorter certificates.",
    }
    return refusals({**known, **meanings})
