"""What the states of a handshake have in common.

A state is a frozen value that holds what is known at that point. It takes one message and returns
the state that follows; what must happen besides, it tells an `Output`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from vmtoken.tls.codes import HandshakeType, ProtocolVersion, SignatureScheme
from vmtoken.tls.errors import LocalError, UnexpectedMessage
from vmtoken.tls.events import Event
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.keylog import KeyLogLabel
from vmtoken.tls.messages import HandshakeMessage
from vmtoken.tls.negotiation import RecordLimits
from vmtoken.tls.suites import Suite
from vmtoken.tls.tickets import ResumableSession, ResumptionSecret


class Output(Protocol):
    """What a state can make happen."""

    def send(self, message: HandshakeMessage) -> bytes:
        """Send a handshake message under the present key; gives it encoded, for the transcript."""
        ...

    def send_encoded(self, message: bytes) -> None:
        """Send a handshake message that is already encoded, header included."""
        ...

    def send_change_cipher_spec(self) -> None:
        """Send a change_cipher_spec record, which is never encrypted when a state sends it."""
        ...

    def protect_writing(self, suite: Suite, secret: bytes) -> None:
        """What is sent from now on is encrypted with this secret (as in a `KeyBlock`)."""
        ...

    def protect_reading(self, suite: Suite, secret: bytes) -> None:
        """What comes from now on is encrypted with this secret (as in a `KeyBlock`).

        Raises `UnexpectedMessage` if part of a message has come under the old one (RFC 8446 section 5.1).
        """
        ...

    def end_messages(self) -> None:
        """No more handshake messages: raises `UnexpectedMessage` if more came in the same record."""
        ...

    def limit_records(self, limits: RecordLimits) -> None:
        """What both sides said about the length of records."""
        ...

    def emit(self, event: Event) -> None:
        """Tell the driver."""
        ...

    def log_key(self, label: KeyLogLabel, client_random: bytes, secret: bytes) -> None:
        """Write a key log line, if that was asked for."""
        ...


class State:
    """A state that takes nothing; every other overrides what it takes."""

    __slots__ = ()

    version: ClassVar[ProtocolVersion | None] = None
    """What messages are parsed as; None until the ServerHello said."""

    ignores_change_cipher_spec: ClassVar[bool] = False
    """RFC 8446 section 5: a TLS 1.3 client drops them between its hello and the server's Finished."""

    expected: ClassVar[tuple[HandshakeType, ...]] = ()
    """What may come, for error messages."""

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Take a message; `encoded` is the same with its header. Raises `PeerError`."""
        raise UnexpectedMessage(message.handshake_type, self.expected)

    def change_cipher_spec(self, output: Output) -> State:
        """Take the change_cipher_spec of a TLS 1.2 server."""
        raise UnexpectedMessage("change_cipher_spec", self.expected)

    def proceed(self, output: Output) -> State | None:
        """Go on without a message, after the driver consented; None if a message must come first."""
        return None

    def sign(self, scheme: SignatureScheme, signature: bytes, output: Output) -> State:
        """Take the signature that was asked for."""
        raise LocalError("no signature was asked for")


@dataclass(frozen=True, slots=True)
class ExpectSignature(State):
    """The client's key must sign; what the server sends meanwhile waits."""

    scheme: SignatureScheme

    def check(self, scheme: SignatureScheme) -> None:
        """Raise unless the key signed with what was asked for: the server would not take anything else."""
        if scheme is not self.scheme:
            raise LocalError(f"a signature with {self.scheme.name} was asked for, not with {scheme.name}")


Exporter = Callable[[str, bytes | None, int], bytes]
"""Label, context, length: RFC 5705 section 4, RFC 8446 section 7.5."""


@dataclass(frozen=True, slots=True)
class Connected(State):
    """The end of the handshake: what is left of it."""

    key_block: KeyBlock
    exporter: Exporter = field(repr=False)
    resumption: ResumptionSecret | None
    """TLS 1.3."""

    session: ResumableSession | None
    """TLS 1.2."""
