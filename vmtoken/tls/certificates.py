"""Who the server is: verification of path, name, dates, usage and possession of the key.

The proof grows as a value: `CertificateVerifier.verify` turns a chain into a `CertifiedKey`, whose
`prove` turns the server's signature into a `VerifiedServer`. Nothing else makes one.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from vmtoken.tls.codes import ProtocolVersion
from vmtoken.tls.der import CertificateFields
from vmtoken.tls.errors import (
    BadCertificate,
    BadCertificateStatusResponse,
    CertificateExpired,
    CertificateUnknown,
    PeerError,
    UnknownCa,
    UnsupportedCertificate,
)
from vmtoken.tls.ocsp import UNPARSABLE, verify_staple
from vmtoken.tls.signatures import PublicKey

MAX_INTERMEDIATES: Final = 8
"""Certificates between leaf and anchor; public chains have one or two."""


MAX_KNOWN_PATHS: Final = 16
"""Verified paths that a trust store remembers: a VM has few servers, and a path takes a few KiB."""


class TrustStore:
    """The trust anchors, parsed once for many handshakes.

    It remembers the paths that it verified. Validation of a path depends on nothing but name, chain,
    anchors and, through the dates of the certificates on the path, time; so the same octets under
    the same name and anchors, at a time within all those dates, are the same path. Possession of the
    key and stapled OCSP responses are verified in every handshake.
    """

    def __init__(self, anchors: Sequence[bytes]) -> None:
        """`anchors` are DER certificates; raises `ValueError` if there is none or one does not parse."""
        if not anchors:
            raise ValueError("a trust store needs at least one trust anchor")
        self._store = verification.Store([x509.load_der_x509_certificate(anchor) for anchor in anchors])
        self._anchors = frozenset(anchors)
        self._known: dict[tuple[str, tuple[bytes, ...]], VerifiedPath] = {}

    @property
    def store(self) -> verification.Store:
        """As path validation wants it."""
        return self._store

    def __contains__(self, certificate: bytes) -> bool:
        return certificate in self._anchors

    def known_path(self, server_name: str, chain: tuple[bytes, ...], time: datetime) -> VerifiedPath | None:
        """The path that was verified for these octets, if it holds at this time too."""
        path = self._known.get((server_name, chain))
        return path if path is not None and path.valid_from <= time <= path.valid_until else None

    def remember(self, chain: tuple[bytes, ...], path: VerifiedPath) -> None:
        """Keep a path for `known_path`."""
        if len(self._known) >= MAX_KNOWN_PATHS:
            self._known = {}
        self._known[path.server_name, chain] = path


@dataclass(frozen=True, slots=True)
class VerifiedPath:
    """A path from a server's certificate to a trust anchor, and what follows from it."""

    server_name: str
    certificates: tuple[x509.Certificate, ...]
    """Leaf first, trust anchor last."""

    encoded: tuple[bytes, ...] = field(repr=False)
    """The same, DER."""

    spki_sha256: tuple[bytes, ...] = field(repr=False)
    public_key: PublicKey
    valid_from: datetime
    valid_until: datetime
    """The first and the last moment within the dates of all certificates."""

    must_staple: bool
    """The leaf says that its server always staples an OCSP response (RFC 7633)."""

    @classmethod
    def of(cls, server_name: str, certificates: Sequence[x509.Certificate]) -> VerifiedPath:
        """Gather what is needed; raises `UnsupportedCertificate` for a public key that cannot be used."""
        public_key = PublicKey.of(certificates[0])
        if not public_key.is_usable:
            raise UnsupportedCertificate(
                "the server's certificate has a key that is weak or unknown; its operator has to replace it"
            )
        encoded = tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)
        keys = (CertificateFields.of(der).subject_public_key_info for der in encoded)
        return cls(
            server_name=server_name,
            certificates=tuple(certificates),
            encoded=encoded,
            spki_sha256=tuple(hashlib.sha256(key).digest() for key in keys),
            public_key=public_key,
            valid_from=max(certificate.not_valid_before_utc for certificate in certificates),
            valid_until=min(certificate.not_valid_after_utc for certificate in certificates),
            must_staple=_TLS_FEATURE in encoded[0] and _must_staple(certificates[0]),
        )


