"""One handshake of `vmtoken.tls`, driven from the ClientHello to the key block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from dom0_broker.tls_client.key_shares import KeyShareStock
from dom0_broker.tls_client.sessions import EndedHandshake, SessionTable
from vmtoken.errors import VmTokenError
from vmtoken.tls.client import ClientConnection
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.config import ClientConfig, Credential, TrustStore
from vmtoken.tls.errors import TlsError
from vmtoken.tls.events import Closed, Event, NeedData, SignatureNeeded
from vmtoken.tls.failures import failure_of
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.tickets import ResumableSession
from vmtoken.token import CertificateMode, HandshakeStart

Sign = Callable[[SignatureScheme, bytes], bytes]
"""Signs content that is not hashed yet, as TLS wants it."""


@dataclass(frozen=True, slots=True)
class Client:
    """What the handshakes of one identity share."""

    credential: Credential
    sign: Sign = field(repr=False)
    """With the key of the credential."""

    trust: TrustStore
    sessions: SessionTable
    shares: KeyShareStock
    random: Callable[[int], bytes]

    def config(self, start: HandshakeStart) -> ClientConfig:
        """The settings of one handshake; raises `ValueError` for a start that makes no sense."""
        return ClientConfig(
            server_name=start.server_name,
            trust=self.trust,
            time=datetime.fromtimestamp(start.time, UTC),
            credential=self.credential,
            require_client_certificate=start.certificate is CertificateMode.ALWAYS,
            allow_empty_certificate=start.certificate is CertificateMode.OPTIONAL,
            alpn=start.alpn,
            min_version=start.min_version,
            max_version=start.max_version,
            session=self._session(start),
            share_source=self.shares.take,
        )

    def _session(self, start: HandshakeStart) -> ResumableSession | None:
        session = self.sessions.resume(start.resumption)
        return session if session is not None and session.server.server_name == start.server_name else None


class ClientHandshake:
    """Drives the engine; its owner says what becomes of the server, and takes the keys."""

    def __init__(self, client: Client, start: HandshakeStart) -> None:
        """Make the ClientHello, the first `flight`; raises `ValueError` for a start that makes no sense."""
        self._client = client
        self._config = client.config(start)
        self._connection = ClientConnection(self._config, random=client.random)
        self._has_signed = False

    def flight(self) -> bytes:
        """Records to send, each once."""
        return self._connection.data_to_send()

    def events(self, records: bytes) -> Iterator[Event]:
        """What happens with the server's records until more are needed; signatures are made on the way.

        Going on after `ServerAuthenticated` is consent, stopping after `HandshakeComplete` leaves the keys to
        `hand_over`. Raises `TlsError`, after which `flight` is the alert, and whatever the key raises.
        """
        self._connection.receive_data(records)
        while True:
            match self._connection.next_event():
                case SignatureNeeded(scheme, content):
                    self._has_signed = True
                    self._connection.provide_signature(scheme, self._client.sign(scheme, content))
                case NeedData() | Closed():
                    return
                case event:
                    yield event

    def refuse(self) -> None:
        """End it instead of going on after `ServerAuthenticated`; `flight` is access_denied."""
        self._connection.refuse()

    def hand_over(self) -> tuple[KeyBlock, bytes]:
        """The key block, and the handle of what the session table keeps for resumption.

        From here on the key block is the only secret of the handshake, beside those for resumption.
        """
        connection = self._connection
        ended = EndedHandshake(self._config.time, connection.resumption(), connection.session())
        return connection.key_block(), self._client.sessions.add(ended)

    def export_keying_material(self, label: str, context: bytes | None, length: int) -> bytes:
        """See `ClientConnection.export_keying_material`."""
        return self._connection.export_keying_material(label, context, length)

    def meaning(self, error: TlsError) -> VmTokenError:
        """What an error of `events` is for those outside."""
        return failure_of(error, self._config.server_name, client_certificate_sent=self._has_signed)
