"""What every `SigningKey` must do; the cryptographic library judges its signatures, not our engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from tests.support.signing_keys import KeyHolder
from vmtoken.errors import TokenUnavailable
from vmtoken.tls.codes import SignatureScheme as Scheme
from vmtoken.token import SigningKey

Verify = Callable[[Any, bytes, bytes], None]
"""Public key, signature, content."""


@pytest.fixture
def key(key_holder: KeyHolder) -> Iterator[SigningKey]:
    key = key_holder.key()
    yield key
    key.close()


def ecdsa(digest: hashes.HashAlgorithm) -> Verify:
    return lambda key, signature, content: key.verify(signature, content, ec.ECDSA(digest))


def pkcs1(digest: hashes.HashAlgorithm) -> Verify:
    return lambda key, signature, content: key.verify(signature, content, padding.PKCS1v15(), digest)


def pss(digest: hashes.HashAlgorithm) -> Verify:
    pad = padding.PSS(padding.MGF1(digest), salt_length=digest.digest_size)
    return lambda key, signature, content: key.verify(signature, content, pad, digest)


def plain(key: Any, signature: bytes, content: bytes) -> None:
    key.verify(signature, content)


VERIFY: dict[Scheme, Verify] = {
    Scheme.ECDSA_SECP256R1_SHA256: ecdsa(hashes.SHA256()),
    Scheme.ECDSA_SECP384R1_SHA384: ecdsa(hashes.SHA384()),
    Scheme.ED25519: plain,
    Scheme.RSA_PKCS1_SHA256: pkcs1(hashes.SHA256()),
    Scheme.RSA_PKCS1_SHA384: pkcs1(hashes.SHA384()),
    Scheme.RSA_PKCS1_SHA512: pkcs1(hashes.SHA512()),
    Scheme.RSA_PSS_RSAE_SHA256: pss(hashes.SHA256()),
    Scheme.RSA_PSS_RSAE_SHA384: pss(hashes.SHA384()),
    Scheme.RSA_PSS_RSAE_SHA512: pss(hashes.SHA512()),
    Scheme.RSA_PSS_PSS_SHA256: pss(hashes.SHA256()),
    Scheme.RSA_PSS_PSS_SHA384: pss(hashes.SHA384()),
    Scheme.RSA_PSS_PSS_SHA512: pss(hashes.SHA512()),
    Scheme.MLDSA44: plain,
    Scheme.MLDSA65: plain,
    Scheme.MLDSA87: plain,
}

CONTENTS = {
    "nothing": b"",
    "a transcript hash of TLS 1.3": b" " * 64 + b"TLS 1.3, client CertificateVerify\0" + bytes(range(48)),
    "all messages of TLS 1.2": bytes(range(256)) * 64,
    "a whole number of hash blocks": bytes(128),
}


def test_chain_is_the_one_of_the_key(key: SigningKey, key_holder: KeyHolder) -> None:
    assert tuple(key.certificate_chain) == key_holder.identity.chain_der


def test_schemes_are_named_once_each(key: SigningKey) -> None:
    assert key.schemes
    assert len(set(key.schemes)) == len(key.schemes)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_every_scheme_signs_what_it_is_given(key: SigningKey, key_holder: KeyHolder, content: bytes) -> None:
    public_key = key_holder.identity.certificate.public_key()
    for scheme in key.schemes:
        signature = key.sign(scheme, content)
        VERIFY[scheme](public_key, signature, content)
        with pytest.raises(InvalidSignature):
            VERIFY[scheme](public_key, signature, content + b"!")


def test_other_schemes_are_refused_and_the_key_goes_on(key: SigningKey) -> None:
    for scheme in set(Scheme).difference(key.schemes):
        with pytest.raises(ValueError, match=scheme.name):
            key.sign(scheme, b"content")
    assert key.sign(key.schemes[0], b"content")


def test_many_signatures_in_a_row(key: SigningKey, key_holder: KeyHolder) -> None:
    """Components of an ECDSA signature are now and then short, or need a leading zero."""
    public_key, scheme = key_holder.identity.certificate.public_key(), key.schemes[0]
    for number in range(300 if isinstance(public_key, ec.EllipticCurvePublicKey) else 30):
        content = number.to_bytes(2, "big")
        VERIFY[scheme](public_key, key.sign(scheme, content), content)


def test_key_may_be_closed_twice_and_signs_no_more(key_holder: KeyHolder) -> None:
    key = key_holder.key()
    scheme = key.schemes[0]
    key.close()
    key.close()
    with pytest.raises(TokenUnavailable):
        key.sign(scheme, b"content")


def test_key_can_be_opened_again(key_holder: KeyHolder) -> None:
    for _ in range(3):
        key = key_holder.key()
        assert key.sign(key.schemes[0], b"content")
        key.close()
