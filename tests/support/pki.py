"""Certificate authorities and identities for tests: made when asked for, once a run, never committed.

server = server_identity()                           # leaf < intermediate < root, ECDSA P-256
client = client_identity(KeyKind.ML_DSA_65)
files = server.write(tmp_path)                       # PEM files for a program on the other side
expired = pki().intermediate.issue("old.example", not_after=NOW - DAY)
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support import der

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
SERVER_NAME = "server.example"

PrivateKey = (
    ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | rsa.RSAPrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)


class KeyKind(enum.StrEnum):
    """What the key of a certificate is."""

    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"
    ED25519 = "ed25519"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_PSS_2048 = "rsa-pss-2048"
    """An RSA key whose SubjectPublicKeyInfo says id-RSASSA-PSS."""

    ML_DSA_44 = "ml-dsa-44"
    ML_DSA_65 = "ml-dsa-65"
    ML_DSA_87 = "ml-dsa-87"


CLASSIC_KINDS = tuple(kind for kind in KeyKind if not kind.startswith("ml-dsa"))
"""What OpenSSL 3.0, and so Python's `ssl`, can handle."""


class Usage(enum.Enum):
    """The extended key usages of a leaf."""

    SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
    CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
    OCSP = (ExtendedKeyUsageOID.OCSP_SIGNING,)
    NONE = ()


@dataclass(frozen=True)
class IdentityFiles:
    """PEM files of one identity."""

    chain: Path
    """The leaf and the intermediates, leaf first."""

    key: Path
    """PKCS#8, not encrypted."""

    anchors: Path
    """The root alone."""


@dataclass(frozen=True)
class Identity:
    """A leaf certificate with its key and its path."""

    kind: KeyKind
    key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...]
    """The leaf and the intermediates, leaf first, without the root."""

    root: x509.Certificate

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in self.chain)

    @property
    def root_der(self) -> bytes:
        return self.root.public_bytes(Encoding.DER)

    @property
    def chain_pem(self) -> bytes:
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    @property
    def root_pem(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)

    @property
    def key_der(self) -> bytes:
        """PKCS#8; of an RSA-PSS key with the identifier that says so."""
        plain = self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return der.as_rsa_pss_private_key(plain) if self.kind is KeyKind.RSA_PSS_2048 else plain

    @property
    def key_pem(self) -> bytes:
        return der.pem("PRIVATE KEY", self.key_der)

    def write(self, directory: Path, name: str | None = None) -> IdentityFiles:
        """Write PEM files `NAME.chain.pem`, `NAME.key.pem` and `NAME.anchors.pem`."""
        stem = name or self.kind.value
        files = IdentityFiles(
            chain=directory / f"{stem}.chain.pem",
            key=directory / f"{stem}.key.pem",
            anchors=directory / f"{stem}.anchors.pem",
        )
        files.chain.write_bytes(self.chain_pem)
        files.key.touch(mode=0o600)
        files.key.write_bytes(self.key_pem)
        files.anchors.write_bytes(self.root_pem)
        return files


@dataclass(frozen=True)
class Authority:
    """A CA: a root when `issuers` is empty, else an intermediate."""

    key: PrivateKey = field(repr=False)
    certificate: x509.Certificate
    issuers: tuple[Authority, ...] = ()
    """Nearest first, root last."""

    @classmethod
    def self_signed(cls, name: str = "vmtoken test root", kind: KeyKind = KeyKind.ECDSA_P256) -> Authority:
        key = generate_key(kind)
        builder = _ca_builder(name, key, path_length=None).issuer_name(_name(name))
        return cls(key, _sign(builder, key, key))

    @property
    def certificate_der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def root(self) -> x509.Certificate:
        return self.issuers[-1].certificate if self.issuers else self.certificate

    @property
    def path(self) -> tuple[x509.Certificate, ...]:
        """This CA and those above it without the root: what a server sends after its leaf."""
        return (
            (self.certificate, *(issuer.certificate for issuer in self.issuers[:-1])) if self.issuers else ()
        )

    def sub_authority(
        self,
        name: str = "vmtoken test intermediate",
        kind: KeyKind = KeyKind.ECDSA_P256,
        *,
        path_length: int | None = 0,
        not_after: datetime = NOW + 30 * DAY,
    ) -> Authority:
        key = generate_key(kind)
        builder = _ca_builder(name, key, path_length, not_after).issuer_name(self.certificate.subject)
        return Authority(key, _sign(builder, key, self.key), (self, *self.issuers))

    def issue(
        self,
        name: str = SERVER_NAME,
        kind: KeyKind = KeyKind.ECDSA_P256,
        *,
        usage: Usage = Usage.SERVER,
        dns_names: Sequence[str] | None = None,
        ip_addresses: Sequence[str] = (),
        not_before: datetime = NOW - DAY,
        not_after: datetime = NOW + 30 * DAY,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        key: PrivateKey | None = None,
    ) -> Identity:
        """A leaf for `name`, which is also its only DNS name unless `dns_names` says otherwise.

        `key` may be one that is elsewhere and only shows its public half.
        """
        key = key or generate_key(kind)
        builder = _builder(name, key, not_before, not_after).issuer_name(self.certificate.subject)
        builder = _add_leaf_extensions(
            builder, usage, (name,) if dns_names is None else dns_names, ip_addresses
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        certificate = _sign(builder, key, self.key, as_pss=kind is KeyKind.RSA_PSS_2048)
        return Identity(kind, key, (certificate, *self.path), self.root)

    def ocsp_response(
        self,
        certificate: x509.Certificate,
        status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
        *,
        issuer: x509.Certificate | None = None,
        responder: Identity | None = None,
        this_update: datetime = NOW - DAY,
        next_update: datetime | None = NOW + DAY,
    ) -> bytes:
        """An OCSP response for a certificate of this CA, signed by it or by a responder it appointed; DER."""
        revoked = status is ocsp.OCSPCertStatus.REVOKED
        builder = ocsp.OCSPResponseBuilder().add_response(
            certificate,
            issuer or self.certificate,
            hashes.SHA256(),
            status,
            this_update,
            next_update,
            this_update if revoked else None,
            x509.ReasonFlags.key_compromise if revoked else None,
        )
        signer = responder.certificate if responder else self.certificate
        key = responder.key if responder else self.key
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer)
        if responder:
            builder = builder.certificates([responder.certificate])
        return builder.sign(key, _hash_for(key)).public_bytes(Encoding.DER)


