"""Requests of keys that are elsewhere, judged by OpenSSL."""

from __future__ import annotations

import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from tests.support.pki import KeyKind, generate_key
from vmtoken import csr
from vmtoken.errors import InvalidRequest
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.signatures import PublicKey, sign

KINDS = (KeyKind.ECDSA_P256, KeyKind.ECDSA_P384, KeyKind.ED25519, KeyKind.RSA_2048)
SUBJECT = "CN=web01,O=Example\\, Inc."


def request(
    kind: KeyKind, schemes: tuple[SignatureScheme, ...] | None = None, subject: str = SUBJECT
) -> bytes:
    key = generate_key(kind)
    public = key.public_key()
    return csr.certificate_request(
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        PublicKey(public).schemes() if schemes is None else schemes,
        lambda scheme, content: sign(key, scheme, content),
        subject,
        ("web01.example", "www.example"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_openssl_verifies_the_request(kind: KeyKind) -> None:
    done = subprocess.run(
        ["openssl", "req", "-inform", "DER", "-noout", "-verify", "-text"],
        input=request(kind),
        capture_output=True,
        check=True,
    )
    assert b"OK" in done.stderr
    assert b"DNS:web01.example, DNS:www.example" in done.stdout


def test_names_are_those_asked_for() -> None:
    read = x509.load_der_x509_csr(request(KeyKind.ECDSA_P256))
    assert read.subject.rfc4514_string() == SUBJECT
    names = read.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    assert isinstance(names.value, x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["web01.example", "www.example"]


def test_key_without_pkcs1_signs_with_pss() -> None:
    read = x509.load_der_x509_csr(request(KeyKind.RSA_2048, (SignatureScheme.RSA_PSS_RSAE_SHA256,)))
    assert read.signature_algorithm_oid == x509.SignatureAlgorithmOID.RSASSA_PSS
    assert read.is_signature_valid


def test_key_that_can_sign_nothing_makes_no_request() -> None:
    with pytest.raises(InvalidRequest, match="use an ECDSA"):
        request(KeyKind.ECDSA_P256, ())
    with pytest.raises(InvalidRequest, match="use an ECDSA"):
        request(KeyKind.ML_DSA_65)


@pytest.mark.parametrize("subject", ["web01", "CN", "=", "XYZ=1"])
def test_subject_must_be_a_name(subject: str) -> None:
    with pytest.raises(InvalidRequest, match="correct the names"):
        request(KeyKind.ECDSA_P256, subject=subject)


@pytest.mark.parametrize("name", ["", "a" * 256, "münchen.example"])
def test_dns_names_must_be_names(name: str) -> None:
    with pytest.raises(InvalidRequest, match="DNS name"):
        csr.certificate_request(b"", (), lambda scheme, content: b"", SUBJECT, (name,))


@pytest.mark.parametrize("kind", KINDS)
def test_stand_in_gives_nothing_away(kind: KeyKind) -> None:
    public = generate_key(kind).public_key()
    info = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = csr.KeyElsewhere.of(info, PublicKey(public).schemes(), lambda scheme, content: b"")
    with pytest.raises(TypeError, match="not here"):
        key.stand_in.private_bytes(None, None, None)
