"""ClientConnection: one TLS client connection without I/O.

    connection = ClientConnection(config)
    while True:
        write(connection.data_to_send())
        match connection.next_event():
            case NeedData():
                connection.receive_data(read())
            case SignatureNeeded(scheme, content):
                connection.provide_signature(scheme, key.sign(scheme, content))
            case HandshakeComplete():
                return connection.key_block()

Runs in the software element, and in the broker for keys that can only sign; never in a guest.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from vmtoken.tls import hello
from vmtoken.tls.codes import AlertDescription, AlertLevel, SignatureScheme
from vmtoken.tls.config import ClientConfig
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.errors import LocalError, PeerError, TlsError
from vmtoken.tls.events import Event, NeedData
from vmtoken.tls.handshake_records import HandshakeRecords, Signal
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.messages import decode_message
from vmtoken.tls.state import Connected, ExpectSignature, State
from vmtoken.tls.tickets import ResumableSession, ResumptionSecret


class ClientConnection:
    """One connection, from the ClientHello until its keys are handed over or it ends.

    After a `TlsError` from `next_event` the connection is over, and `data_to_send` holds the alert
    that the server is owed. A call that does not belong at this point raises `LocalError`.
    """

    def __init__(self, config: ClientConfig, *, random: Callable[[int], bytes] = os.urandom) -> None:
        """Make the ClientHello; `data_to_send` has it.

        `random` gives the octets that are sent as they are; private keys come from the cryptographic library.
        """
        self._records = HandshakeRecords(config.key_log)
        self._end: TlsError | None = None
        self._session: DelegatedConnection | None = None
        self._state: State = hello.start(config, random, self._records)

    def data_to_send(self) -> bytes:
        """Whole records for the server, each once."""
        data = self._records.data_to_send()
        return data if self._session is None else data + self._session.data_to_send()

    def receive_data(self, data: bytes) -> None:
        """Take octets from the server, in pieces of any size; `next_event` looks at them."""
        self._check_open()
        if self._session is None:
            self._records.receive(data)
        else:
            self._session.receive_data(data)

    def next_event(self) -> Event:
        """What happened next, or `NeedData`.

        `ServerAuthenticated` comes before anything exists that answers the server; asking for the
        next event is consent. Raises `PeerError`, `AlertReceived`, `LocalError`.
        """
        self._check_open()
        if isinstance(self._state, ExpectSignature) and not self._records.events:
            raise LocalError("the handshake waits for a signature")
        try:
            return self._next_event()
        except TlsError as error:
            self._fail(error)
            raise

    def provide_signature(self, scheme: SignatureScheme, signature: bytes) -> None:
        """Answer `SignatureNeeded`; the rest of the client's flight can then be sent."""
        self._check_open()
        self._state = self._state.sign(scheme, signature, self._records)

    def refuse(self, alert: AlertDescription = AlertDescription.ACCESS_DENIED) -> None:
        """End the handshake instead of going on; `data_to_send` holds the alert and nothing of the flight."""
        self._check_open()
        if isinstance(self._state, Connected):
            raise LocalError("the handshake is complete: it is too late to refuse")
        self._abort(alert, LocalError(f"the handshake was refused with {alert.name}"))

    def key_block(self) -> KeyBlock:
        """The keys of the session, once, after `HandshakeComplete`; the connection is then over."""
        connected = self._connected()
        if self._session is not None:
            raise LocalError("the connection uses its keys itself")
        self._end = LocalError("the keys of this connection were handed over")
        self._state = State()
        return connected.key_block

    @property
    def unread(self) -> bytes:
        """Octets behind the handshake that came with it: for who takes over the key block.

        Some servers send TLS 1.3 tickets before they hear our Finished.
        """
        return self._records.unread

    def resumption(self) -> ResumptionSecret | None:
        """What turns the tickets of this TLS 1.3 session into sessions; None in TLS 1.2."""
        return self._connected().resumption

    def session(self) -> ResumableSession | None:
        """The TLS 1.2 session, if the server lets it be resumed; None in TLS 1.3."""
        return self._connected().session

    def export_keying_material(self, label: str, context: bytes | None, length: int) -> bytes:
        """RFC 5705, RFC 8446 section 7.5; in TLS 1.3 no context is the same as an empty one."""
        return self._connected().exporter(label, context, length)

    def send_data(self, data: bytes) -> None:
        """Send application data; the connection then keeps its keys. For EAP and tests."""
        self._record_layer(self._connected()).send_data(data)

    def close(self) -> None:
        """Send close_notify."""
        self._record_layer(self._connected()).close()

    def _next_event(self) -> Event:
        records = self._records
        while not records.events:
            if isinstance(self._state, Connected):
                return self._record_layer(self._state).next_event()
            following = self._state.proceed(records)
            if following is None:
                message = records.next_message(self._state.version)
                if message is None:
                    return NeedData()
                following = self._take(message)
            self._state = following
        return records.events.popleft()

    def _take(self, message: bytes | Signal) -> State:
        if isinstance(message, bytes):
            return self._state.handle(decode_message(message, self._state.version), message, self._records)
        if self._state.ignores_change_cipher_spec:
            return self._state
        return self._state.change_cipher_spec(self._records)

    def _record_layer(self, connected: Connected) -> DelegatedConnection:
        """The same that a guest would use, started when the first need for it shows."""
        if self._session is None:
            self._session = DelegatedConnection(connected.key_block)
            self._session.receive_data(self._records.unread)
        return self._session

    def _connected(self) -> Connected:
        self._check_open()
        if not isinstance(self._state, Connected):
            raise LocalError("the handshake is not complete")
        return self._state

    def _check_open(self) -> None:
        if self._end is not None:
            raise self._end

    def _fail(self, error: TlsError) -> None:
        """Tell the server, unless it was the server who told us, or the record layer has told it."""
        self._end = error
        if self._session is None and isinstance(error, PeerError | LocalError):
            self._abort(error.alert, error)

    def _abort(self, alert: AlertDescription, end: TlsError) -> None:
        self._records.discard_flight()
        self._records.send_alert(AlertLevel.FATAL, alert)
        self._end = end
        self._state = State()
