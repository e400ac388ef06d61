"""RSA encodings, judged by OpenSSL: a raw signature over the encoded message must verify there."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from vmtoken.emsa import emsa_pkcs1_v1_5, emsa_pss, encoded_message
from vmtoken.tls.codes import ProtocolVersion, SignatureScheme
from vmtoken.tls.signatures import PublicKey

CONTENT = b"what the handshake signs"
SIZES = (2048, 2050, 3072)
"""2050: the first octet of the encoded message has bits to spare."""

KEYS = {size: rsa.generate_private_key(65537, size) for size in SIZES}
SCHEMES = [scheme for scheme in SignatureScheme if scheme.name.startswith("RSA_P")]


def raw_signature(key: rsa.RSAPrivateKey, message: bytes) -> bytes:
    """RSASP1 (RFC 8017 section 5.2.1)."""
    numbers = key.private_numbers()
    signature = pow(int.from_bytes(message, "big"), numbers.d, numbers.public_numbers.n)
    return signature.to_bytes((key.key_size + 7) // 8, "big")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_openssl_verifies_what_was_encoded(scheme: SignatureScheme, size: int) -> None:
    key = KEYS[size]
    signature = raw_signature(key, encoded_message(scheme, CONTENT, size))
    public = PublicKey(key.public_key(), is_rsa_pss="PSS_PSS" in scheme.name)
    public.verify(scheme, ProtocolVersion.TLS_1_2, signature, CONTENT)


def test_the_salt_is_fresh_each_time() -> None:
    first, second = (encoded_message(SignatureScheme.RSA_PSS_RSAE_SHA256, CONTENT, 2048) for _ in range(2))
    assert first != second


def test_keys_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        emsa_pss("sha512", bytes(64), 1031, bytes(64))
    with pytest.raises(ValueError, match="too short"):
        emsa_pkcs1_v1_5(bytes(51), 61)


def test_other_schemes_have_no_encoding() -> None:
    with pytest.raises(ValueError, match="not an RSA scheme"):
        encoded_message(SignatureScheme.ED25519, CONTENT, 2048)
