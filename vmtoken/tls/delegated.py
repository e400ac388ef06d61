"""DelegatedConnection: a token elsewhere ran the handshake, we take over its key block and do the records.

    connection = DelegatedConnection(key_block)
    connection.send_data(request)
    write(connection.data_to_send())
    connection.receive_data(read())
    while not isinstance(event := connection.next_event(), NeedData):
        ...

Both versions, no I/O. KeyUpdate (RFC 8446 section 4.6.3) goes on by itself: when the peer asks, and
before a key is used up (section 5.5).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import (
    AlertDescription,
    AlertLevel,
    ContentType,
    HandshakeType,
    KeyUpdateRequest,
    ProtocolVersion,
)
from vmtoken.tls.errors import (
    AlertReceived,
    ConnectionClosed,
    IllegalParameter,
    LocalError,
    PeerError,
    SequenceExhausted,
    TlsError,
    TruncatedStream,
    UnexpectedMessage,
)
from vmtoken.tls.events import Closed, DataReceived, NeedData, TicketReceived
from vmtoken.tls.key_block import MAX_PLAINTEXT, KeyBlock
from vmtoken.tls.key_schedule import next_traffic_secret
from vmtoken.tls.messages import HelloRequest, KeyUpdate, NewSessionTicket13, decode_message, encode_message
from vmtoken.tls.reassembly import HandshakeReassembler
from vmtoken.tls.record import (
    HEADER_LENGTH,
    MAX_CIPHERTEXT,
    AeadProtection,
    Alert,
    FloodGuard,
    Octets,
    RecordReader,
    record_protection,
)
from vmtoken.tls.suites import Suite, suite_of

UPDATE_MARGIN = 1 << 16
"""A key is replaced when so few records are left to it: a GiB, so that the peer has time to follow."""

ALERT_RESERVE = 2
"""Records kept back for alerts when a TLS 1.2 key is used up, which nothing can replace."""

ROOM_TO_SPARE = HEADER_LENGTH + MAX_CIPHERTEXT
"""Octets of the part of a record that may have come before, which `receive_into` needs room for."""

RecordEvent = NeedData | DataReceived | TicketReceived | Closed


class DelegatedConnection:
    """The record layer of one session. After a `TlsError` from `next_event` the session is over."""

    __slots__ = (
        "_events",
        "_failure",
        "_guard",
        "_outgoing",
        "_peer_closed",
        "_reader",
        "_reassembler",
        "_receiving",
        "_sending",
        "_sending_ended",
        "_version",
    )

    def __init__(self, key_block: KeyBlock) -> None:
        """Start where the handshake ended; the secrets are copied, the key block may be wiped."""
        suite = suite_of(key_block.cipher_suite)
        assert suite is not None  # KeyBlock checked it
        self._version = key_block.version
        self._sending = _Direction(
            suite, key_block.client_secret, key_block.client_sequence, key_block.send_limit
        )
        self._receiving = _Direction(
            suite, key_block.server_secret, key_block.server_sequence, key_block.receive_limit
        )
        self._reader = RecordReader()
        self._reassembler = HandshakeReassembler()
        self._guard = FloodGuard()
        self._outgoing = bytearray()
        self._events: deque[DataReceived | TicketReceived] = deque()
        self._sending_ended = False
        self._peer_closed = False
        self._failure: TlsError | None = None

    def data_to_send(self) -> bytes | bytearray:
        """Whole records for the server, each once; the caller owns the buffer."""
        outgoing, self._outgoing = self._outgoing, bytearray()
        return outgoing

    def send_data(self, data: Octets) -> None:
        """Encrypt application data of any length into as few records as the server's limit allows.

        Raises `ConnectionClosed` after `close` or an error, `SequenceExhausted` when a TLS 1.2 key
        is used up (RFC 9325 section 4.4).
        """
        if self._sending_ended:
            raise ConnectionClosed("the sending half of the session is closed")
        if not data:
            return
        count = -(-len(data) // self._sending.protection.limit)
        if self._sending.protection.records_left < count + UPDATE_MARGIN:
            self._renew_sending_key(count)
        self._send(ContentType.APPLICATION_DATA, data)

    def receive_data(self, data: Octets) -> None:
        """Take octets from the server, in pieces of any size; nothing of `data` is kept by reference.

        Many records at once are the fast way: 64 KiB or more. What comes after the end is ignored
        (RFC 8446 section 6.1).
        """
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            self._receive_piece(view[start : start + _PIECE])

    def receive_into(self, data: Octets, room: bytearray | memoryview) -> int:
        """Take octets from the server, and put the application data in them at the start of `room`.

        As `receive_data`, but without the copy and the event: gives the number of octets, what
        follows them in `room` means nothing. `next_event` tells everything else, after them. `room`
        may be used again and again; it needs `len(data) + ROOM_TO_SPARE` octets.
        """
        if len(room) < len(data) + ROOM_TO_SPARE:
            raise LocalError(f"{len(data)} octets of records need {len(data) + ROOM_TO_SPARE} octets of room")
        with memoryview(room) as view:
            return max(self._fill(view, data), default=0)

    def receive_eof(self) -> None:
        """TCP ended; unless close_notify came before, `next_event` raises `TruncatedStream` in the end."""
        if not self._is_over():
            self._end(TruncatedStream("TCP ended without close_notify: data may be missing"))

    def next_event(self) -> RecordEvent:
        """What came, in order; then `NeedData`, or for ever `Closed` or the error that ended the session."""
        if self._events:
            return self._events.popleft()
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        return _CLOSED if self._peer_closed else _NEED_DATA

    def update_keys(self, *, request_peer: bool = False) -> None:
        """Change our key now, and ask the server to change its own; only in TLS 1.3."""
        if self._version != ProtocolVersion.TLS_1_3:
            raise LocalError("TLS 1.2 has no KeyUpdate")
        if self._sending_ended:
            raise ConnectionClosed("the sending half of the session is closed")
        request = KeyUpdateRequest.UPDATE_REQUESTED if request_peer else KeyUpdateRequest.UPDATE_NOT_REQUESTED
        self._send(ContentType.HANDSHAKE, encode_message(KeyUpdate(request)))
        self._sending.update()

    def close(self) -> None:
        """Send close_notify; the server may go on sending, and we receiving (RFC 8446 section 6.1)."""
        self._send_alert(AlertLevel.WARNING, AlertDescription.CLOSE_NOTIFY)
        self._stop_sending()

    # Sending.

    def _send(self, content_type: ContentType, data: Octets) -> None:
        records = self._sending.protection.protect(content_type, data)
        if self._outgoing:
            self._outgoing += records
        else:
            self._outgoing = records

    def _send_alert(self, level: AlertLevel, description: AlertDescription) -> None:
        """A key that is used up protects no alert either."""
        if not self._sending_ended and self._sending.protection.records_left:
            self._send(ContentType.ALERT, Alert(level, description).encode())

    def _stop_sending(self) -> None:
        self._sending_ended = True
        self._sending.wipe()

    def _renew_sending_key(self, count: int) -> None:
        if self._version == ProtocolVersion.TLS_1_3:
            self.update_keys()
        elif self._sending.protection.records_left < count + ALERT_RESERVE:
            raise SequenceExhausted("the key of the session is used up; open another session")

    def _ask_for_new_key(self) -> None:
        """Once for each key of the server that wears out; and answer the server's own request, if any."""
        if self._sending_ended or self._version != ProtocolVersion.TLS_1_3:
            return
        receiving = self._receiving
        if receiving.protection.records_left < UPDATE_MARGIN and not receiving.update_requested:
            receiving.update_requested = True
            self.update_keys(request_peer=True)
        elif self._sending.update_requested:
            self.update_keys()

    # Receiving.

    def _receive_piece(self, data: memoryview) -> None:
        room = memoryview(bytearray(self._reader.held_length + len(data)))
        start = 0
        for end in self._fill(room, data):
            self._events.append(DataReceived(bytes(room[start:end])))
            start = end

    def _fill(self, room: memoryview, data: Octets) -> Iterator[int]:
        """Put application data into `room`; gives how far it goes, before what is no data and in the end."""
        given = end = 0
        if self._is_over():
            return
        try:
            for record in self._reader.records(data):
                content_type, length = self._receiving.protection.unprotect_into(record, room, end)
                if content_type == _APPLICATION_DATA and length and self._reassembler.is_empty:
                    end += length
                    continue
                if end > given:
                    self._guard.progress()
                    yield (given := end)
                self._take_content(content_type, room[end : end + length])
                if self._peer_closed:
                    break
            self._ask_for_new_key()
        except PeerError as error:
            self._end(error)
            self._send_alert(AlertLevel.FATAL, error.alert)
            self._stop_sending()
        except AlertReceived as error:
            self._end(error)
            self._stop_sending()  # RFC 8446 section 6.2
        if end > given:
            self._guard.progress()
            yield end

    def _take_content(self, content_type: int, content: memoryview) -> None:
        if content_type == ContentType.HANDSHAKE:
            self._take_handshake(content)
        elif not self._reassembler.is_empty:
            raise UnexpectedMessage("another record in the middle of a handshake message")
        elif content_type == ContentType.APPLICATION_DATA:
            self._guard.empty_record()
        elif content_type == ContentType.ALERT:
            self._take_alert(Alert.decode(content))
        else:
            raise UnexpectedMessage("change_cipher_spec after the handshake")

    def _take_alert(self, alert: Alert) -> None:
        """RFC 8446 section 6: but for closure alerts, an alert of TLS 1.3 is fatal whatever its level."""
        if alert.description == AlertDescription.CLOSE_NOTIFY:
            self._peer_closed = True
            self._receiving.wipe()
        elif alert.description == AlertDescription.USER_CANCELED or (
            alert.level == AlertLevel.WARNING and self._version == ProtocolVersion.TLS_1_2
        ):
            self._guard.warning()
        else:
            raise AlertReceived(alert.level, alert.description)

    def _take_handshake(self, fragment: memoryview) -> None:
        self._reassembler.add(fragment)
        while (encoded := self._reassembler.next_message()) is not None:
            message = decode_message(encoded, self._version)
            match message:
                case NewSessionTicket13():
                    self._events.append(TicketReceived(encoded))
                case KeyUpdate():
                    self._take_key_update(message)
                case HelloRequest():
                    self._refuse_renegotiation()
                case _:
                    raise UnexpectedMessage(message.handshake_type, _EXPECTED[self._version])

    def _take_key_update(self, message: KeyUpdate) -> None:
        self._guard.key_update()
        if not self._reassembler.is_empty:
            raise UnexpectedMessage("a handshake message after KeyUpdate in its record")  # section 5.1
        if message.request_update not in _UPDATE_REQUESTS:
            raise IllegalParameter(f"request_update of KeyUpdate is {message.request_update}")
        self._receiving.update()
        if message.request_update == KeyUpdateRequest.UPDATE_REQUESTED:
            self._sending.update_requested = True

    def _refuse_renegotiation(self) -> None:
        """RFC 5246 section 7.2.2: a warning, and the server decides whether to go on."""
        self._guard.warning()
        self._send_alert(AlertLevel.WARNING, AlertDescription.NO_RENEGOTIATION)

    def _is_over(self) -> bool:
        return self._peer_closed or self._failure is not None

    def _end(self, failure: TlsError) -> None:
        _forget_frames(failure)
        self._failure = failure
        self._receiving.wipe()


