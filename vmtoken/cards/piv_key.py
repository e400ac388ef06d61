"""SlotKey: what a key of a PIV card can sign, and how it is asked to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vmtoken.cards.piv_codes import Algorithm, Slot
from vmtoken.cards.piv_objects import algorithm_of
from vmtoken.codec import DecodeError
from vmtoken.emsa import encoded_message
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.errors import BadCertificate
from vmtoken.tls.ocsp import UNPARSABLE
from vmtoken.tls.signatures import PublicKey

_ECDSA_HASHES = {
    SignatureScheme.ECDSA_SECP256R1_SHA256: "sha256",
    SignatureScheme.ECDSA_SECP384R1_SHA384: "sha384",
}

PLACEHOLDER = x509.Name.from_rfc4514_string("CN=vmtoken: no certificate yet")
"""Subject and issuer of the certificate that only says which public key a slot has.

A PIV card tells the public key of a fresh key once; a certificate in its slot is the one lasting
place for it.
"""


@dataclass(frozen=True, slots=True)
class SlotKey:
    """A key that is known by its public half."""

    slot: Slot
    public: PublicKey
    algorithm: Algorithm

    @classmethod
    def of(cls, slot: Slot, public: PublicKey) -> SlotKey | None:
        """None for a key that we cannot use."""
        algorithm = algorithm_of(public.key)
        return None if algorithm is None else cls(slot, public, algorithm)

    @property
    def schemes(self) -> tuple[SignatureScheme, ...]:
        """Best first: both paddings for RSA, for they are made on our side."""
        return self.public.schemes()

    @property
    def public_key_info(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        assert isinstance(self.public.key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return self.public.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def challenge(self, scheme: SignatureScheme, content: bytes) -> bytes:
        """What the card has to sign as it is: a digest, or an encoded message as long as the modulus."""
        if isinstance(self.public.key, rsa.RSAPublicKey):
            return encoded_message(scheme, content, self.public.key.key_size)
        assert isinstance(self.public.key, ec.EllipticCurvePublicKey)
        size = (self.public.key.key_size + 7) // 8
        # the leftmost bits of a longer digest (FIPS 186-5 section 6.4.1); a shorter one is the same number
        return hashlib.new(_ECDSA_HASHES[scheme], content).digest()[:size].rjust(size, b"\0")


@dataclass(frozen=True, slots=True)
class SlotCertificate:
    """A certificate, and the key that it is for."""

    octets: bytes
    """DER."""

    key: SlotKey | None
    """None for a key that we cannot use."""

    is_placeholder: bool
    """Made by us; it identifies nobody."""

    @classmethod
    def of(cls, slot: Slot, untrusted_octets: bytes) -> SlotCertificate:
        """Raises `DecodeError` for octets that are no certificate."""
        try:
            certificate = x509.load_der_x509_certificate(untrusted_octets)
            public = PublicKey.of(certificate)
        except (*UNPARSABLE, BadCertificate) as error:
            raise DecodeError(f"the certificate of slot {slot} cannot be read") from error
        is_placeholder = certificate.subject == PLACEHOLDER == certificate.issuer
        return cls(untrusted_octets, SlotKey.of(slot, public), is_placeholder)
