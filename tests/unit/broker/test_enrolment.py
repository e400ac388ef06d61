from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dom0_broker.domains import DomainIdentity, checked_name
from dom0_broker.enrolment import EnrolmentCa
from dom0_broker.safe import Safe
from dom0_broker.store import Store
from vmtoken.errors import Conflict, InvalidRequest
from vmtoken.secret import SecretBytes

NOW = datetime.now(UTC)
WEB01 = DomainIdentity(uuid.UUID(int=1), "web01")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "broker.sqlite")
    yield store
    store.close()


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str = "somebody else") -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256()).public_bytes(Encoding.DER)


def test_certificate_is_for_the_key_of_the_request_and_the_name_of_the_vm(store: Store) -> None:
    ca = EnrolmentCa.of(store, Safe(SecretBytes(b"k" * 32)), NOW)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = x509.load_der_x509_certificate(ca.sign_vm(WEB01, request(key), NOW))
    issuer = x509.load_der_x509_certificate(ca.certificate)
    certificate.verify_directly_issued_by(issuer)
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "CN=web01"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc


def test_ca_is_the_same_after_a_restart_and_its_key_is_sealed(store: Store) -> None:
    safe = Safe(SecretBytes(b"k" * 32))
    first = EnrolmentCa.of(store, safe, NOW)
    assert EnrolmentCa.of(store, safe, NOW + timedelta(days=1)).certificate == first.certificate
    with pytest.raises(Conflict, match="enrolment CA"):
        EnrolmentCa.of(store, Safe(SecretBytes(b"x" * 32)), NOW)


@pytest.mark.parametrize(
    "untrusted",
    [
        b"",
        b"not a request",
        request(ec.generate_private_key(ec.SECP256R1()))[:-4] + b"\0\0\0\0",
        request(rsa.generate_private_key(65537, 2048)),
        request(ec.generate_private_key(ec.SECP521R1())),
    ],
    ids=["empty", "text", "wrong signature", "RSA", "P-521"],
)
def test_request_that_is_none_is_refused(store: Store, untrusted: bytes) -> None:
    ca = EnrolmentCa.of(store, Safe(SecretBytes(b"k" * 32)), NOW)
    with pytest.raises(InvalidRequest):
        ca.sign_vm(WEB01, untrusted, NOW)


def test_secret_opens_for_its_purpose_only() -> None:
    safe = Safe(SecretBytes(b"k" * 32))
    sealed = safe.seal(SecretBytes(b"1234"), "user PIN of token web")
    assert safe.open(sealed, "user PIN of token web").reveal() == b"1234"
    assert safe.seal(SecretBytes(b"1234"), "user PIN of token web") != sealed
    for octets, purpose in (
        (sealed, "user PIN of token other"),
        (sealed[:-1], "user PIN of token web"),
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), "user PIN of token web"),
        (b"", "user PIN of token web"),
    ):
        with pytest.raises(Conflict, match=purpose):
            safe.open(octets, purpose)


@pytest.mark.parametrize("name", ["web01", "a", "A.b-c_d", "0", "x" * 63])
def test_name(name: str) -> None:
    assert checked_name(name, "VM") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-x", "a/b", "a b", "x" * 64, "ü", "a\n", "*", "6f3c1e7a-0b1d-4f5e-9a44-1c2d3e4f5a6b"],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_name(name, "VM")
