"""The EAP-TLS method of the software element: RFC 5216 and RFC 9190 as a peer, or a TLS token.

EAP packets go in and out; the handshake is `vmtoken.tls`. `docs/card-profile.md` describes what
can be exported, and when.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from dom0_broker.backends.software import keys
from dom0_broker.backends.software.card_error import CardError
from dom0_broker.backends.software.handshake import Handshake, HandshakeAborted, server_export
from dom0_broker.backends.software.keystore import StoredIdentity
from dom0_broker.tls_client.key_shares import KeyShareStock
from dom0_broker.tls_client.sessions import SessionTable
from vmtoken.cards.codes import Export, FailureCode, Mode
from vmtoken.cards.profile import FailureExport, StartParameters, TicketAnswer
from vmtoken.codec import DecodeError
from vmtoken.eap.eap_tls import ACKNOWLEDGEMENT, EapTlsMessage
from vmtoken.eap.fragments import MIN_PACKET_LENGTH, Fragmenter, Reassembler
from vmtoken.eap.packet import MAX_PACKET_LENGTH, EapCode, EapPacket, EapType
from vmtoken.iso7816.status import StatusWord
from vmtoken.tls.config import Credential, TrustStore
from vmtoken.tls.errors import TlsError
from vmtoken.tls.signatures import PublicKey

_DEFAULT_PACKET_LENGTH = 1020
"""Octets of an EAP packet when the Start does not say: what every link carries (RFC 3748 section 3.1)."""

_MAX_FLIGHT = 1 << 17
"""Octets of TLS records that are put together from fragments: above what the longest chains need."""

_MSK_LENGTH = 64
_MSK_AND_EMSK_LENGTH = 128


class MethodState(enum.IntEnum):
    """What Get-State answers (draft section 9.17)."""

    IDENTITY_NOT_SET = 0x01
    AUTHENTICATING = 0x02
    AUTHENTICATED = 0x03
    NOT_AUTHENTICATED = 0x04


@dataclass(frozen=True, slots=True)
class LoadedIdentity:
    """An identity with its key and certificates parsed once for many handshakes."""

    stored: StoredIdentity
    private_key: keys.PrivateKey | None = field(repr=False)
    credential: Credential | None
    trust: TrustStore | None

    @property
    def label(self) -> bytes:
        """What Set-Identity takes and EAP-Response/Identity says."""
        return self.stored.label

    @property
    def server_name(self) -> str | None:
        """Whom an EAP peer expects when the Start names nobody."""
        return self.stored.server_name

    @classmethod
    def of(cls, stored: StoredIdentity) -> LoadedIdentity:
        """Parse what is stored; it was checked when it was stored."""
        key = None if stored.private_key is None else keys.load(stored.private_key)
        credential = None
        if key is not None and stored.chain:
            credential = Credential(stored.chain, PublicKey(key.public_key()).schemes())
        trust = TrustStore(stored.anchors) if stored.anchors else None
        return cls(stored, key, credential, trust)


class EapTlsApplet:
    """The method's state machine; one conversation at a time."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._sessions = SessionTable(random)
        self._shares = KeyShareStock()
        self._state = MethodState.IDENTITY_NOT_SET
        self._identity: LoadedIdentity | None = None
        self._conversation: _Conversation | None = None

    @property
    def identity(self) -> LoadedIdentity | None:
        """The current one."""
        return self._identity

    @property
    def state(self) -> MethodState:
        """Where the conversation stands."""
        return self._state

    def use_identity(self, identity: LoadedIdentity | None) -> None:
        """Set-Identity; sessions of another identity, or of an earlier key or trust, are forgotten."""
        self._drop_conversation()
        if identity is not self._identity:
            self._sessions.clear()
        self._identity = identity
        self._state = MethodState.IDENTITY_NOT_SET if identity is None else MethodState.NOT_AUTHENTICATED

    def reset_state(self) -> None:
        """Reset-State (section 9.18): the handshake and its key block are forgotten, sessions are not.

        Nobody waits for the answer, so this is the time to make the keys of the next handshake.
        """
        self._drop_conversation()
        self._shares.prepare()
        if self._identity is not None:
            self._state = MethodState.AUTHENTICATING

    def process_eap(self, octets: bytes) -> bytes:
        """Process-EAP (section 9.13.1): the answer to a packet; raises `CardError`."""
        if self._identity is None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        try:
            packet, tail = EapPacket.decode_with_tail(octets)
        except DecodeError:
            raise CardError(StatusWord.SILENTLY_DISCARDED) from None
        match packet:
            case EapPacket(EapCode.REQUEST, _, EapType.EAP_TLS):
                return self._eap_tls(packet, tail)
            case EapPacket(EapCode.REQUEST, _, EapType.IDENTITY):
                return self._identity_request(packet)
            case EapPacket(EapCode.REQUEST, identifier, EapType.NOTIFICATION):
                return EapPacket(EapCode.RESPONSE, identifier, EapType.NOTIFICATION).encode()
            case EapPacket(EapCode.REQUEST, identifier):
                self._state = MethodState.NOT_AUTHENTICATED
                wanted = bytes((EapType.EAP_TLS,))
                return EapPacket(EapCode.RESPONSE, identifier, EapType.NAK, wanted).encode()
            case EapPacket(EapCode.SUCCESS):
                return self._success()
            case EapPacket(EapCode.FAILURE):
                return self._failure()
        raise CardError(StatusWord.SILENTLY_DISCARDED)

    def export(self, index: int) -> bytes:
        """Get-Exported-Parameter (section 9.19); 6985 until there is something to export."""
        if index == Export.PEER_ID and self._identity is not None:
            return self._identity.label
        if self._conversation is None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return self._conversation.export(index)

    def session_key(self, le: int | None) -> bytes:
        """Get-Session-Key (section 9.15): the MSK, or MSK and EMSK if Le asks for 128 octets."""
        if self._conversation is None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return self._conversation.session_key()[
            : _MSK_AND_EMSK_LENGTH if le == _MSK_AND_EMSK_LENGTH else _MSK_LENGTH
        ]

    def take_ticket(self, session: bytes, message: bytes) -> bytes:
        """Take-Ticket: a session that can be resumed, or nothing; raises `CardError`."""
        try:
            resumption = self._sessions.accept_ticket(session, message)
        except KeyError:
            raise CardError(StatusWord.REFERENCED_DATA_NOT_FOUND) from None
        except TlsError:
            raise CardError(StatusWord.WRONG_DATA) from None
        if resumption is None:
            return b""
        server = server_export(resumption.server, complete=True)
        return TicketAnswer(resumption.handle, resumption.version, resumption.lifetime, server).encode()

    def _identity_request(self, packet: EapPacket) -> bytes:
        """It restarts the machine, whatever went on (section 5.8)."""
        assert self._identity is not None
        self._drop_conversation()
        self._state = MethodState.AUTHENTICATING
        label = self._identity.label
        return EapPacket(EapCode.RESPONSE, packet.identifier, EapType.IDENTITY, label).encode()

    def _eap_tls(self, packet: EapPacket, tail: bytes) -> bytes:
        try:
            message = EapTlsMessage.decode(packet.data)
        except DecodeError:
            raise CardError(StatusWord.SILENTLY_DISCARDED) from None
        if message.start:
            return self._start(packet.identifier, tail)
        if self._conversation is None:
            raise CardError(StatusWord.SILENTLY_DISCARDED)
        answer = self._conversation.process(packet.identifier, message)
        if self._conversation.has_failed:
            self._state = MethodState.NOT_AUTHENTICATED
        elif self._conversation.is_complete and self._conversation.mode is Mode.TOKEN:
            self._state = MethodState.AUTHENTICATED
        return answer

    def _start(self, identifier: int, tail: bytes) -> bytes:
        """EAP-TLS Start with the time behind the packet (annex 3): a fresh handshake."""
        assert self._identity is not None
        try:
            parameters = StartParameters.decode(tail)
        except DecodeError:
            raise CardError(StatusWord.WRONG_DATA) from None
        self._drop_conversation()
        self._state = MethodState.AUTHENTICATING
        self._conversation = _Conversation(
            parameters, self._identity, self._sessions, self._shares, self._random
        )
        return self._conversation.begin(identifier)

    def _success(self) -> bytes:
        """EAP-Success counts only where the method is done (RFC 3748 section 4.2)."""
        if self._conversation is None or not self._conversation.is_complete:
            raise CardError(StatusWord.SILENTLY_DISCARDED)
        self._state = MethodState.AUTHENTICATED
        return b""

    def _failure(self) -> bytes:
        if self._conversation is not None:
            self._conversation.forget_keys()
        self._state = MethodState.NOT_AUTHENTICATED
        raise CardError(StatusWord.AUTHENTICATION_FAILED)

    def _drop_conversation(self) -> None:
        if self._conversation is not None:
            self._conversation.forget_keys()
        self._conversation = None


