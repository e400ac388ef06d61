"""GENERAL AUTHENTICATE as the card does it (NIST SP 800-73-4 part 2, section 3.2.4 and appendix A)."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from dom0_broker.backends.software import raw_rsa
from dom0_broker.backends.software.card_error import CardError
from dom0_broker.backends.software.keys import PrivateKey
from vmtoken.cards.piv_codes import Algorithm
from vmtoken.cards.piv_codes import DynamicAuthentication as Tag
from vmtoken.cards.piv_management import ManagementKey
from vmtoken.iso7816.status import StatusWord

_Template = Mapping[int, bytes]


_NAMES = {Algorithm.TRIPLE_DES: (0x00, Algorithm.TRIPLE_DES)}
"""Triple DES has two identifiers (SP 800-78-4 table 6-2)."""


class ManagementAuthentication:
    """Who has the management key: mutual authentication, or external without the card's proof."""

    def __init__(self, key: Callable[[], ManagementKey], random: Callable[[int], bytes]) -> None:
        self._key = key
        self._random = random
        self._witness = b""
        self._challenge = b""
        self.is_authenticated = False

    def forget(self) -> None:
        """Nobody has shown it."""
        self._witness = self._challenge = b""
        self.is_authenticated = False

    def answer(self, algorithm: int, template: _Template) -> dict[Tag, bytes]:
        """One step; whatever is out of order ends the authentication."""
        key = self._key()
        if algorithm not in _NAMES.get(key.algorithm, (key.algorithm,)):
            raise CardError(StatusWord.INCORRECT_P1_P2)
        witness, challenge = self._witness, self._challenge
        self.forget()
        match dict(template):
            case {Tag.WITNESS: b"", **others} if not others:
                self._witness = self._random(key.block_size)
                return {Tag.WITNESS: key.encrypt(self._witness)}
            case {Tag.CHALLENGE: b"", **others} if not others:
                self._challenge = self._random(key.block_size)
                return {Tag.CHALLENGE: self._challenge}
            case {Tag.WITNESS: shown, Tag.CHALLENGE: theirs, **others} if not any(others.values()):
                self._accept(witness, shown)
                return {Tag.RESPONSE: key.encrypt(self._block(theirs))}
            case {Tag.RESPONSE: response, **others} if not others:
                self._accept(key.encrypt(challenge) if challenge else b"", response)
                return {}
        raise CardError(StatusWord.WRONG_DATA)

    def _accept(self, expected: bytes, shown: bytes) -> None:
        if not expected or not hmac.compare_digest(expected, shown):
            raise CardError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)
        self.is_authenticated = True

    def _block(self, challenge: bytes) -> bytes:
        if len(challenge) != self._key().block_size:
            self.forget()
            raise CardError(StatusWord.WRONG_DATA)
        return challenge


def use_private_key(key: PrivateKey, template: _Template) -> bytes:
    """What RESPONSE asks for: a signature of a challenge, or a shared secret with another's point."""
    match dict(template):
        case {Tag.RESPONSE: b"", Tag.CHALLENGE: challenge, **others} if not others:
            return _signed(key, challenge)
        case {Tag.RESPONSE: b"", Tag.EXPONENTIATION: point, **others} if not others:
            return _agreed(key, point)
    raise CardError(StatusWord.WRONG_DATA)


_HASHES: dict[str, hashes.SHA256 | hashes.SHA384] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
}
"""By curve: a hash whose digests are as long as its numbers; which one made the digest does not matter."""


def _signed(key: PrivateKey, challenge: bytes) -> bytes:
    try:
        if isinstance(key, rsa.RSAPrivateKey):
            return raw_rsa.private_operation(key, challenge)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        digest = _HASHES[key.curve.name]
        padded = challenge.rjust(digest.digest_size, b"\0")
        return key.sign(padded, ec.ECDSA(Prehashed(digest)))
    except ValueError:
        raise CardError(StatusWord.WRONG_DATA) from None


def _agreed(key: PrivateKey, point: bytes) -> bytes:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CardError(StatusWord.WRONG_DATA)
    try:
        peer = ec.EllipticCurvePublicKey.from_encoded_point(key.curve, point)
        return key.exchange(ec.ECDH(), peer)
    except ValueError:
        raise CardError(StatusWord.WRONG_DATA) from None
