"""The upper seam: a token runs a TLS client handshake and gives the key block of that one session.

Two kinds of token stand behind it: a card that runs the whole handshake
(`vmtoken.cards.eap_tls.EapTlsCard`), and a key that can only sign (`SigningKey`), for which
the broker runs `vmtoken.tls` itself. Calls block and come from one thread at a time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vmtoken.errors import VmTokenError
from vmtoken.tls.codes import ProtocolVersion, SignatureScheme
from vmtoken.tls.key_block import KeyBlock


class Assurance(enum.Enum):
    """What the hardware really did in a session, from most to least."""

    CARD_HANDSHAKE = "card-handshake"
    """Private key and the whole handshake stay inside the card."""

    CARD_SIGNATURE = "card-signature"
    """The private key stays inside the card; the handshake runs in the broker."""

    SOFTWARE = "software"
    """Nothing is hardware."""


class CertificateMode(enum.Enum):
    """Whether a session may be without our certificate.

    A server can use our certificate when its signature schemes and the CAs that it names allow it
    (RFC 8446 section 4.3.2, RFC 5246 section 7.4.4).
    """

    IF_ASKED = "if-asked"
    """A server that asks and cannot use ours is refused; one that does not ask gets none."""

    OPTIONAL = "optional"
    """A server that asks and cannot use ours gets an empty Certificate."""

    ALWAYS = "always"
    """A server that does not ask is refused too."""


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Who the server proved to be: what policy judges.

    Made only after chain, name, dates and the server's own signature were verified, or taken
    from the session that a resumption stands on.
    """

    server_name: str
    """The DNS name or IP address asked for, which the certificate holds."""

    spki_sha256: tuple[bytes, ...]
    """SHA-256 of each SubjectPublicKeyInfo of the verified path, leaf first, trust anchor last."""

    leaf: bytes
    """The server's certificate, DER."""


Authorize = Callable[[ServerIdentity], None]
"""Called once the server is known and before anything is signed or released; raises to refuse."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """A session that the token can resume; its secret stays in the token."""

    handle: bytes
    """Names the session inside the token; at most 32 octets, opaque."""

    server: ServerIdentity
    version: ProtocolVersion
    lifetime: int
    """Seconds from now until it is of no use; at most 7 days (RFC 8446 section 4.6.1)."""

    single_use: bool
    """True for TLS 1.3: a ticket shown twice links two connections (RFC 8446 appendix C.4)."""


@dataclass(frozen=True, slots=True)
class HandshakeStart:
    """What a handshake begins with, as the broker checked it."""

    server_name: str
    """DNS name (A-labels) or IP address, to be verified against the server's certificate."""

    time: int
    """Unix time in seconds, from dom0, for certificate dates."""

    alpn: tuple[str, ...] = ()
    min_version: ProtocolVersion = ProtocolVersion.TLS_1_2
    max_version: ProtocolVersion = ProtocolVersion.TLS_1_3
    resumption: bytes | None = None
    """Handle of the session to resume; unknown handles lead to a full handshake."""

    certificate: CertificateMode = CertificateMode.IF_ASKED


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """A handshake that is complete: both Finished messages are verified or sent."""

    key_block: KeyBlock
    session: bytes
    """Names this session inside the token for `accept_ticket`; at most 32 octets."""

    server: ServerIdentity
    resumed: bool
    alpn: str | None
    group: str | None
    """Name of the key exchange group as in the IANA registry, None if the token cannot tell."""

    client_certificate_sent: bool


@dataclass(frozen=True, slots=True)
class HandshakeStep:
    """What comes out of a token after one input.

    Neither flight nor result means that the token needs more of the server's records.
    """

    client_flight: bytes = b""
    """Whole TLS records to send to the server as they are."""

    result: HandshakeResult | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """How much passed between the broker and the card."""

    apdus: int = 0
    octets: int = 0


class HandshakeFailed(Exception):
    """The handshake is over. `alert_flight` must still be sent to the server (it may be empty)."""

    def __init__(self, error: VmTokenError, alert_flight: bytes = b"") -> None:
        super().__init__(error.message)
        self.error = error
        self.alert_flight = alert_flight


@dataclass(frozen=True, slots=True)
class TokenDescription:
    """What a token is, for lists and for the choice of what to offer."""

    serial: str
    assurance: Assurance
    certificate_chain: tuple[bytes, ...] = field(repr=False)
    """DER, leaf first; empty while the token has no certificate."""

    versions: tuple[ProtocolVersion, ...]
    application: str
    """For people: 'EAP-TLS card, profile 1', 'PIV', ..."""


class HandshakeToken(Protocol):
    """Runs one TLS client handshake at a time.

    Every method raises `TokenUnavailable` when the card is gone; the token is then closed.
    """

    @property
    def assurance(self) -> Assurance:
        """What the hardware does in the sessions of this token."""
        ...

    @property
    def traffic(self) -> Traffic:
        """APDUs and octets since `start`; zeros for a token without APDUs."""
        ...

    def describe(self) -> TokenDescription:
        """Read what the token is; asks the card."""
        ...

    def start(self, start: HandshakeStart, authorize: Authorize) -> HandshakeStep:
        """Forget any handshake under way and begin one; the flight is the ClientHello."""
        ...

    def process(self, server_records: bytes) -> HandshakeStep:
        """Take whole TLS records from the server.

        Calls `authorize` once the server is verified, before the flight that answers it exists
        outside the token. Raises `HandshakeFailed`, with whatever `authorize` raised as its error
        if that is a `VmTokenError`. After a result or a failure only `start` and `accept_ticket` follow.
        """
        ...

    def accept_ticket(self, session: bytes, message: bytes) -> Resumption | None:
        """Turn a NewSessionTicket handshake message into a session that can be resumed.

        `session` is the one of `HandshakeResult`; `message` has its 4-octet header (TLS 1.3), and is
        empty after TLS 1.2, where the ticket came inside the handshake. None when the token keeps
        no tickets or has forgotten the session.
        Raises `HandshakeFailed` if the message does not parse.
        """
        ...

    def abort(self) -> None:
        """Forget the handshake, under way or complete; a token may use the time to prepare the next one."""
        ...

    def close(self) -> None:
        """Give the card back; the token is not used again. May be called twice."""
        ...


class SigningKey(Protocol):
    """A key that can only sign. `sign` has one caller: the broker's engine."""

    @property
    def certificate_chain(self) -> Sequence[bytes]:
        """DER, leaf first; empty while the key has no certificate."""
        ...

    @property
    def schemes(self) -> Sequence[SignatureScheme]:
        """What the key can do, best first."""
        ...

    def sign(self, scheme: SignatureScheme, content: bytes) -> bytes:
        """Sign `content`, which is not hashed yet and of any length, as TLS wants it (ECDSA as DER).

        Raises `ValueError` for a scheme that is not one of `schemes`, `TokenUnavailable` when the key is
        gone or closed, or what became of the PIN.
        """
        ...

    def close(self) -> None:
        """Give the key back. May be called twice."""
        ...