@dataclass(frozen=True, slots=True)
class VerifiedServer:
    """A server that proved who it is: path, name, dates, usage, and possession of the key."""

    server_name: str
    """The DNS name or IP address that was asked for and that the certificate holds."""

    path: tuple[bytes, ...] = field(repr=False)
    """The verified path, DER, leaf first, trust anchor last."""

    spki_sha256: tuple[bytes, ...] = field(repr=False)
    """SHA-256 of the SubjectPublicKeyInfo of each certificate of the path."""

    valid_until: datetime
    """When the first certificate of the path expires; a resumed session does not outlive it."""

    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("only certificate verification makes a VerifiedServer")

    @property
    def leaf(self) -> bytes:
        """The server's certificate, DER."""
        return self.path[0]


_SEAL: Final = object()


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """The key of a server whose certificate is verified; possession is still to be proved."""

    _path: VerifiedPath

    @property
    def public_key(self) -> PublicKey:
        """The key of the leaf."""
        return self._path.public_key

    def prove(
        self, scheme: int, version: ProtocolVersion, signature: bytes, content: bytes
    ) -> VerifiedServer:
        """Check the server's signature over `content`; raises `SignatureInvalid` or `IllegalParameter`."""
        path = self._path
        path.public_key.verify(scheme, version, signature, content)
        return VerifiedServer(path.server_name, path.encoded, path.spki_sha256, path.valid_until, _SEAL)


@dataclass(frozen=True, slots=True)
class CertificateVerifier:
    """Verifies what one handshake's server presents."""

    server_name: str
    subject: verification.Subject
    """The same, as `subject_of` made it."""

    trust: TrustStore
    time: datetime

    def verify(self, chain: tuple[bytes, ...], staples: Sequence[bytes | None] = ()) -> CertifiedKey:
        """Verify a chain (DER, leaf first) and the OCSP responses stapled to its certificates.

        Raises the `PeerError` whose alert says what is wrong: `BadCertificate`, `CertificateExpired`,
        `CertificateUnknown`, `UnsupportedCertificate`, `UnknownCa`, `CertificateRevoked`,
        `BadCertificateStatusResponse`.
        """
        path = self.trust.known_path(self.server_name, chain, self.time)
        if path is None:
            path = self._find_path(self._parse(chain))
            self.trust.remember(chain, path)
        if path.must_staple and not any(staples[:1]):
            raise BadCertificateStatusResponse(
                "the server's certificate demands an OCSP response, and none came with it; its operator has "
                "to turn OCSP stapling on"
            )
        for certificate, staple in zip(chain, staples, strict=False):
            if staple is not None:
                self._verify_staple(path, certificate, staple)
        return CertifiedKey(path)

    def _parse(self, chain: Sequence[bytes]) -> list[x509.Certificate]:
        if not chain:
            raise BadCertificate("the server sent no certificate")
        try:
            return [x509.load_der_x509_certificate(certificate) for certificate in chain]
        except UNPARSABLE as error:
            raise self._unparsable() from error

    def _unparsable(self) -> BadCertificate:
        return BadCertificate("a certificate of the server does not parse; its operator has to replace it")

    def _find_path(self, certificates: list[x509.Certificate]) -> VerifiedPath:
        try:
            found = self._verifier(self.subject).verify(certificates[0], certificates[1:])
            return VerifiedPath.of(self.server_name, found)
        except verification.VerificationError as error:
            raise self._explain(certificates) from error
        except UNPARSABLE as error:
            raise self._unparsable() from error

    def _verify_staple(self, path: VerifiedPath, certificate: bytes, staple: bytes) -> None:
        """Of a certificate that is on the path and not its anchor."""
        if certificate in path.encoded[:-1]:
            position = path.encoded.index(certificate)
            verify_staple(staple, path.certificates[position], path.certificates[position + 1], self.time)

    def _verifier(self, subject: verification.Subject) -> verification.ServerVerifier:
        return (
            verification.PolicyBuilder()
            .store(self.trust.store)
            .time(self.time)
            .max_chain_depth(MAX_INTERMEDIATES)
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
            .build_server_verifier(subject)
        )

    def _explain(self, certificates: list[x509.Certificate]) -> PeerError:
        """Why the path did not verify, as well as it can be told; the refusal does not depend on it."""
        try:
            return self._diagnosis(certificates)
        except UNPARSABLE:
            return self._unparsable()

    def _diagnosis(self, certificates: list[x509.Certificate]) -> PeerError:
        leaf = certificates[0]
        for certificate in certificates:
            if not certificate.not_valid_before_utc <= self.time <= certificate.not_valid_after_utc:
                return self._out_of_date(certificate, is_leaf=certificate is leaf)
        if not _is_for_servers(leaf):
            return UnsupportedCertificate(
                "the server's certificate is not for TLS servers; its operator has to replace it"
            )
        names = _names(leaf)
        if not names:
            return CertificateUnknown(
                "the server's certificate holds no subjectAltName; its operator has to replace it"
            )
        if self._verifies_for_another_name(certificates, names):
            others = ", ".join(_printable(str(name.value)) for name in names[:4])
            return CertificateUnknown(
                f"the server's certificate is for {others}; connect under a name that it has"
            )
        issuer = _printable(certificates[-1].issuer.rfc4514_string())
        return UnknownCa(
            "no path leads from the server's certificate to a trust anchor, and the last one that it sent is "
            f"issued by {issuer}; check that the token's trust anchors hold that CA"
        )

    def _out_of_date(self, certificate: x509.Certificate, *, is_leaf: bool) -> CertificateExpired:
        whose = "the server's certificate" if is_leaf else "a CA certificate of the server"
        if self.time < certificate.not_valid_before_utc:
            when, remedy = "is not valid before", "check the clock of the token's host"
            date = certificate.not_valid_before_utc
        else:
            when, remedy = "expired on", "its operator has to renew it"
            date = certificate.not_valid_after_utc
        return CertificateExpired(f"{whose} {when} {date:%Y-%m-%d %H:%M} UTC; {remedy}")

    def _verifies_for_another_name(
        self, certificates: list[x509.Certificate], names: Sequence[verification.Subject]
    ) -> bool:
        name = names[0]
        if isinstance(name, x509.DNSName):
            name = x509.DNSName(name.value.replace("*", "any"))
        try:
            self._verifier(name).verify(certificates[0], certificates[1:])
        except (verification.VerificationError, *UNPARSABLE):
            return False
        return True


