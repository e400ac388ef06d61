"""One TLS handshake inside the software element, and what may be known of it outside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from dom0_broker.backends.software.card_error import CardError
from dom0_broker.tls_client.handshake import Client, ClientHandshake
from dom0_broker.tls_client.key_shares import KeyShareStock
from dom0_broker.tls_client.sessions import SessionTable, identity_of
from vmtoken.cards.codes import Export, FailureCode, Mode
from vmtoken.cards.profile import (
    FailureExport,
    ResultExport,
    ServerExport,
    SessionFacts,
    SessionState,
    StartParameters,
)
from vmtoken.errors import (
    ClientCertificateRefused,
    ClientCertificateUnusable,
    ServerCertificateInvalid,
    TlsVersionUnsupported,
    VmTokenError,
)
from vmtoken.iso7816.status import StatusWord
from vmtoken.tls.certificates import VerifiedServer
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.tls.errors import AlertReceived, LocalError, PeerError, TlsError
from vmtoken.tls.events import DataReceived, HandshakeComplete, ServerAuthenticated
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.signatures import sign
from vmtoken.token import HandshakeStart, ServerIdentity

if TYPE_CHECKING:
    from dom0_broker.backends.software.eap_tls_applet import LoadedIdentity

_EAP_TLS_TYPE = b"\x0d"
_EAP_KEYS_LENGTH = 128
_COMMITMENT = b"\x00"
"""An EAP server's promise, in TLS 1.3, to send no more handshake messages (RFC 9190 section 2.5)."""

_CODES: dict[type[VmTokenError], FailureCode] = {
    ServerCertificateInvalid: FailureCode.SERVER_CERTIFICATE,
    ClientCertificateUnusable: FailureCode.CLIENT_CERTIFICATE_UNUSABLE,
    ClientCertificateRefused: FailureCode.CLIENT_CERTIFICATE_REFUSED,
    TlsVersionUnsupported: FailureCode.VERSION,
}
"""Everything else is OTHER."""


class HandshakeAborted(Exception):
    """The handshake is over without result."""

    def __init__(self, failure: FailureExport) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Handshake:
    """Drives the engine with the identity's key. Raises `HandshakeAborted`."""

    def __init__(
        self,
        parameters: StartParameters,
        identity: LoadedIdentity,
        sessions: SessionTable,
        shares: KeyShareStock,
        random: Callable[[int], bytes],
    ) -> None:
        self._mode = parameters.mode
        self._handshake = _begin(parameters, identity, sessions, shares, random)
        self._server: VerifiedServer | None = None
        self._done: HandshakeComplete | None = None
        self._committed = False
        self._state: SessionState | None = None
        self._key_block: KeyBlock | None = None

    @property
    def is_complete(self) -> bool:
        """Whether both Finished are verified; in an EAP peer of TLS 1.3 also the server's closing octet."""
        if self._done is None:
            return False
        return self._mode is Mode.TOKEN or self._committed or self._done.version is ProtocolVersion.TLS_1_2

    def flight(self) -> bytes:
        """Records to send."""
        return self._handshake.flight()

    def receive(self, records: bytes) -> bytes:
        """Take the server's records and answer them; empty while more of them are needed."""
        if self._done is not None and self._mode is Mode.TOKEN:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        try:
            self._run(records)
        except TlsError as error:
            raise HandshakeAborted(self._describe(error)) from error
        flight = self._handshake.flight()
        if self._done is not None and self._mode is Mode.TOKEN:
            self._hand_over(self._done)
        return flight

    def export(self, index: int) -> bytes:
        """See `Export`; raises `CardError`."""
        match index:
            case Export.SERVER_ID:
                return self._verified_server.server_name.encode("ascii")
            case Export.SERVER_CERTIFICATE:
                return self._verified_server.leaf
            case Export.SERVER_PATH:
                return b"".join(self._verified_server.spki_sha256)
            case Export.SERVER:
                server = identity_of(self._verified_server)
                return server_export(server, complete=self._state is not None).encode()
            case Export.CIPHER_SUITE:
                return self._session_state.cipher_suite.to_bytes(2, "big")
            case Export.SESSION_STATE:
                return self._session_state.encode()
            case Export.KEY_BLOCK:
                return self._take_key_block().encode()
            case Export.RESULT:
                return ResultExport(self._take_key_block(), self._session_state.facts).encode()
        raise CardError(StatusWord.REFERENCED_DATA_NOT_FOUND)

    def eap_keys(self) -> bytes:
        """MSK and EMSK (RFC 5216 section 2.3, RFC 9190 section 2.3)."""
        assert self._done is not None
        if self._done.version is ProtocolVersion.TLS_1_3:
            label, context = "EXPORTER_EAP_TLS_Key_Material", _EAP_TLS_TYPE
            return self._handshake.export_keying_material(label, context, _EAP_KEYS_LENGTH)
        return self._handshake.export_keying_material("client EAP encryption", None, _EAP_KEYS_LENGTH)

    def forget_keys(self) -> None:
        """Wipe the key block if nobody read it."""
        if self._key_block is not None:
            self._key_block.client_secret.wipe()
            self._key_block.server_secret.wipe()
            self._key_block = None

    @property
    def _verified_server(self) -> VerifiedServer:
        if self._server is None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return self._server

    @property
    def _session_state(self) -> SessionState:
        if self._state is None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return self._state

    def _run(self, records: bytes) -> None:
        """Until the engine waits for the server; a token is done when the handshake is complete."""
        for event in self._handshake.events(records):
            match event:
                case ServerAuthenticated(server):
                    self._server = server
                case HandshakeComplete():
                    self._done = event
                    if self._mode is Mode.TOKEN:
                        return
                case DataReceived(data):
                    self._take_commitment(data)

    def _take_commitment(self, data: bytes) -> None:
        """RFC 9190 section 2.5: one octet 00, and nothing else."""
        if data != _COMMITMENT or self._committed:
            raise HandshakeAborted(
                FailureExport(FailureCode.OTHER, "The EAP server sent application data after the handshake.")
            )
        self._committed = True

    def _hand_over(self, done: HandshakeComplete) -> None:
        self._key_block, handle = self._handshake.hand_over()
        self._state = _session_state(done, self._key_block, handle)

    def _take_key_block(self) -> KeyBlock:
        """Once; afterwards the element has forgotten it."""
        key_block, self._key_block = self._key_block, None
        if key_block is None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return key_block

    def _describe(self, error: TlsError) -> FailureExport:
        meaning = self._handshake.meaning(error)
        return FailureExport(
            code=_CODES.get(type(meaning), FailureCode.OTHER),
            message=meaning.message,
            alert_flight=self._handshake.flight(),
            alert_sent=error.alert if isinstance(error, PeerError | LocalError) else None,
            alert_received=error.description if isinstance(error, AlertReceived) else None,
        )


