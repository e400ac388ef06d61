"""The record layer while a handshake runs: messages in, messages out, keys that change between them."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

from vmtoken.tls.codes import AlertDescription, AlertLevel, ContentType, ProtocolVersion
from vmtoken.tls.errors import AlertReceived, UnexpectedMessage
from vmtoken.tls.events import Event
from vmtoken.tls.keylog import KeyLogLabel, key_log_line
from vmtoken.tls.messages import HandshakeMessage, encode_message
from vmtoken.tls.negotiation import RecordLimits
from vmtoken.tls.reassembly import HandshakeReassembler
from vmtoken.tls.record import (
    CHANGE_CIPHER_SPEC_RECORD,
    HEADER_LENGTH,
    Alert,
    FloodGuard,
    NoProtection,
    RecordProtection,
    RecordReader,
    record_protection,
)
from vmtoken.tls.suites import Suite


class Signal(enum.Enum):
    """What can come between handshake messages."""

    CHANGE_CIPHER_SPEC = enum.auto()


class HandshakeRecords:
    """The `Output` of the states, and the source of their messages."""

    def __init__(self, key_log: Callable[[str], None] | None = None) -> None:
        self.events: deque[Event] = deque()
        self._key_log = key_log
        self._reader = RecordReader()
        self._reassembler = HandshakeReassembler()
        self._guard = FloodGuard()
        self._reading: RecordProtection = NoProtection()
        self._writing: RecordProtection = NoProtection()
        self._flight = bytearray()
        self._to_send = bytearray()

    # Messages of the server

    def receive(self, data: bytes) -> None:
        """Take octets from the server."""
        self._reader.receive(data)

    def next_message(self, version: ProtocolVersion | None) -> bytes | Signal | None:
        """The next handshake message, with its header; None until more has come.

        Raises `AlertReceived` for an alert that ends the connection, or a `PeerError`.
        """
        while (message := self._reassembler.next_message()) is None:
            record = self._reader.next_record()
            if record is None:
                return None
            if record[0] == ContentType.CHANGE_CIPHER_SPEC:
                return self._change_cipher_spec(record)
            self._take(record, version)
        return message

    @property
    def unread(self) -> bytes:
        """Octets that came and were not looked at."""
        return self._reader.held

    def _change_cipher_spec(self, record: bytes) -> Signal:
        """It stands in clear and by itself: encrypted ones belong to renegotiation, which never happens."""
        if (
            record[HEADER_LENGTH:] != CHANGE_CIPHER_SPEC_RECORD[HEADER_LENGTH:]
            or not self._reassembler.is_empty
        ):
            raise UnexpectedMessage("a change_cipher_spec that belongs nowhere")
        self._guard.empty_record()
        return Signal.CHANGE_CIPHER_SPEC

    def _take(self, record: bytes, version: ProtocolVersion | None) -> None:
        content_type, content = self._reading.unprotect(record)
        match content_type:
            case ContentType.HANDSHAKE:
                self._reassembler.add(content)
            case ContentType.ALERT:
                self._take_alert(Alert.decode(content), version)
            case _:
                raise UnexpectedMessage("application data within the handshake")

    def _take_alert(self, alert: Alert, version: ProtocolVersion | None) -> None:
        """TLS 1.2 has warnings to pass over; in TLS 1.3 the level says nothing (RFC 8446 section 6)."""
        if version is ProtocolVersion.TLS_1_3:
            may_pass = alert.description == AlertDescription.USER_CANCELED
        else:
            is_warning = alert.level == AlertLevel.WARNING
            may_pass = is_warning and alert.description != AlertDescription.CLOSE_NOTIFY
        if not may_pass:
            raise AlertReceived(alert.level, alert.description)
        self._guard.warning()

    # The output of the states

    def send(self, message: HandshakeMessage) -> bytes:
        """Send a handshake message under the present key; gives it encoded."""
        encoded = encode_message(message)
        self._flight += encoded
        return encoded

    def send_encoded(self, message: bytes) -> None:
        """Send a handshake message that is already encoded."""
        self._flight += message

    def send_change_cipher_spec(self) -> None:
        """Send a change_cipher_spec record in clear."""
        self._flush()
        self._to_send += CHANGE_CIPHER_SPEC_RECORD

    def send_alert(self, level: AlertLevel, description: AlertDescription) -> None:
        """Send an alert under the present key."""
        self._flush()
        self._to_send += self._writing.protect(ContentType.ALERT, Alert(level, description).encode())

    def protect_writing(self, suite: Suite, secret: bytes) -> None:
        """What is sent from now on is encrypted with this secret."""
        self._flush()
        self._writing = record_protection(suite, secret, limit=self._writing.limit)

    def protect_reading(self, suite: Suite, secret: bytes) -> None:
        """What comes from now on is encrypted with this secret. Only between messages: section 5.1."""
        self.end_messages()
        self._reading = record_protection(suite, secret, limit=self._reading.limit)

    def end_messages(self) -> None:
        """What follows is under another key, or not for the handshake; it starts with a record."""
        if not self._reassembler.is_empty:
            raise UnexpectedMessage("more of a message in a record that should have ended with it")

    def limit_records(self, limits: RecordLimits) -> None:
        """For the keys in use, and for those to come."""
        self._writing.limit = limits.send
        self._reading.limit = limits.receive

    def emit(self, event: Event) -> None:
        """Tell the driver."""
        self.events.append(event)

    def log_key(self, label: KeyLogLabel, client_random: bytes, secret: bytes) -> None:
        """Write a key log line, if that was asked for."""
        if self._key_log is not None:
            self._key_log(key_log_line(label, client_random, secret))

    # What goes out

    def data_to_send(self) -> bytes:
        """Whole records, each once."""
        self._flush()
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    def discard_flight(self) -> None:
        """Forget messages that were not handed out: an alert goes instead of them."""
        self._flight.clear()

    def _flush(self) -> None:
        """Messages of one flight under one key share records."""
        if self._flight:
            self._to_send += self._writing.protect(ContentType.HANDSHAKE, self._flight)
            self._flight = bytearray()
