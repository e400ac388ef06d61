"""A token in memory: the project's TLS engine, a key, no card."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.support.pki import Identity
from vmtoken.errors import (
    ClientCertificateRefused,
    ServerCertificateInvalid,
    TlsHandshakeFailed,
    TlsVersionUnsupported,
    VmTokenError,
)
from vmtoken.tls.client import ClientConnection
from vmtoken.tls.codes import AlertDescription
from vmtoken.tls.config import ClientConfig, Credential, TrustStore
from vmtoken.tls.errors import AlertReceived, PeerError, TlsError, UnsupportedVersion
from vmtoken.tls.events import HandshakeComplete, NeedData, ServerAuthenticated, SignatureNeeded
from vmtoken.tls.signatures import PublicKey, sign
from vmtoken.tls.tickets import ResumableSession, ResumptionSecret
from vmtoken.token import HandshakeFailed, HandshakeResult, HandshakeStart, HandshakeStep, ServerIdentity

_CERTIFICATE_ALERTS = range(AlertDescription.BAD_CERTIFICATE, AlertDescription.CERTIFICATE_UNKNOWN + 1)


class EngineToken:
    """Holds an identity, trusts its root, and remembers sessions by server name."""

    def __init__(self, identity: Identity) -> None:
        key = PublicKey.of(identity.certificate)
        self._key = identity.key
        self._credential = Credential(identity.chain_der, key.schemes())
        self._trust = TrustStore([identity.root_der])
        self._resumptions: dict[bytes, ResumptionSecret] = {}
        self._sessions: dict[str, ResumableSession] = {}

    def start(self, start: HandshakeStart, *, no_resumption: bool = False) -> EngineHandshake:
        session = None if no_resumption else self._sessions.pop(start.server_name, None)
        config = ClientConfig(
            server_name=start.server_name,
            trust=self._trust,
            time=datetime.now(UTC),
            credential=self._credential,
            alpn=start.alpn,
            min_version=start.min_version,
            max_version=start.max_version,
            session=session,
        )
        return EngineHandshake(self, config)

    def sign(self, needed: SignatureNeeded) -> bytes:
        return sign(self._key, needed.scheme, needed.content)

    def remember(self, name: bytes, connection: ClientConnection, server_name: str) -> None:
        """What can come of a handshake that is complete: tickets later, a TLS 1.2 session now."""
        resumption, session = connection.resumption(), connection.session()
        if resumption is not None:
            self._resumptions[name] = resumption
        if session is not None:
            self._sessions[server_name] = session

    def accept_ticket(self, name: bytes, message: bytes) -> bool:
        resumption = self._resumptions.get(name)
        session = None if resumption is None else resumption.session(message, datetime.now(UTC))
        if session is not None:
            self._sessions[session.server.server_name] = session
        return session is not None


class EngineHandshake:
    """One handshake; `step` takes the server's records."""

    def __init__(self, token: EngineToken, config: ClientConfig) -> None:
        self._token = token
        self._server_name = config.server_name
        self._connection = ClientConnection(config)

    def hello(self) -> HandshakeStep:
        return HandshakeStep(self._connection.data_to_send())

    def step(self, name: bytes, server_records: bytes) -> HandshakeStep:
        """`name` is the session's, in case that it comes to be. Raises `HandshakeFailed`."""
        try:
            self._connection.receive_data(server_records)
            done = self._run()
        except TlsError as error:
            raise HandshakeFailed(_meaning(error), self._connection.data_to_send()) from error
        flight = self._connection.data_to_send()
        if done is None:
            return HandshakeStep(flight)
        self._token.remember(name, self._connection, self._server_name)
        return HandshakeStep(flight, self._result(name, done))

    def _run(self) -> HandshakeComplete | None:
        while True:
            match self._connection.next_event():
                case NeedData():
                    return None
                case SignatureNeeded() as needed:
                    self._connection.provide_signature(needed.scheme, self._token.sign(needed))
                case HandshakeComplete() as done:
                    return done
                case ServerAuthenticated():
                    pass

    def _result(self, name: bytes, done: HandshakeComplete) -> HandshakeResult:
        return HandshakeResult(
            key_block=self._connection.key_block(),
            session=name,
            server=ServerIdentity(done.server.server_name, done.server.spki_sha256, done.server.leaf),
            resumed=done.resumed,
            alpn=done.alpn,
            group=done.group.name if done.group is not None else None,
            client_certificate_sent=done.client_certificate_sent,
        )


def _meaning(error: TlsError) -> VmTokenError:
    if isinstance(error, UnsupportedVersion):
        return TlsVersionUnsupported(str(error))
    if isinstance(error, AlertReceived):
        if error.description == AlertDescription.PROTOCOL_VERSION:
            return TlsVersionUnsupported(str(error))
        if error.description in _CERTIFICATE_ALERTS:
            return ClientCertificateRefused(str(error))
    if isinstance(error, PeerError) and error.alert in {*_CERTIFICATE_ALERTS, AlertDescription.UNKNOWN_CA}:
        return ServerCertificateInvalid(str(error))
    return TlsHandshakeFailed(str(error))
