"""The enrolment CA: signs both ends of TCP links, and nothing else.

Its key is in the store, sealed. The broker's own certificate is made new at every start and its key never
leaves memory; a VM's certificate counts only as long as its SHA-256 is pinned to the VM.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dom0_broker.domains import DomainIdentity
from dom0_broker.safe import Safe
from dom0_broker.store import CaRecord, Store
from vmtoken.errors import InvalidRequest
from vmtoken.secret import SecretBytes
from vmtoken.transport import tcp

BROKER_NAME: Final = "vmtoken-broker"
"""In every broker's certificate, for agents that reach it at an address of no name."""

_PURPOSE: Final = "enrolment CA"
_CA_LIFETIME: Final = timedelta(days=7300)
_VM_LIFETIME: Final = timedelta(days=825)
_BROKER_LIFETIME: Final = timedelta(days=3650)
"""Longer than a broker runs; its key is gone when it stops."""

_SKEW: Final = timedelta(hours=1)
"""Guests' clocks may be behind ours."""


class EnrolmentCa:
    """A CA with its key at hand."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def of(cls, store: Store, safe: Safe, now: datetime) -> EnrolmentCa:
        """The CA of this broker, made when it is first asked for."""
        record = store.enrolment_ca()
        if record is None:
            record = _new_ca(safe, now)
            store.keep_enrolment_ca(record)
        key = load_der_private_key(safe.open(record.sealed_key, _PURPOSE).reveal(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey), "we made it"
        return cls(x509.load_der_x509_certificate(record.certificate), key)

    @property
    def certificate(self) -> bytes:
        """DER."""
        return self._certificate.public_bytes(Encoding.DER)

    def sign_vm(self, vm: DomainIdentity, untrusted_request: bytes, now: datetime) -> bytes:
        """An enrolment certificate for the key of a PKCS#10 request, DER. Raises `InvalidRequest`."""
        uri = x509.UniformResourceIdentifier(f"urn:uuid:{vm.uuid}")
        builder = _builder(vm.name, now, _VM_LIFETIME)
        builder = builder.public_key(_requested_key(untrusted_request))
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        return self._signed(builder, ExtendedKeyUsageOID.CLIENT_AUTH).public_bytes(Encoding.DER)

    def server_context(self, names: Sequence[str], now: datetime) -> ssl.SSLContext:
        """For the broker's end of TCP links, with a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(BROKER_NAME, now, _BROKER_LIFETIME).public_key(key.public_key())
        alternatives = [_general_name(name) for name in dict.fromkeys((BROKER_NAME, *names))]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = self._signed(builder, ExtendedKeyUsageOID.SERVER_AUTH).public_bytes(Encoding.PEM)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        ca = self._certificate.public_bytes(Encoding.PEM)
        with _in_memory(certificate) as leaf, _in_memory(private) as secret, _in_memory(ca) as anchor:
            return tcp.server_context(leaf, secret, anchor)

    def _signed(self, builder: x509.CertificateBuilder, usage: x509.ObjectIdentifier) -> x509.Certificate:
        builder = builder.issuer_name(self._certificate.subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return builder.add_extension(issuer, critical=False).sign(self._key, SHA256())


def _new_ca(safe: Safe, now: datetime) -> CaRecord:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("vmtoken enrolment", now, _CA_LIFETIME).public_key(key.public_key())
    builder = builder.issuer_name(_name("vmtoken enrolment"))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_CA_KEY_USAGE, critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    secret = SecretBytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    sealed = safe.seal(secret, _PURPOSE)
    secret.wipe()
    return CaRecord(builder.sign(key, SHA256()).public_bytes(Encoding.DER), sealed)


_CA_KEY_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _builder(name: str, now: datetime, lifetime: timedelta) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(_name(name)).serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _SKEW).not_valid_after(now + lifetime)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _requested_key(untrusted_request: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request that its holder signed; P-256 or P-384."""
    try:
        request = x509.load_der_x509_csr(untrusted_request)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidRequest("The certificate request is not PKCS#10 in DER.") from error
    if not signed:
        raise InvalidRequest("The certificate request is not signed with its own key.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.key_size not in (256, 384):
        raise InvalidRequest("An enrolment key is ECDSA on P-256 or P-384.")
    return key


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[Path]:
    """A file that is nowhere on disk: `ssl` takes keys from files only."""
    file = os.memfd_create("vmtoken", os.MFD_CLOEXEC)
    try:
        os.write(file, content)
        yield Path(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
