"""A CA in a directory, for trials and labs: its key is in a file, and it signs whatever it is given.

`index.json` holds every serial number that was ever issued, and what was revoked. It is replaced in one step,
under a lock, before a certificate is handed out: two processes, or one that is killed, lose nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dom0_broker.backends.software.files import write_atomically
from dom0_broker.ctl.files import UnusableFile, write_private
from vmtoken.tls.ocsp import UNPARSABLE

MARK: Final = "LAB CA, NOT FOR PRODUCTION"
"""In the name of every such CA, so that nobody trusts one by mistake."""

LONGEST_CA: Final = 3650
LONGEST_LEAF: Final = 825
"""Days."""

REASONS: Final = {
    reason.value: reason
    for reason in x509.ReasonFlags
    if reason not in (x509.ReasonFlags.remove_from_crl, x509.ReasonFlags.certificate_hold)
}
"""RFC 5280 section 5.3.1, without those for a revocation that is taken back."""

_README: Final = f"{MARK}: whoever can read ca.key can make certificates. For trials and labs only.\n"
_SKEW: Final = timedelta(hours=1)
"""The clocks of servers may be behind ours."""

_MIN_RSA_BITS: Final = 2048

_LONGEST_NAME: Final = 64
"""Characters of a common name (RFC 5280 appendix A.1, ub-common-name)."""


class Issued(msgspec.Struct, frozen=True):
    """A line of the index."""

    serial: str
    """Hexadecimal, upper case, as OpenSSL shows it."""

    subject: str
    not_after: datetime
    revoked: datetime | None = None
    reason: str = ""


class Index(msgspec.Struct, frozen=True):
    """What the CA must not forget."""

    crl_number: int = 0
    issued: tuple[Issued, ...] = ()


@dataclass(frozen=True, slots=True)
class LabCa:
    """A CA with its key at hand. Methods raise `UnusableFile` for what they cannot work with."""

    directory: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, directory: Path, name: str, now: datetime, lifetime: timedelta) -> LabCa:
        """A new CA: DIRECTORY/ca.pem and ca.key; one that is there already stays."""
        if (directory / "ca.key").exists():
            raise UnusableFile(f"{directory}: holds a CA already; name another directory.")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _common_name(f"{name} ({MARK})")
        builder = _builder(subject, subject, now, now + lifetime).public_key(key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(ca=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        ca = cls(directory, builder.sign(key, SHA256()), key)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(directory / "ca.key", _pem_key(key))
        (directory / "ca.pem").write_bytes(ca.certificate.public_bytes(Encoding.PEM))
        (directory / "README").write_text(_README)
        return ca

    @classmethod
    def load(cls, directory: Path) -> LabCa:
        """The CA of a directory."""
        try:
            certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
            key = load_pem_private_key((directory / "ca.key").read_bytes(), None)
        except (OSError, ValueError) as error:
            what = "holds no lab CA; make one with 'vmtokenctl ca init'."
            raise UnusableFile(f"{directory}: {what}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UnusableFile(f"{directory / 'ca.key'}: is not a key of 'vmtokenctl ca init'.")
        return cls(directory, certificate, key)

    def sign(self, untrusted_request: bytes, now: datetime, lifetime: timedelta) -> x509.Certificate:
        """A client certificate for a PKCS#10 request, DER, no longer valid than the CA itself.

        Subject, key and subjectAltName are the request's; nothing else of it counts.
        """
        request = _checked_request(untrusted_request)
        builder = self._leaf_builder(request.subject, now, lifetime).public_key(request.public_key())
        if names := _alternative_names(request):
            builder = builder.add_extension(names, critical=not request.subject.rdns)
        return self._issue(builder, ExtendedKeyUsageOID.CLIENT_AUTH)

    def issue_server(self, names: Sequence[str], now: datetime, lifetime: timedelta) -> x509.Certificate:
        """A new key and certificate for a trial server: server.pem and server.key in the directory."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_general_name(each) for each in names])
        subject = _common_name(names[0])
        builder = self._leaf_builder(subject, now, lifetime).public_key(key.public_key())
        builder = builder.add_extension(alternatives, critical=False)
        certificate = self._issue(builder, ExtendedKeyUsageOID.SERVER_AUTH)
        write_private(self.directory / "server.key", _pem_key(key))
        (self.directory / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        return certificate

    def issued(self) -> tuple[Issued, ...]:
        """Everything that it ever issued, oldest first."""
        return self._read_index().issued

    def revoke(self, serial: int, reason: x509.ReasonFlags, now: datetime) -> Issued:
        """Revoke a certificate; the next CRL names it. One that is revoked already stays as it is."""
        wanted = serial_text(serial)
        with self._changed_index() as index:
            found = next((each for each in index.current.issued if each.serial == wanted), None)
            if found is None:
                raise UnusableFile(f"{self.directory}: this CA has issued no certificate {wanted}.")
            if found.revoked is not None:
                return found
            revoked = msgspec.structs.replace(found, revoked=now.replace(microsecond=0), reason=reason.value)
            issued = tuple(revoked if each is found else each for each in index.current.issued)
            index.current = msgspec.structs.replace(index.current, issued=issued)
        return revoked

    def publish_crl(self, now: datetime, validity: timedelta) -> x509.CertificateRevocationList:
        """A new CRL with everything that is revoked (RFC 5280 section 5): crl.pem and crl.der."""
        with self._changed_index() as index:
            number = index.current.crl_number + 1
            index.current = msgspec.structs.replace(index.current, crl_number=number)
            crl = self._crl(index.current, now, validity)
            for name, encoding in (("crl.pem", Encoding.PEM), ("crl.der", Encoding.DER)):
                write_atomically(self.directory / name, crl.public_bytes(encoding))
                (self.directory / name).chmod(0o644)
        return crl

    def _crl(self, index: Index, now: datetime, validity: timedelta) -> x509.CertificateRevocationList:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now - _SKEW).next_update(now + validity)
        builder = builder.add_extension(x509.CRLNumber(index.crl_number), critical=False)
        builder = builder.add_extension(self._authority, critical=False)
        for each in index.issued:
            if each.revoked is not None:
                builder = builder.add_revoked_certificate(_entry(each))
        return builder.sign(self.key, SHA256())

    @property
    def _authority(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())

    def _leaf_builder(
        self, subject: x509.Name, now: datetime, lifetime: timedelta
    ) -> x509.CertificateBuilder:
        end = self.certificate.not_valid_after_utc
        if end <= now:
            raise UnusableFile(f"{self.directory}: the CA expired on {end:%Y-%m-%d}; make a new one.")
        return _builder(subject, self.certificate.subject, now, min(now + lifetime, end))

    def _issue(self, builder: x509.CertificateBuilder, usage: x509.ObjectIdentifier) -> x509.Certificate:
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(self._authority, critical=False)
        certificate = builder.sign(self.key, SHA256())
        not_after, subject = certificate.not_valid_after_utc, certificate.subject.rfc4514_string()
        line = Issued(serial_text(certificate.serial_number), subject, not_after)
        with self._changed_index() as index:
            issued = (*index.current.issued, line)
            index.current = msgspec.structs.replace(index.current, issued=issued)
        return certificate

    def _read_index(self) -> Index:
        path = self.directory / "index.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Index)
        except FileNotFoundError:
            return Index()
        except (OSError, msgspec.MsgspecError) as error:
            raise UnusableFile(f"{path}: cannot be read; restore it from a backup.") from error

    @contextlib.contextmanager
    def _changed_index(self) -> Iterator[_Change]:
        """The index for a change that nobody else makes at the same time; kept unless something is raised."""
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            change = _Change(self._read_index())
            yield change
            write_atomically(self.directory / "index.json", msgspec.json.encode(change.current))


