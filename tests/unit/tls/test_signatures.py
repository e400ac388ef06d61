"""Signature schemes: what fits which key in which version, and that verification notices everything."""

from __future__ import annotations

import pytest

from tests.support.pki import KeyKind, client_identity
from vmtoken.tls.codes import ProtocolVersion, SignatureScheme
from vmtoken.tls.errors import DecryptError, IllegalParameter
from vmtoken.tls.signatures import (
    DEFAULT_SCHEMES,
    PublicKey,
    client_content,
    first_common,
    server_content,
    sign,
)

TLS12, TLS13 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
S = SignatureScheme

RSA_IN_TLS13 = {S.RSA_PSS_RSAE_SHA256, S.RSA_PSS_RSAE_SHA384, S.RSA_PSS_RSAE_SHA512}
RSA_IN_TLS12 = RSA_IN_TLS13 | {S.RSA_PKCS1_SHA256, S.RSA_PKCS1_SHA384, S.RSA_PKCS1_SHA512}

SCHEMES_OF_KEYS = {
    KeyKind.ECDSA_P256: ({S.ECDSA_SECP256R1_SHA256}, {S.ECDSA_SECP256R1_SHA256, S.ECDSA_SECP384R1_SHA384}),
    KeyKind.ECDSA_P384: ({S.ECDSA_SECP384R1_SHA384}, {S.ECDSA_SECP256R1_SHA256, S.ECDSA_SECP384R1_SHA384}),
    KeyKind.ED25519: ({S.ED25519}, {S.ED25519}),
    KeyKind.RSA_2048: (RSA_IN_TLS13, RSA_IN_TLS12),
    KeyKind.RSA_3072: (RSA_IN_TLS13, RSA_IN_TLS12),
    KeyKind.RSA_PSS_2048: (
        {S.RSA_PSS_PSS_SHA256, S.RSA_PSS_PSS_SHA384, S.RSA_PSS_PSS_SHA512},
        {S.RSA_PSS_PSS_SHA256, S.RSA_PSS_PSS_SHA384, S.RSA_PSS_PSS_SHA512},
    ),
    KeyKind.ML_DSA_44: ({S.MLDSA44}, set()),
    KeyKind.ML_DSA_65: ({S.MLDSA65}, set()),
    KeyKind.ML_DSA_87: ({S.MLDSA87}, set()),
}
"""RFC 8446 section 4.2.3: in TLS 1.3, and in TLS 1.2, where ECDSA schemes do not name the curve."""


def public_key(kind: KeyKind) -> PublicKey:
    return PublicKey.of(client_identity(kind).certificate)


@pytest.mark.parametrize("kind", KeyKind)
def test_a_key_fits_the_schemes_of_its_kind_and_no_other(kind: KeyKind) -> None:
    key = public_key(kind)
    in_tls13, in_tls12 = SCHEMES_OF_KEYS[kind]
    assert {scheme for scheme in DEFAULT_SCHEMES if key.can_use(scheme, TLS13)} == in_tls13
    assert {scheme for scheme in DEFAULT_SCHEMES if key.can_use(scheme, TLS12)} == in_tls12
    assert set(key.schemes()) == in_tls13 | in_tls12
    assert key.schemes()[0] in in_tls13


@pytest.mark.parametrize("kind", KeyKind)
def test_every_scheme_of_a_key_signs_and_verifies(kind: KeyKind) -> None:
    identity, key = client_identity(kind), public_key(kind)
    for scheme in key.schemes():
        version = TLS13 if key.can_use(scheme, TLS13) else TLS12
        signature = sign(identity.key, scheme, b"content")
        key.verify(scheme, version, signature, b"content")
        with pytest.raises(DecryptError):
            key.verify(scheme, version, signature, b"another content")
        with pytest.raises(DecryptError):
            key.verify(scheme, version, signature[:-1] + bytes([signature[-1] ^ 1]), b"content")
        with pytest.raises(DecryptError):
            key.verify(scheme, version, b"", b"content")


@pytest.mark.parametrize("kind", KeyKind)
def test_a_scheme_that_does_not_fit_the_key_is_an_illegal_parameter(kind: KeyKind) -> None:
    key = public_key(kind)
    for scheme in (*(s for s in SignatureScheme if not key.can_use(s, TLS13)), 0x0201, 0xDADA):
        with pytest.raises(IllegalParameter):
            key.verify(scheme, TLS13, b"signature", b"content")


def test_certificate_verify_content_is_padded_and_names_the_side() -> None:
    """RFC 8446 section 4.4.3."""
    digest = bytes.fromhex("01" * 32)
    expected = "20" * 64 + b"TLS 1.3, server CertificateVerify".hex() + "00" + "01" * 32
    assert server_content(digest).hex() == expected
    assert client_content(digest) == server_content(digest).replace(b"server", b"client")


def test_the_first_of_our_schemes_that_the_peer_takes_is_chosen() -> None:
    key = public_key(KeyKind.RSA_2048)
    ours = key.schemes()
    assert (
        first_common(ours, [S.RSA_PSS_RSAE_SHA512, S.RSA_PSS_RSAE_SHA256], key, TLS13)
        is S.RSA_PSS_RSAE_SHA256
    )
    assert first_common(ours, [S.RSA_PKCS1_SHA256], key, TLS13) is None
    assert first_common(ours, [S.RSA_PKCS1_SHA256], key, TLS12) is S.RSA_PKCS1_SHA256
    assert first_common(ours, [S.ED25519, 0xFAFA], key, TLS13) is None
