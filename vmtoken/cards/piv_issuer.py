"""PivIssuer: personalisation of a PIV card (NIST SP 800-73-4), under its management key."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from vmtoken.cards import piv_commands as commands
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.misbehaviour import refusals
from vmtoken.cards.piv_codes import KEY_ALGORITHMS, Slot
from vmtoken.cards.piv_key import PLACEHOLDER, SlotCertificate, SlotKey
from vmtoken.cards.piv_management import authenticate, candidates
from vmtoken.cards.piv_objects import encode_certificate
from vmtoken.cards.piv_session import NO_SUCH_KEY, PivSession
from vmtoken.csr import KeyElsewhere, certificate_request, check_chain
from vmtoken.errors import Conflict, PinMissing
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWord
from vmtoken.secret import SecretBytes
from vmtoken.tls.certificates import TrustStore
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.signatures import PublicKey

_PROOF = b"vmtoken: does this certificate belong to the key on the card? "
_NONCE_LENGTH = 32

_END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""For certificates without a well-defined end (RFC 5280 section 4.1.2.5)."""

_NO_ROOM = "The card has no room for the certificate; have a shorter one issued."

_OTHER_KEY = (
    "The certificate belongs to another key than the one in slot {slot} of the card; give the one issued for "
    "the request of this card, leaf first."
)

_STALE = (
    "The certificate in slot {slot} of the card belongs to another key; generate a key, or install the "
    "certificate of the one that is there."
)