def subject_of(server_name: str) -> verification.Subject:
    """The name as path validation wants it; raises `ValueError` if it is neither IP address nor DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(server_name))
    except ValueError:
        if len(server_name) > _MAX_DNS_NAME or not _DNS_NAME.fullmatch(server_name):
            raise ValueError(f"{server_name!r} is neither a DNS name nor an IP address") from None
        return x509.DNSName(server_name)


_MAX_DNS_NAME: Final = 253
_DNS_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", re.ASCII)
"""RFC 1035 section 2.3.1 with the underscore of service names, and without a final dot (RFC 6066)."""


def _may_sign_certificates(
    policy: verification.Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    """RFC 5280 section 4.2.1.3: a CA may lack the extension; if it is there it must say keyCertSign."""
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the key usage of a CA does not allow it to sign certificates")


# The defaults follow the CA/Browser Forum. CAs made by hand lack key identifiers or key usage,
# which RFC 5280 section 6 does not need for validation.
_CA_POLICY = (
    verification.ExtensionPolicy.webpki_defaults_ca()
    .may_be_present(x509.AuthorityKeyIdentifier, verification.Criticality.NON_CRITICAL, None)
    .may_be_present(x509.SubjectKeyIdentifier, verification.Criticality.NON_CRITICAL, None)
    .may_be_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _may_sign_certificates)
)
_LEAF_POLICY = verification.ExtensionPolicy.webpki_defaults_ee().may_be_present(
    x509.AuthorityKeyIdentifier, verification.Criticality.NON_CRITICAL, None
)


_TLS_FEATURE: Final = bytes.fromhex("06082B06010505070118")
"""The identifier of the extension, DER: nearly no certificate has it, and parsing all of them takes time."""


def _must_staple(leaf: x509.Certificate) -> bool:
    try:
        features = leaf.extensions.get_extension_for_class(x509.TLSFeature).value
    except x509.ExtensionNotFound:
        return False
    return x509.TLSFeatureType.status_request in features


def _is_for_servers(leaf: x509.Certificate) -> bool:
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.SERVER_AUTH in usages


def _names(leaf: x509.Certificate) -> list[verification.Subject]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def _printable(untrusted_text: str) -> str:
    """What a certificate says, fit for a terminal and a log."""
    return "".join(c if c.isprintable() else "?" for c in untrusted_text[:200])
