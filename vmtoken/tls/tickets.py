"""Sessions that can be resumed, as values; keeping them is the caller's business.

TLS 1.3 tickets come after the handshake: a `ResumptionSecret`, detached from the connection, turns
them into sessions (RFC 8446 section 4.6.1). TLS 1.2 tickets (RFC 5077) and session ids come inside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from vmtoken.secret import SecretBytes
from vmtoken.tls.certificates import TrustStore, VerifiedServer
from vmtoken.tls.codes import CipherSuite, ProtocolVersion
from vmtoken.tls.errors import UnexpectedMessage
from vmtoken.tls.key_schedule import ticket_psk
from vmtoken.tls.messages import NewSessionTicket13, decode_message
from vmtoken.tls.suites import Suite

MAX_LIFETIME: Final = 7 * 24 * 3600
"""Seconds; no session is resumed later than a week after its handshake (RFC 8446 section 4.6.1)."""

DEFAULT_TLS12_LIFETIME: Final = 24 * 3600
"""Seconds, for session ids and for tickets without a hint (RFC 5246 appendix F.1.4)."""


@dataclass(frozen=True, slots=True)
class ResumableSession:
    """All that a later handshake needs; it is good for the same server name only."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    secret: SecretBytes
    """TLS 1.3: the PSK of the ticket. TLS 1.2: the master secret."""

    ticket: bytes = field(repr=False)
    """Empty for a TLS 1.2 session that is known by its id."""

    session_id: bytes = field(repr=False)
    """TLS 1.2 only."""

    server: VerifiedServer
    """Who the server proved to be in the full handshake."""

    client_certificate_sent: bool
    alpn: str | None
    created: datetime
    lifetime: int
    """Seconds from `created`."""

    age_add: int = field(default=0, repr=False)
    """TLS 1.3: what hides the age of the ticket."""

    @property
    def single_use(self) -> bool:
        """A TLS 1.3 ticket shown twice links two connections (RFC 8446 appendix C.4)."""
        return self.version is ProtocolVersion.TLS_1_3

    def is_usable(self, time: datetime, trust: TrustStore) -> bool:
        """Whether the session is neither too old nor stands on certificates that no longer hold."""
        age = time - self.created
        return (
            timedelta(0) <= age < timedelta(seconds=self.lifetime)
            and time <= self.server.valid_until
            and self.server.path[-1] in trust
        )

    def obfuscated_age(self, time: datetime) -> int:
        """Milliseconds since the ticket came, as they go on the wire (RFC 8446 section 4.2.11.1)."""
        age = (time - self.created) // timedelta(milliseconds=1)
        return (age + self.age_add) % 2**32


@dataclass(frozen=True, slots=True)
class ResumptionSecret:
    """The resumption_master_secret of a TLS 1.3 session, with what its tickets are worth."""

    suite: Suite
    secret: SecretBytes
    server: VerifiedServer
    client_certificate_sent: bool
    alpn: str | None

    def session(self, message: bytes, time: datetime) -> ResumableSession | None:
        """Turn a NewSessionTicket message, with its header, into a session; None if it is good for nothing.

        `time` is when it came. Raises `PeerError` if the message does not parse or is another one.
        """
        ticket = decode_message(message, ProtocolVersion.TLS_1_3)
        if not isinstance(ticket, NewSessionTicket13):
            raise UnexpectedMessage(ticket.handshake_type)
        if ticket.ticket_lifetime == 0:  # "should be discarded immediately"
            return None
        return ResumableSession(
            version=ProtocolVersion.TLS_1_3,
            cipher_suite=self.suite.code,
            secret=SecretBytes(ticket_psk(self.suite, self.secret.reveal(), ticket.ticket_nonce)),
            ticket=ticket.ticket,
            session_id=b"",
            server=self.server,
            client_certificate_sent=self.client_certificate_sent,
            alpn=self.alpn,
            created=time,
            lifetime=min(ticket.ticket_lifetime, MAX_LIFETIME),
            age_add=ticket.ticket_age_add,
        )

    def wipe(self) -> None:
        """Forget the secret; sessions made before live on."""
        self.secret.wipe()