class PivIssuer:
    """A `TokenIssuer` for the key of one slot.

    The card holds the leaf certificate, so that other programs see it too; chain and trust anchors stay
    with the broker. Methods raise `TokenUnavailable` when the card is gone, `Conflict` or `InvalidRequest`
    when it refuses what it is given, and what becomes of the user PIN, which signatures need.
    """

    def __init__(
        self,
        connection: CardConnection,
        management_key: SecretBytes | None,
        user_pin: SecretBytes | None = None,
        *,
        slot: Slot = Slot.AUTHENTICATION,
        t0: bool = False,
        pin_reserve: int = 1,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Select the application and show the management key, in hexadecimal digits as people write it.

        Without it nothing on the card is changed: a card that somebody else issued can be used for what it
        holds. Raises `PinRejected`, `InvalidRequest`, `TokenUnavailable`, with the connection closed.
        """
        self._card = PivSession(connection, user_pin, t0=t0, pin_reserve=pin_reserve)
        self._slot = slot
        self._random = random
        self._may_change = management_key is not None
        if management_key is not None:
            with self._card.closed_on_error():
                authenticate(self._card.channel, candidates(management_key), random)

    @property
    def keeps_certificates(self) -> bool:
        """The broker does."""
        return False

    def generate_key(self, algorithm: KeyAlgorithm) -> bytes:
        """A fresh key pair on the card; its SubjectPublicKeyInfo, DER. The old certificate is gone.

        The card tells the public key this once; a certificate that nobody takes for one keeps it.
        Raises `PinMissing` without the management key, or a user PIN where the slot needs one.
        """
        self._require_management()
        identifier = KEY_ALGORITHMS.get(algorithm)
        meaning = f"The card makes no {algorithm.name} keys; choose another algorithm."
        if identifier is None:
            raise Conflict(meaning)
        with _refusals(dict.fromkeys((StatusWord.WRONG_DATA, StatusWord.FUNCTION_NOT_SUPPORTED), meaning)):
            self._card.verify_pin(self._slot)
            info = commands.generate_asymmetric_key_pair(self._card.channel, self._slot, identifier)
        key = self._key_of(info)
        with _refusals({}):
            self._put_certificate(self._placeholder(key))
        return info

    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo, DER, of the key that the certificate of the slot is for."""
        return self._known_key().public_key_info

    def certificate_request(self, subject: str, dns_names: Sequence[str] = ()) -> bytes:
        """PKCS#10, DER, signed by the card; `subject` as in RFC 4514."""
        key = self._known_key()
        with _refusals(dict.fromkeys(NO_SUCH_KEY, _STALE.format(slot=self._slot))):
            return certificate_request(
                key.public_key_info, key.schemes, self._signer(key), subject, dns_names
            )

    def install_certificate_chain(self, chain: Sequence[bytes]) -> None:
        """DER, leaf first. Raises `Conflict` if it does not match the key.

        The key proves by a signature that it is the right one: what is in the slot so far may be wrong.
        The leaf goes to the card if its management key is known; it has to if another key's is there.
        """
        key = self._key_of_leaf(chain)
        with _refusals(dict.fromkeys(NO_SUCH_KEY, _OTHER_KEY.format(slot=self._slot))):
            self._prove(key)
        if self._may_change or self._holds_another_key(key):
            self._require_management()
            with _refusals({}):
                self._put_certificate(chain[0])

    def install_trust_anchors(self, anchors: Sequence[bytes]) -> None:
        """The card has no place for them; they are only looked at. DER."""
        try:
            TrustStore(anchors)
        except ValueError as error:
            raise Conflict("The trust anchors cannot be read; give X.509 certificates of CAs.") from error

    def destroy_key(self) -> None:
        """The card has no command for it: a fresh key takes the place of the old one and its certificate."""
        self._require_management()
        identifier = KEY_ALGORITHMS[KeyAlgorithm.ECDSA_P256]
        with _refusals({}):
            commands.generate_asymmetric_key_pair(self._card.channel, self._slot, identifier)
            self._put_certificate(b"")

    def close(self) -> None:
        """Give the card back. May be called twice."""
        self._card.close()

    def _require_management(self) -> None:
        if not self._may_change:
            raise PinMissing(
                "The card is changed only under its management key, and none was given; the operator has to "
                "give it."
            )

    def _certificate(self) -> SlotCertificate | None:
        with _refusals({}):
            return self._card.certificate(self._slot)

    def _holds_another_key(self, key: SlotKey) -> bool:
        certificate = self._certificate()
        return certificate is not None and certificate.key != key

    def _known_key(self) -> SlotKey:
        certificate = self._certificate()
        if certificate is None or certificate.key is None:
            raise Conflict(
                f"Slot {self._slot} of the card has no certificate that tells its key; generate a key first."
            )
        return certificate.key

    def _key_of_leaf(self, chain: Sequence[bytes]) -> SlotKey:
        """The key that the chain is for, if it is a chain."""
        try:
            key = SlotCertificate.of(self._slot, chain[0]).key
            if key is None:
                raise Conflict(_OTHER_KEY.format(slot=self._slot))
            check_chain(key.public_key_info, chain)
        except (IndexError, ValueError) as error:
            raise Conflict(
                "The certificate chain does not parse or is out of order; give certificates, leaf first."
            ) from error
        return key

    def _key_of(self, info: bytes) -> SlotKey:
        key = SlotKey.of(self._slot, PublicKey(load_der_public_key(info)))
        assert key is not None, "made by an algorithm that PIV has"
        return key

    def _prove(self, key: SlotKey) -> None:
        scheme = key.schemes[0]
        content = _PROOF + self._random(_NONCE_LENGTH)
        if not key.public.has_signed(scheme, self._card.sign(key, scheme, content), content):
            raise Conflict(_OTHER_KEY.format(slot=self._slot))

    def _signer(self, key: SlotKey) -> Callable[[SignatureScheme, bytes], bytes]:
        def sign(scheme: SignatureScheme, content: bytes) -> bytes:
            signature = self._card.sign(key, scheme, content)
            if not key.public.has_signed(scheme, signature, content):
                raise Conflict(_STALE.format(slot=self._slot))
            return signature

        return sign

    def _placeholder(self, key: SlotKey) -> bytes:
        """A certificate that the key signed for itself, which says nothing but the public key."""
        elsewhere = KeyElsewhere.of(key.public_key_info, key.schemes, self._signer(key))
        builder = (
            x509.CertificateBuilder()
            .subject_name(PLACEHOLDER)
            .issuer_name(PLACEHOLDER)
            .public_key(elsewhere.stand_in.public_key())
            .serial_number(1)
            .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
            .not_valid_after(_END_OF_TIME)
        )
        signed = builder.sign(elsewhere.stand_in, elsewhere.digest, rsa_padding=elsewhere.rsa_padding)
        return signed.public_bytes(Encoding.DER)

    def _put_certificate(self, certificate: bytes) -> None:
        """An empty one deletes what is there."""
        value = encode_certificate(certificate) if certificate else b""
        commands.put_data(self._card.channel, self._slot.certificate_tag, value)


def _refusals(meanings: Mapping[StatusWord, str]) -> AbstractContextManager[None]:
    no_room = dict.fromkeys((StatusWord.NOT_ENOUGH_MEMORY, StatusWord.WRONG_LENGTH), _NO_ROOM)
    return refusals({**no_room, **meanings})