class _Conversation:
    """The EAP-TLS packets of one handshake: fragments, acknowledgements, retransmissions."""

    def __init__(
        self,
        parameters: StartParameters,
        identity: LoadedIdentity,
        sessions: SessionTable,
        shares: KeyShareStock,
        random: Callable[[int], bytes],
    ) -> None:
        self.mode = parameters.mode
        self._parameters = parameters
        self._identity = identity
        self._sessions = sessions
        self._shares = shares
        self._random = random
        self._packet_length = _packet_length(parameters)
        self._reassembler = Reassembler(_MAX_FLIGHT)
        self._outgoing: Fragmenter | None = None
        self._identifier: int | None = None
        self._answer = b""
        self._handshake: Handshake | None = None
        self._failure: FailureExport | None = None

    @property
    def is_complete(self) -> bool:
        """Whether both Finished, and what the mode adds to them, are verified."""
        return self._handshake is not None and self._handshake.is_complete and self._failure is None

    @property
    def has_failed(self) -> bool:
        """Whether it is over without result."""
        return self._failure is not None

    def begin(self, identifier: int) -> bytes:
        """The ClientHello; 6985, with the reason as export 85, if the identity is not ready."""
        return self._respond(identifier, self._client_hello)

    def process(self, identifier: int, message: EapTlsMessage) -> bytes:
        """The answer to a packet; a repeated identifier gets the same answer again (RFC 3748 section 4.1)."""
        if identifier == self._identifier:
            return self._answer
        if self._outgoing is not None:
            if not message.is_acknowledgement:
                raise CardError(StatusWord.SILENTLY_DISCARDED)
            return self._respond(identifier, lambda: b"")
        if self._failure is not None:
            raise CardError(
                StatusWord.AUTHENTICATION_FAILED if self._is_peer else StatusWord.CONDITIONS_NOT_SATISFIED
            )
        try:
            records = self._reassembler.add(message)
        except DecodeError:
            raise CardError(StatusWord.SILENTLY_DISCARDED) from None
        return self._respond(identifier, lambda: self._feed(records))

    def export(self, index: int) -> bytes:
        """Raises `CardError` 6985 when it is too early or too late, 6A88 for an unknown index."""
        if index == Export.FAILURE:
            if self._failure is None:
                raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
            return self._failure.encode()
        if self._handshake is None or self._failure is not None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return self._handshake.export(index)

    def session_key(self) -> bytes:
        """MSK and EMSK of an EAP peer."""
        if not self._is_peer or not self.is_complete:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        assert self._handshake is not None
        return self._handshake.eap_keys()

    def forget_keys(self) -> None:
        """Wipe the key block and whatever else the handshake holds."""
        if self._handshake is not None:
            self._handshake.forget_keys()
            self._handshake = None

    @property
    def _is_peer(self) -> bool:
        return self.mode is Mode.EAP_PEER

    def _client_hello(self) -> bytes:
        self._handshake = Handshake(
            self._parameters, self._identity, self._sessions, self._shares, self._random
        )
        return self._handshake.flight()

    def _feed(self, records: bytes | None) -> bytes:
        """Nothing while fragments are missing, else what the handshake answers."""
        if not records:
            return b""
        assert self._handshake is not None
        return self._handshake.receive(records)

    def _respond(self, identifier: int, flight: Callable[[], bytes]) -> bytes:
        try:
            octets = flight()
        except HandshakeAborted as error:
            octets = self._fail(error.failure)
        if octets:
            self._outgoing = Fragmenter(octets, self._packet_length)
        self._identifier = identifier
        self._answer = EapPacket(
            EapCode.RESPONSE, identifier, EapType.EAP_TLS, self._next_message().encode()
        ).encode()
        return self._answer

    def _next_message(self) -> EapTlsMessage:
        if self._outgoing is None:
            return ACKNOWLEDGEMENT
        message = self._outgoing.next_fragment()
        if self._outgoing.is_done:
            self._outgoing = None
        return message

    def _fail(self, failure: FailureExport) -> bytes:
        """A peer sends the alert in its next packet (RFC 5216 section 2.1.3); a token refuses at once."""
        self.forget_keys()
        self._failure = failure
        if self._is_peer and failure.code is not FailureCode.NOT_READY:
            return failure.alert_flight
        raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)


def _packet_length(parameters: StartParameters) -> int:
    wanted = parameters.packet_length
    if wanted is None:
        return MAX_PACKET_LENGTH if parameters.mode is Mode.TOKEN else _DEFAULT_PACKET_LENGTH
    if wanted < MIN_PACKET_LENGTH:
        raise CardError(StatusWord.WRONG_DATA)
    return wanted
