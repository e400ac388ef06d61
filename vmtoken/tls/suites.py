"""The cipher suites that this engine speaks: AEAD, hash, key and IV sizes, usage limits."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from vmtoken.tls.codes import CipherSuite, ProtocolVersion

TAG_LENGTH = 16
"""Octets that each of our AEADs adds to the plaintext."""

NONCE_LENGTH = 12
"""Octets of the nonce of each of our AEADs."""


class Aead(Protocol):
    """What the record layer needs of an AEAD."""

    def encrypt_into(
        self,
        nonce: bytes | bytearray | memoryview,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | bytearray | memoryview | None,
        buf: bytearray | memoryview,
    ) -> int:
        """Write ciphertext and tag to `buf`, which has exactly their length."""
        ...

    def decrypt_into(
        self,
        nonce: bytes | bytearray | memoryview,
        data: bytes | bytearray | memoryview,
        associated_data: bytes | bytearray | memoryview | None,
        buf: bytearray | memoryview,
    ) -> int:
        """Write the plaintext to `buf`, which has exactly its length; raises `InvalidTag`."""
        ...


class Authentication(enum.Enum):
    """The kind of key that signs the server's key exchange in TLS 1.2."""

    ANY = "any"
    ECDSA = "ecdsa"
    RSA = "rsa"


@dataclass(frozen=True, slots=True)
class Suite:
    """One cipher suite. Lengths are in octets."""

    code: CipherSuite
    version: ProtocolVersion
    """The one version that the suite belongs to."""

    authentication: Authentication
    hash_name: str
    """As `hashlib` spells it: the hash of transcript, HKDF and PRF."""

    hash_length: int
    aead: Callable[[bytes], Aead]
    key_length: int
    fixed_iv_length: int
    """The part of the nonce that comes from the key schedule: 4 for GCM in TLS 1.2, otherwise 12."""

    explicit_nonce_length: int
    """The part of the nonce that goes with each record: 8 for GCM in TLS 1.2, otherwise 0."""

    record_limit: int
    """How many records one key may protect, either way."""

    @property
    def secret_length(self) -> int:
        """Octets of each secret of a `KeyBlock`: a traffic secret in TLS 1.3, write key and IV in TLS 1.2."""
        if self.version == ProtocolVersion.TLS_1_3:
            return self.hash_length
        return self.key_length + self.fixed_iv_length


def suite_of(code: int) -> Suite | None:
    """The suite with this code point, None if this engine does not speak it."""
    return _SUITES.get(code)


_GCM_RECORD_LIMIT = 23_726_566
"""2^24.5 full-size records keep the advantage against AES-GCM below 2^-57 (RFC 8446 section 5.5)."""

_CHACHA_RECORD_LIMIT = 2**62
"""The sequence number wraps before ChaCha20-Poly1305 wears out (RFC 8446 section 5.5); stop well before."""


def _tls13(code: CipherSuite, hash_name: str, aead: Callable[[bytes], Aead], key_length: int) -> Suite:
    return Suite(
        code=code,
        version=ProtocolVersion.TLS_1_3,
        authentication=Authentication.ANY,
        hash_name=hash_name,
        hash_length=_HASH_LENGTHS[hash_name],
        aead=aead,
        key_length=key_length,
        fixed_iv_length=NONCE_LENGTH,
        explicit_nonce_length=0,
        record_limit=_record_limit(aead),
    )


def _tls12(
    code: CipherSuite,
    authentication: Authentication,
    hash_name: str,
    aead: Callable[[bytes], Aead],
    key_length: int,
) -> Suite:
    fixed_iv_length = 4 if aead is AESGCM else NONCE_LENGTH  # RFC 5288 section 3, RFC 7905 section 2
    return Suite(
        code=code,
        version=ProtocolVersion.TLS_1_2,
        authentication=authentication,
        hash_name=hash_name,
        hash_length=_HASH_LENGTHS[hash_name],
        aead=aead,
        key_length=key_length,
        fixed_iv_length=fixed_iv_length,
        explicit_nonce_length=NONCE_LENGTH - fixed_iv_length,
        record_limit=_record_limit(aead),
    )


def _record_limit(aead: Callable[[bytes], Aead]) -> int:
    return _GCM_RECORD_LIMIT if aead is AESGCM else _CHACHA_RECORD_LIMIT


_HASH_LENGTHS = {"sha256": 32, "sha384": 48}

_SUITES: dict[int, Suite] = {
    suite.code: suite
    for suite in (
        _tls13(CipherSuite.TLS_AES_128_GCM_SHA256, "sha256", AESGCM, 16),
        _tls13(CipherSuite.TLS_AES_256_GCM_SHA384, "sha384", AESGCM, 32),
        _tls13(CipherSuite.TLS_CHACHA20_POLY1305_SHA256, "sha256", ChaCha20Poly1305, 32),
        _tls12(
            CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, Authentication.ECDSA, "sha256", AESGCM, 16
        ),
        _tls12(
            CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, Authentication.ECDSA, "sha384", AESGCM, 32
        ),
        _tls12(
            CipherSuite.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            Authentication.ECDSA,
            "sha256",
            ChaCha20Poly1305,
            32,
        ),
        _tls12(CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, Authentication.RSA, "sha256", AESGCM, 16),
        _tls12(CipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, Authentication.RSA, "sha384", AESGCM, 32),
        _tls12(
            CipherSuite.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            Authentication.RSA,
            "sha256",
            ChaCha20Poly1305,
            32,
        ),
    )
}
