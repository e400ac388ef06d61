"""What a ClientHello offers, and the ClientHello itself (RFC 8446 section 4.1.2)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vmtoken.codec import Writer
from vmtoken.tls import key_exchange
from vmtoken.tls.codes import (
    CipherSuite,
    EcPointFormat,
    NamedGroup,
    ProtocolVersion,
    PskKeyExchangeMode,
)
from vmtoken.tls.config import ClientConfig
from vmtoken.tls.extensions import (
    Alpn,
    Cookie,
    EcPointFormats,
    ExtendedMasterSecret,
    Extension,
    Extensions,
    KeyShareClientHello,
    KeyShareEntry,
    OfferedPsks,
    PskIdentity,
    PskKeyExchangeModes,
    RawExtension,
    RecordSizeLimit,
    RenegotiationInfo,
    ServerName,
    SessionTicket,
    SignatureAlgorithms,
    SignatureAlgorithmsCert,
    StatusRequest,
    SupportedGroups,
    SupportedVersions,
)
from vmtoken.tls.key_exchange import KeyExchange
from vmtoken.tls.messages import RANDOM_LENGTH, ClientHello
from vmtoken.tls.signatures import CERTIFICATE_SCHEMES, DEFAULT_SCHEMES
from vmtoken.tls.suites import Suite, suite_of
from vmtoken.tls.tickets import ResumableSession

SESSION_ID_LENGTH = 32
"""Of the session id that makes TLS 1.3 look like a resumption (RFC 8446 appendix D.4)."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Everything that the answer of the server is measured by."""

    config: ClientConfig
    random: bytes
    session_id: bytes
    shares: tuple[KeyExchange, ...]
    session: ResumableSession | None
    """Of either version, if it still holds."""

    cookie: bytes | None = None
    retried: bool = False
    """It answers a HelloRetryRequest."""

    extensions: Extensions = field(init=False, repr=False)
    extension_types: frozenset[int] = field(init=False, repr=False)

    @classmethod
    def make(cls, config: ClientConfig, random: Callable[[int], bytes]) -> Offer:
        """A fresh offer."""
        session = _usable_session(config)
        if session is not None and session.session_id:
            session_id = session.session_id
        elif config.offers_tls13 or session is not None:
            session_id = random(SESSION_ID_LENGTH)
        else:
            session_id = b""
        shares = _generate_shares(config)
        return cls(config, random(RANDOM_LENGTH), session_id, shares, session)

    def __post_init__(self) -> None:
        extensions = Extensions(tuple(self._extensions()))
        object.__setattr__(self, "extensions", extensions)
        object.__setattr__(self, "extension_types", frozenset(item.extension_type for item in extensions))

    @property
    def psk(self) -> ResumableSession | None:
        """The TLS 1.3 session that is offered."""
        return _of_version(self.session, ProtocolVersion.TLS_1_3)

    @property
    def tls12_session(self) -> ResumableSession | None:
        """The TLS 1.2 session that is offered."""
        return _of_version(self.session, ProtocolVersion.TLS_1_2)

    @property
    def tls12_groups(self) -> tuple[NamedGroup, ...]:
        """The hybrid group does not exist in TLS 1.2 (draft-ietf-tls-ecdhe-mlkem section 4)."""
        return tuple(group for group in self.config.groups if group is not NamedGroup.X25519MLKEM768)

    def share(self, group: int) -> KeyExchange | None:
        """Our half for a group, None if none was sent."""
        return next((share for share in self.shares if share.group == group), None)

    def retry(self, group: NamedGroup | None, cookie: bytes | None, suite: Suite) -> Offer:
        """The offer after a HelloRetryRequest: another share, a cookie, no PSK of another hash."""
        psk = self.psk
        fits = psk is None or _hash_name(psk.cipher_suite) == suite.hash_name
        return replace(
            self,
            shares=key_exchange.generate((group,)) if group is not None else self.shares,
            cookie=cookie,
            retried=True,
            session=self.session if fits else None,
        )

    def client_hello(self) -> ClientHello:
        """The message; a PSK binder in it is zeros, to be filled in once the rest is hashed."""
        return ClientHello(
            random=self.random,
            legacy_session_id=self.session_id,
            cipher_suites=self.config.usable_suites,
            extensions=self.extensions,
        )

    def _extensions(self) -> list[Extension]:
        config = self.config
        groups = config.groups if config.offers_tls13 else self.tls12_groups
        limit = config.announced_limit
        extensions: list[Extension] = [*_fixed(config.sni, config.alpn, config.versions, groups, limit)]
        if ProtocolVersion.TLS_1_2 in config.versions:
            extensions.append(SessionTicket(self.tls12_session.ticket if self.tls12_session else b""))
        if config.offers_tls13:
            shares = tuple(KeyShareEntry(share.group, share.public) for share in self.shares)
            extensions.append(KeyShareClientHello(shares))
        if self.cookie is not None:
            extensions.append(Cookie(self.cookie))
        if self.psk is not None:  # always the last one (RFC 8446 section 4.2.11)
            extensions.append(_offered_psk(self.psk, config))
        return extensions