@dataclass(frozen=True)
class Pki:
    """The CAs that nearly every test uses."""

    root: Authority
    intermediate: Authority


@functools.cache
def pki(kind: KeyKind = KeyKind.ECDSA_P256) -> Pki:
    """A root and an intermediate with keys of this kind, the same during the whole run."""
    root = Authority.self_signed(f"vmtoken test root {kind}", kind)
    return Pki(root, root.sub_authority(f"vmtoken test intermediate {kind}", kind))


@functools.cache
def server_identity(kind: KeyKind = KeyKind.ECDSA_P256, name: str = SERVER_NAME) -> Identity:
    """A server whose CAs have ECDSA keys; it is also `127.0.0.1`, `::1` and `localhost`."""
    return pki().intermediate.issue(
        name, kind, dns_names=(name, "localhost"), ip_addresses=("127.0.0.1", "::1")
    )


@functools.cache
def client_identity(kind: KeyKind = KeyKind.ECDSA_P256, name: str = "web01") -> Identity:
    """A client below the same root as the servers."""
    return pki().intermediate.issue(name, kind, usage=Usage.CLIENT)


def generate_key(kind: KeyKind) -> PrivateKey:
    """A fresh key."""
    match kind:
        case KeyKind.ECDSA_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyKind.ECDSA_P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyKind.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyKind.RSA_2048 | KeyKind.RSA_PSS_2048:
            return rsa.generate_private_key(65537, 2048)
        case KeyKind.RSA_3072:
            return rsa.generate_private_key(65537, 3072)
        case KeyKind.ML_DSA_44:
            return mldsa.MLDSA44PrivateKey.generate()
        case KeyKind.ML_DSA_65:
            return mldsa.MLDSA65PrivateKey.generate()
        case KeyKind.ML_DSA_87:
            return mldsa.MLDSA87PrivateKey.generate()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    name: str, key: PrivateKey, not_before: datetime = NOW - DAY, not_after: datetime = NOW + 30 * DAY
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(not_before, not_after - DAY))
        .not_valid_after(not_after)
    )


def _ca_builder(
    name: str, key: PrivateKey, path_length: int | None, not_after: datetime = NOW + 30 * DAY
) -> x509.CertificateBuilder:
    return (
        _builder(name, key, not_after=not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True, digital_signature=True), critical=True)
    )


def _add_leaf_extensions(
    builder: x509.CertificateBuilder, usage: Usage, dns_names: Sequence[str], ip_addresses: Sequence[str]
) -> x509.CertificateBuilder:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ip_addresses]
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage.value:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage.value), critical=False)
    return builder


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    builder: x509.CertificateBuilder, key: PrivateKey, issuer_key: PrivateKey, *, as_pss: bool = False
) -> x509.Certificate:
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
    )
    certificate = builder.sign(issuer_key, _hash_for(issuer_key))
    return _as_rsa_pss(certificate, issuer_key) if as_pss else certificate


def _as_rsa_pss(certificate: x509.Certificate, issuer_key: PrivateKey) -> x509.Certificate:
    """The same certificate over an id-RSASSA-PSS key; the library only writes rsaEncryption."""
    plain = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    content = der.replace_element(certificate.tbs_certificate_bytes, plain, der.as_rsa_pss_public_key(plain))
    signature = _raw_signature(issuer_key, content)
    algorithm = der.elements(certificate.public_bytes(Encoding.DER))[1]
    return x509.load_der_x509_certificate(der.sequence(content, algorithm, der.bit_string(signature)))


def _raw_signature(key: PrivateKey, content: bytes) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(content, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            return key.sign(content, padding.PKCS1v15(), hashes.SHA256())
        case _:
            return key.sign(content)


def _hash_for(key: PrivateKey) -> hashes.SHA256 | None:
    return hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) else None
