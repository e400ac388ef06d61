"""What a handshake is to be: checked when it is built, frozen, and good for one connection or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.verification import Subject

from vmtoken.tls.certificates import TrustStore, subject_of
from vmtoken.tls.codes import CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme
from vmtoken.tls.der import CertificateFields
from vmtoken.tls.key_block import MAX_PLAINTEXT, MIN_RECORD_SIZE_LIMIT
from vmtoken.tls.key_exchange import KeyExchange, generate
from vmtoken.tls.messages import Certificate12, Certificate13, CertificateEntry, encode_message
from vmtoken.tls.signatures import PublicKey
from vmtoken.tls.suites import suite_of
from vmtoken.tls.tickets import ResumableSession

__all__ = [
    "DEFAULT_CIPHER_SUITES",
    "DEFAULT_GROUPS",
    "DEFAULT_KEY_SHARES",
    "ClientConfig",
    "Credential",
    "TrustStore",
]

DEFAULT_CIPHER_SUITES = (
    CipherSuite.TLS_AES_128_GCM_SHA256,
    CipherSuite.TLS_AES_256_GCM_SHA384,
    CipherSuite.TLS_CHACHA20_POLY1305_SHA256,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
)
"""Best first."""

DEFAULT_GROUPS = (
    NamedGroup.X25519MLKEM768,
    NamedGroup.X25519,
    NamedGroup.SECP256R1,
    NamedGroup.SECP384R1,
)
"""Best first."""

DEFAULT_KEY_SHARES = (NamedGroup.X25519MLKEM768, NamedGroup.X25519)
"""Nearly every server takes one of them, and they share one X25519 pair."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What the client can prove: a chain, and the schemes that its key can sign with.

    Raises `ValueError` when built from certificates that do not parse or schemes that do not fit.
    """

    certificate_chain: tuple[bytes, ...] = field(repr=False)
    """DER, leaf first."""

    schemes: tuple[SignatureScheme, ...]
    """Best first."""

    public_key: PublicKey = field(init=False, repr=False)
    versions: tuple[ProtocolVersion, ...] = field(init=False)
    """Those in which the key can sign with one of the schemes, best first."""

    issuers: frozenset[bytes] = field(init=False, repr=False)
    """DER Names of the CAs of the chain, to be compared with those that a server names."""

    messages: Mapping[ProtocolVersion, bytes] = field(init=False, repr=False)
    """The Certificate message of each version, header included: the same in every handshake."""

    def __post_init__(self) -> None:
        if not self.certificate_chain or not self.schemes:
            raise ValueError("a credential needs a certificate and a signature scheme")
        public_key = PublicKey.of(x509.load_der_x509_certificate(self.certificate_chain[0]))
        for scheme in self.schemes:
            if not any(public_key.can_use(scheme, version) for version in ProtocolVersion):
                raise ValueError(f"the key of the certificate cannot sign with {scheme.name}")
        names = frozenset(CertificateFields.of(der).issuer for der in self.certificate_chain)
        versions = {v for v in ProtocolVersion if any(public_key.can_use(s, v) for s in self.schemes)}
        object.__setattr__(self, "public_key", public_key)
        object.__setattr__(self, "versions", tuple(sorted(versions, reverse=True)))
        object.__setattr__(self, "issuers", names)
        object.__setattr__(self, "messages", _certificate_messages(self.certificate_chain))

    def is_issued_by_one_of(self, names: Sequence[bytes]) -> bool:
        """Whether a CA of the chain is among `names` (DER); no names means any CA."""
        return not names or not self.issuers.isdisjoint(names)


def _certificate_messages(chain: tuple[bytes, ...]) -> dict[ProtocolVersion, bytes]:
    entries = tuple(CertificateEntry(certificate) for certificate in chain)
    return {
        ProtocolVersion.TLS_1_2: encode_message(Certificate12(chain)),
        ProtocolVersion.TLS_1_3: encode_message(Certificate13(b"", entries)),
    }


EMPTY_CERTIFICATE: Final = _certificate_messages(())
"""The Certificate message of a client that has none for this server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """One handshake's settings; raises `ValueError` when they do not fit together."""

    server_name: str
    """DNS name (A-labels) or IP address. The certificate must hold it; a DNS name is sent as SNI."""

    trust: TrustStore
    time: datetime
    """For certificate dates and ticket ages; aware."""

    credential: Credential | None = None
    require_client_certificate: bool = False
    """Refuse servers that do not ask for a certificate, and sessions in which none was sent."""

    allow_empty_certificate: bool = False
    """Whether to answer with an empty certificate a server that cannot use our credential.

    Without a credential the answer is always empty.
    """

    alpn: tuple[str, ...] = ()
    min_version: ProtocolVersion = ProtocolVersion.TLS_1_2
    max_version: ProtocolVersion = ProtocolVersion.TLS_1_3
    cipher_suites: tuple[CipherSuite, ...] = DEFAULT_CIPHER_SUITES
    groups: tuple[NamedGroup, ...] = DEFAULT_GROUPS
    key_shares: tuple[NamedGroup, ...] | None = None
    """Groups to send shares for at once; an empty tuple leads to a HelloRetryRequest, None is the default."""

    share_source: Callable[[Sequence[NamedGroup]], tuple[KeyExchange, ...]] = generate
    """Gives the shares for the first ClientHello; for who has some ready. A share is never given twice."""

    session: ResumableSession | None = None
    """Offered if it still holds; if the server does not take it, the handshake is a full one."""

    record_size_limit: int | None = None
    """Longest plaintext that we want in a record, in octets; None: what the protocol allows."""

    key_log: Callable[[str], None] | None = field(default=None, repr=False)
    """Takes NSS key log lines. Whoever has them can read the session: for debugging in a lab alone."""

    versions: tuple[ProtocolVersion, ...] = field(init=False, repr=False)
    """Those to offer, best first: in the range, and with a cipher suite."""

    usable_suites: tuple[CipherSuite, ...] = field(init=False, repr=False)
    """Those of a version to be offered, best first."""

    subject: Subject = field(init=False, repr=False)
    """What the certificate must hold."""

    def __post_init__(self) -> None:
        self._derive()
        if self.time.tzinfo is None:
            raise ValueError("the time must know its time zone")
        if self.require_client_certificate and self.credential is None:
            raise ValueError("a client certificate is required, but there is no credential")
        if any(not 1 <= len(protocol.encode("ascii")) <= 255 for protocol in self.alpn):
            raise ValueError("an ALPN protocol has 1 to 255 octets")
        if not self.groups or not set(self.initial_shares) <= set(self.groups):
            raise ValueError("key shares must be of the groups that are offered, and there must be a group")
        if not self.offers_tls13 and set(self.groups) == {NamedGroup.X25519MLKEM768}:
            raise ValueError("X25519MLKEM768 is for TLS 1.3 only")
        if self.session is not None and self.session.server.server_name != self.server_name:
            raise ValueError(f"the session to resume is one with {self.session.server.server_name}")
        if self.record_size_limit is not None and self.record_size_limit < MIN_RECORD_SIZE_LIMIT:
            raise ValueError(f"a record size limit is at least {MIN_RECORD_SIZE_LIMIT}")

    def _derive(self) -> None:
        if self.min_version > self.max_version:
            raise ValueError(f"{self.min_version.name} to {self.max_version.name} is not a range of versions")
        suites = [suite for code in self.cipher_suites if (suite := suite_of(code))]
        usable = [suite for suite in suites if self.min_version <= suite.version <= self.max_version]
        if not usable:
            raise ValueError("no cipher suite is left for the versions allowed")
        versions = sorted({suite.version for suite in usable}, reverse=True)
        object.__setattr__(self, "versions", tuple(versions))
        object.__setattr__(self, "usable_suites", tuple(suite.code for suite in usable))
        object.__setattr__(self, "subject", subject_of(self.server_name))

    @property
    def offers_tls13(self) -> bool:
        """Whether TLS 1.3 is among the versions."""
        return ProtocolVersion.TLS_1_3 in self.versions

    @property
    def initial_shares(self) -> tuple[NamedGroup, ...]:
        """The groups of the shares in the first ClientHello."""
        if self.key_shares is not None:
            return self.key_shares
        return tuple(group for group in DEFAULT_KEY_SHARES if group in self.groups) or self.groups[:1]

    @property
    def announced_limit(self) -> int:
        """What record_size_limit says: with the content type where TLS 1.3 is offered (RFC 8449)."""
        return min(self.record_size_limit or MAX_PLAINTEXT, MAX_PLAINTEXT) + self.offers_tls13

    @property
    def sni(self) -> str | None:
        """The name to send; None for IP addresses, which do not go into SNI (RFC 6066 section 3)."""
        return self.server_name if isinstance(self.subject, x509.DNSName) else None