@functools.lru_cache(maxsize=64)
def _fixed(
    sni: str | None,
    alpn: tuple[str, ...],
    versions: tuple[ProtocolVersion, ...],
    groups: tuple[NamedGroup, ...],
    record_size_limit: int,
) -> tuple[RawExtension, ...]:
    """The extensions that say what we can do: the same for all handshakes with a server, so encoded once."""
    extensions: list[Extension] = [
        StatusRequest(),
        SupportedGroups(groups),
        SignatureAlgorithms(DEFAULT_SCHEMES),
        SignatureAlgorithmsCert(CERTIFICATE_SCHEMES),
        RecordSizeLimit(record_size_limit),
    ]
    if sni is not None:
        extensions.append(ServerName(sni))
    if alpn:
        extensions.append(Alpn(tuple(protocol.encode("ascii") for protocol in alpn)))
    if ProtocolVersion.TLS_1_2 in versions:
        formats = EcPointFormats((EcPointFormat.UNCOMPRESSED,))
        extensions += [ExtendedMasterSecret(), RenegotiationInfo(), formats]
    if ProtocolVersion.TLS_1_3 in versions:
        modes = PskKeyExchangeModes((PskKeyExchangeMode.PSK_DHE_KE,))
        extensions += [SupportedVersions(versions), modes]
    return tuple(_encoded(extension) for extension in extensions)


def _encoded(extension: Extension) -> RawExtension:
    writer = Writer()
    extension.encode(writer)
    return RawExtension(extension.extension_type, writer.getvalue())


def _generate_shares(config: ClientConfig) -> tuple[KeyExchange, ...]:
    if not config.offers_tls13:
        return ()
    return config.share_source(config.initial_shares)


def _usable_session(config: ClientConfig) -> ResumableSession | None:
    session = config.session
    if session is None or not session.is_usable(config.time, config.trust):
        return None
    if config.require_client_certificate and not session.client_certificate_sent:
        return None
    if session.version not in config.versions:
        return None
    return session if _is_suite_offered(session, config) else None


def _is_suite_offered(session: ResumableSession, config: ClientConfig) -> bool:
    """TLS 1.2 resumes the suite itself, TLS 1.3 any suite with the hash of the PSK."""
    if session.version is ProtocolVersion.TLS_1_2:
        return session.cipher_suite in config.usable_suites
    hashes = {_hash_name(code) for code in config.usable_suites if _is_tls13(code)}
    return _hash_name(session.cipher_suite) in hashes


def _of_version(session: ResumableSession | None, version: ProtocolVersion) -> ResumableSession | None:
    return session if session is not None and session.version is version else None


def _offered_psk(session: ResumableSession, config: ClientConfig) -> OfferedPsks:
    suite = suite_of(session.cipher_suite)
    assert suite is not None
    identity = PskIdentity(session.ticket, session.obfuscated_age(config.time))
    return OfferedPsks((identity,), (bytes(suite.hash_length),))


def _hash_name(code: CipherSuite) -> str:
    suite = suite_of(code)
    assert suite is not None
    return suite.hash_name


def _is_tls13(code: CipherSuite) -> bool:
    suite = suite_of(code)
    return suite is not None and suite.version is ProtocolVersion.TLS_1_3
