"""Ephemeral key exchange: our half of each group, and the secret that both halves make.

The same halves serve a `key_share` of TLS 1.3 (RFC 8446 section 4.2.8) and a ClientKeyExchange of
TLS 1.2 (RFC 8422 section 5.7). A half is used once and then forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vmtoken.tls.codes import NamedGroup
from vmtoken.tls.errors import IllegalParameter


class KeyExchange(Protocol):
    """Our half of one group."""

    @property
    def group(self) -> NamedGroup:
        """The group that the half belongs to."""
        ...

    @property
    def public(self) -> bytes:
        """What goes on the wire."""
        ...

    def shared_secret(self, peer: bytes) -> bytes:
        """The secret made with the server's half; raises `IllegalParameter` if that is not of the group."""
        ...


def generate(groups: Sequence[NamedGroup]) -> tuple[KeyExchange, ...]:
    """Fresh halves, one a group, in order; those that use X25519 share one pair.

    Sharing within one ClientHello is what draft-ietf-tls-hybrid-design section 3.2 allows: the server
    takes one of them, and the cost of a second pair is saved.
    """
    x25519: X25519KeyExchange | None = None
    halves: list[KeyExchange] = []
    for group in groups:
        match group:
            case NamedGroup.X25519:
                x25519 = x25519 or X25519KeyExchange.generate()
                halves.append(x25519)
            case NamedGroup.X25519MLKEM768:
                x25519 = x25519 or X25519KeyExchange.generate()
                halves.append(X25519MlKem768KeyExchange.generate(x25519))
            case _:
                halves.append(EcdhKeyExchange.generate(group))
    return tuple(halves)


@dataclass(frozen=True, slots=True)
class X25519KeyExchange:
    """RFC 7748 section 6.1: 32 octets each way, a secret of 32."""

    group: ClassVar[NamedGroup] = NamedGroup.X25519

    private: X25519PrivateKey = field(repr=False)
    public: bytes

    @classmethod
    def generate(cls) -> X25519KeyExchange:
        """A fresh pair."""
        return cls.of(X25519PrivateKey.generate())

    @classmethod
    def of(cls, private: X25519PrivateKey) -> X25519KeyExchange:
        """The half that belongs to a private key."""
        return cls(private, private.public_key().public_bytes_raw())

    def shared_secret(self, peer: bytes) -> bytes:
        """Refuses the points of small order, whose secret is all zero (RFC 8446 section 7.4.2)."""
        try:
            return self.private.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError as error:
            raise IllegalParameter("the server's X25519 key is not a usable point") from error


@dataclass(frozen=True, slots=True)
class EcdhKeyExchange:
    """ECDH on a NIST curve with uncompressed points (RFC 8446 section 4.2.8.2)."""

    group: NamedGroup
    private: ec.EllipticCurvePrivateKey = field(repr=False)
    public: bytes

    @classmethod
    def generate(cls, group: NamedGroup) -> EcdhKeyExchange:
        """A fresh pair; `group` is secp256r1 or secp384r1."""
        private = ec.generate_private_key(_CURVES[group])
        public = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return cls(group, private, public)

    def shared_secret(self, peer: bytes) -> bytes:
        """The x coordinate; the point must be uncompressed and on the curve."""
        if len(peer) != len(self.public):
            raise IllegalParameter(f"the server's {self.group.name} point has {len(peer)} octets")
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(self.private.curve, peer)
        except ValueError as error:
            raise IllegalParameter(f"the server's {self.group.name} point is not on the curve") from error
        return self.private.exchange(ec.ECDH(), point)


@dataclass(frozen=True, slots=True)
class X25519MlKem768KeyExchange:
    """draft-ietf-tls-ecdhe-mlkem: in shares and in the secret, ML-KEM comes first.

    Ours is an encapsulation key of 1184 octets and a point of 32, the server's a ciphertext of
    1088 and a point of 32; the secret has 32 + 32.
    """

    group: ClassVar[NamedGroup] = NamedGroup.X25519MLKEM768
    _CIPHERTEXT_LENGTH: ClassVar[int] = 1088

    decapsulation_key: MLKEM768PrivateKey = field(repr=False)
    x25519: X25519KeyExchange
    public: bytes = field(repr=False)

    @classmethod
    def generate(cls, x25519: X25519KeyExchange) -> X25519MlKem768KeyExchange:
        """A fresh ML-KEM pair beside an X25519 one."""
        private = MLKEM768PrivateKey.generate()
        return cls(private, x25519, private.public_key().public_bytes_raw() + x25519.public)

    def shared_secret(self, peer: bytes) -> bytes:
        """Both secrets, one behind the other; an altered ciphertext shows in Finished."""
        ciphertext, point = peer[: self._CIPHERTEXT_LENGTH], peer[self._CIPHERTEXT_LENGTH :]
        try:
            secret = self.decapsulation_key.decapsulate(ciphertext)
        except ValueError as error:
            raise IllegalParameter("the server's ML-KEM-768 ciphertext has a wrong length") from error
        return secret + self.x25519.shared_secret(point)


_CURVES: dict[NamedGroup, ec.EllipticCurve] = {
    NamedGroup.SECP256R1: ec.SECP256R1(),
    NamedGroup.SECP384R1: ec.SECP384R1(),
}