class _Direction:
    """The key of one direction and, in TLS 1.3, the secret that the next key comes from."""

    __slots__ = ("_secret", "_suite", "protection", "update_requested")

    protection: AeadProtection

    def __init__(self, suite: Suite, secret: SecretBytes, sequence: int, limit: int) -> None:
        self._suite = suite
        self._secret = SecretBytes(secret.reveal())
        self.protection = record_protection(suite, self._secret.reveal(), sequence, limit)
        self.update_requested = False
        """The one who receives in this direction has asked for a new key and does not have it yet."""

    def update(self) -> None:
        """Go on to the next key (RFC 8446 section 7.2)."""
        secret = SecretBytes(next_traffic_secret(self._suite, self._secret.reveal()))
        self._secret.wipe()
        self._secret = secret
        self.protection = record_protection(self._suite, secret.reveal(), limit=self.protection.limit)
        self.update_requested = False

    def wipe(self) -> None:
        """Forget the secret; there will be no next key."""
        self._secret.wipe()


def _forget_frames(error: BaseException | None) -> None:
    """An error that is kept must not keep what the frames of its traceback hold: buffers and plaintext."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


_APPLICATION_DATA = int(ContentType.APPLICATION_DATA)
"""A plain integer, for the one comparison that every record of data meets."""

_PIECE = 6 * MAX_PLAINTEXT
"""Octets decrypted at once. The C library maps and unmaps blocks over 128 KiB each time that they are
used, and the page faults then cost more than the decryption."""

_NEED_DATA = NeedData()
_CLOSED = Closed()

_UPDATE_REQUESTS = frozenset(KeyUpdateRequest)
_EXPECTED = {
    ProtocolVersion.TLS_1_2: (HandshakeType.HELLO_REQUEST,),
    ProtocolVersion.TLS_1_3: (HandshakeType.NEW_SESSION_TICKET, HandshakeType.KEY_UPDATE),
}
