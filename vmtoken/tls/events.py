"""What a connection tells its driver: the answers of `next_event`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmtoken.tls.codes import CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme

if TYPE_CHECKING:  # the guest has the record events without the certificate code
    from vmtoken.tls.certificates import VerifiedServer


@dataclass(frozen=True, slots=True)
class NeedData:
    """Nothing can happen before the peer sends more."""


@dataclass(frozen=True, slots=True)
class ServerAuthenticated:
    """The server proved who it is, and nothing that answers it exists yet.

    Asking for the next event is consent; `ClientConnection.refuse` is not.
    """

    server: VerifiedServer
    resumed: bool
    """The proof is the one of the session that is resumed."""


@dataclass(frozen=True, slots=True)
class SignatureNeeded:
    """The client's key must sign; `ClientConnection.provide_signature` goes on."""

    scheme: SignatureScheme
    content: bytes = field(repr=False)
    """Not hashed yet."""


@dataclass(frozen=True, slots=True)
class HandshakeComplete:
    """Both Finished messages are verified or on their way; `key_block` may be called once."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    group: NamedGroup | None
    """None when TLS 1.2 resumed a session: there is no key exchange."""

    alpn: str | None
    resumed: bool
    client_certificate_sent: bool
    """In this handshake, or in the one that is resumed."""

    server: VerifiedServer


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Application data."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TicketReceived:
    """A NewSessionTicket of TLS 1.3: the handshake message, with its header."""

    message: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer said close_notify: nothing more comes, and nothing is missing."""


Event = (
    NeedData
    | ServerAuthenticated
    | SignatureNeeded
    | HandshakeComplete
    | DataReceived
    | TicketReceived
    | Closed
)