def server_export(server: ServerIdentity, *, complete: bool) -> ServerExport:
    """A verified server as it goes out of the element."""
    return ServerExport(server.server_name, server.spki_sha256, server.leaf, complete)


def _begin(
    parameters: StartParameters,
    identity: LoadedIdentity,
    sessions: SessionTable,
    shares: KeyShareStock,
    random: Callable[[int], bytes],
) -> ClientHandshake:
    """Raises `HandshakeAborted` if the identity lacks something, `CardError` for senseless parameters."""
    private_key, server_name = identity.private_key, parameters.server_name or identity.server_name
    if identity.credential is None or private_key is None:
        _not_ready("The card has no certificate for its key yet; the operator has to install one.")
    if identity.trust is None:
        _not_ready("The card has no trust anchors yet; the operator has to install some.")
    if server_name is None:
        _not_ready("The Start names no server, and the card has no name of its EAP server; give it one.")
    sign_inside = functools.partial(sign, private_key)
    client = Client(identity.credential, sign_inside, identity.trust, sessions, shares, random)
    try:
        return ClientHandshake(client, _start(parameters, server_name))
    except ValueError:
        raise CardError(StatusWord.WRONG_DATA) from None


def _start(parameters: StartParameters, server_name: str) -> HandshakeStart:
    return HandshakeStart(
        server_name=server_name,
        time=parameters.time,
        alpn=parameters.alpn,
        min_version=parameters.min_version,
        max_version=parameters.max_version,
        resumption=parameters.resumption,
        certificate=parameters.certificate,
    )


def _not_ready(message: str) -> NoReturn:
    raise HandshakeAborted(FailureExport(FailureCode.NOT_READY, message))


def _session_state(done: HandshakeComplete, key_block: KeyBlock, handle: bytes) -> SessionState:
    return SessionState(
        version=done.version,
        cipher_suite=done.cipher_suite,
        client_sequence=key_block.client_sequence,
        server_sequence=key_block.server_sequence,
        send_limit=key_block.send_limit,
        receive_limit=key_block.receive_limit,
        facts=SessionFacts(done.resumed, done.client_certificate_sent, done.group, done.alpn, handle),
    )