@dataclass(slots=True)
class _Change:
    current: Index


def serial_text(serial: int) -> str:
    """Hexadecimal, upper case, whole octets."""
    text = f"{serial:X}"
    return text.zfill(len(text) + len(text) % 2)


def _checked_request(untrusted_request: bytes) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_der_x509_csr(untrusted_request)
        key, signed, names = request.public_key(), request.is_signature_valid, _alternative_names(request)
    except UNPARSABLE as error:
        raise UnusableFile("The certificate request is not PKCS#10, or of an unknown kind.") from error
    if not signed:
        raise UnusableFile("The certificate request is not signed with its own key.")
    is_weak_rsa = isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS
    if isinstance(key, dsa.DSAPublicKey) or is_weak_rsa:
        raise UnusableFile(f"The key of the request is too weak; RSA needs {_MIN_RSA_BITS} bits.")
    if not request.subject.rdns and names is None:
        raise UnusableFile("The certificate request names nobody; give it a subject.")
    return request


def _alternative_names(request: x509.CertificateSigningRequest) -> x509.SubjectAlternativeName | None:
    values = (extension.value for extension in request.extensions)
    return next((value for value in values if isinstance(value, x509.SubjectAlternativeName)), None)


def _entry(issued: Issued) -> x509.RevokedCertificate:
    assert issued.revoked is not None, "the caller looked"
    builder = x509.RevokedCertificateBuilder().serial_number(int(issued.serial, 16))
    builder = builder.revocation_date(issued.revoked)
    reason = REASONS[issued.reason]
    if reason is not x509.ReasonFlags.unspecified:  # RFC 5280 section 5.3.1: rather left out
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()


def _builder(
    subject: x509.Name, issuer: x509.Name, now: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _SKEW).not_valid_after(not_after)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    if not 1 <= len(name) <= _LONGEST_NAME:
        raise UnusableFile(f"The name '{name}' is too long for a certificate; {_LONGEST_NAME} characters go.")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not name or not name.isascii():
            raise UnusableFile(
                f"The name '{name}' is none of a server; write an international one in its xn-- form."
            ) from None
        return x509.DNSName(name)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
