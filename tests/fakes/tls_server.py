"""TLS servers on our own codec that break the protocol where a test says so.

A server takes the ClientHello and has its flight ready as `Step`s, which a test sends whole, in part, or with
something else in between. `changes` replaces messages: by a function from the message that an honest
server would send to the message, messages or raw octets to send instead (None: nothing).

    server = FakeServer13(changes={HandshakeType.FINISHED: lambda message: Finished(bytes(32))})
    server.receive_hello(client.data_to_send())
    client.receive_data(server.whole_flight())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.pki import Identity, server_identity
from vmtoken.tls import key_exchange, prf
from vmtoken.tls.codes import (
    CipherSuite,
    ClientCertificateType,
    ContentType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    SignatureScheme,
)
from vmtoken.tls.extensions import (
    ExtendedMasterSecret,
    Extension,
    Extensions,
    KeyShareClientHello,
    KeyShareEntry,
    KeyShareServerHello,
    RenegotiationInfo,
    SelectedPsk,
    SelectedVersion,
    SessionTicket,
    SignatureAlgorithms,
)
from vmtoken.tls.key_schedule import EarlySecret, HandshakeSecret, finished_verify_data
from vmtoken.tls.messages import (
    HELLO_RETRY_REQUEST_RANDOM,
    Certificate12,
    Certificate13,
    CertificateEntry,
    CertificateRequest12,
    CertificateRequest13,
    CertificateVerify,
    ClientHello,
    EncryptedExtensions,
    Finished,
    HandshakeMessage,
    HelloRetryRequest,
    NewSessionTicket12,
    ServerHello,
    ServerHelloDone,
    ServerKeyExchange,
    decode_message,
    encode_message,
)
from vmtoken.tls.reassembly import HandshakeReassembler
from vmtoken.tls.record import (
    CHANGE_CIPHER_SPEC_RECORD,
    NoProtection,
    RecordProtection,
    RecordReader,
    record_protection,
)
from vmtoken.tls.signatures import DEFAULT_SCHEMES, PublicKey, server_content, sign
from vmtoken.tls.suites import suite_of
from vmtoken.tls.tickets import ResumableSession
from vmtoken.tls.transcript import TranscriptBuffer

Sent = HandshakeMessage | bytes
Change = Callable[[HandshakeMessage], Sent | Sequence[Sent] | None]

SERVER_RANDOM = bytes(range(32))


@dataclass(frozen=True)
class Step:
    """One thing that a server sends."""

    name: str
    content_type: ContentType
    content: bytes
    protection: RecordProtection = field(repr=False)

    def records(self) -> bytes:
        """As it goes on the wire; each step once, in order."""
        if self.content_type is ContentType.CHANGE_CIPHER_SPEC:
            return CHANGE_CIPHER_SPEC_RECORD
        return bytes(self.protection.protect(self.content_type, self.content))


class _FakeServer:
    """What both versions have in common."""

    version: ProtocolVersion

    def __init__(
        self,
        identity: Identity | None = None,
        *,
        suite: CipherSuite,
        changes: Mapping[HandshakeType, Change] | None = None,
        extensions: Sequence[Extension] = (),
        request_certificate: bool = True,
        session: ResumableSession | None = None,
    ) -> None:
        """`extensions`: further ones, in EncryptedExtensions or the ServerHello of TLS 1.2.

        `session`: resume it.
        """
        self.identity = identity or server_identity()
        found = suite_of(suite)
        assert found is not None
        self.suite = found
        self.changes = dict(changes or {})
        self.extensions = tuple(extensions)
        self.request_certificate = request_certificate
        self.session = session
        self.transcript = TranscriptBuffer()
        self.writing: RecordProtection = NoProtection()
        self.reading: RecordProtection = NoProtection()
        self.steps: list[Step] = []
        self._reader = RecordReader()
        self._reassembler = HandshakeReassembler()

    def whole_flight(self) -> bytes:
        """All steps; each in its own record."""
        records = b"".join(step.records() for step in self.steps)
        self.steps.clear()
        return records

    def flight_until(self, name: str) -> bytes:
        """The steps before the one of this name."""
        records = b""
        while self.steps and self.steps[0].name != name:
            records += self.steps.pop(0).records()
        return records

    def client_messages(self, records: bytes) -> list[bytes]:
        """Handshake messages out of what the client sent, change_cipher_spec left out."""
        self._reader.receive(records)
        messages = []
        while record := self._reader.next_record():
            if record[0] == ContentType.CHANGE_CIPHER_SPEC:
                self.on_change_cipher_spec()
                continue
            content_type, content = self.reading.unprotect(record)
            assert content_type == ContentType.HANDSHAKE, (content_type, bytes(content))
            self._reassembler.add(content)
            while message := self._reassembler.next_message():
                messages.append(message)
        return messages

    def on_change_cipher_spec(self) -> None:
        """What the client's change_cipher_spec changes."""

    def queue(self, message: HandshakeMessage) -> None:
        """Put a message, or what `changes` makes of it, into transcript and flight."""
        change = self.changes.get(message.handshake_type)
        sent = message if change is None else change(message)
        if sent is None:
            return
        for item in sent if isinstance(sent, list | tuple) else [sent]:
            encoded = item if isinstance(item, bytes) else encode_message(item)
            self.transcript.add(encoded)
            self.steps.append(Step(message.handshake_type.name, ContentType.HANDSHAKE, encoded, self.writing))

    def queue_change_cipher_spec(self) -> None:
        """Put a change_cipher_spec into the flight."""
        self.steps.append(Step("CHANGE_CIPHER_SPEC", ContentType.CHANGE_CIPHER_SPEC, b"", self.writing))

    @property
    def scheme(self) -> SignatureScheme:
        """What the server's key signs with."""
        return PublicKey.of(self.identity.certificate).schemes()[0]

    def digest(self) -> bytes:
        """Transcript-Hash so far."""
        return self.transcript.digest(self.suite)


class FakeServer13(_FakeServer):
    """TLS 1.3."""

    version = ProtocolVersion.TLS_1_3
    early_secret: EarlySecret
    handshake_secret: HandshakeSecret
    client_secret: bytes
    server_secret: bytes

    def __init__(
        self,
        identity: Identity | None = None,
        *,
        suite: CipherSuite = CipherSuite.TLS_AES_128_GCM_SHA256,
        group: NamedGroup = NamedGroup.X25519,
        retry: Sequence[Extension] | None = None,
        **options: object,
    ) -> None:
        """`retry`: extensions of a HelloRetryRequest to begin with."""
        super().__init__(identity, suite=suite, **options)  # type: ignore[arg-type]
        self.group = group
        self.retry = retry
        self.hello: ClientHello | None = None

    def receive_hello(self, records: bytes) -> None:
        """Take a ClientHello: make a HelloRetryRequest, or the flight."""
        (encoded,) = self.client_messages(records)
        hello = decode_message(encoded)
        assert isinstance(hello, ClientHello)
        self.hello = hello
        self.transcript.add(encoded)
        if self.retry is not None:
            self._queue_retry(hello)
        else:
            self._queue_flight(hello)

    def finish(self, records: bytes) -> list[HandshakeMessage]:
        """Take the client's flight and verify its Finished."""
        encoded = self.client_messages(records)
        for message in encoded[:-1]:
            self.transcript.add(message)
        finished = decode_message(encoded[-1], self.version)
        assert isinstance(finished, Finished)
        assert finished.verify_data == finished_verify_data(self.suite, self.client_secret, self.digest())
        self.transcript.add(encoded[-1])
        return [decode_message(message, self.version) for message in encoded]

    def _queue_retry(self, hello: ClientHello) -> None:
        assert self.retry is not None
        extensions = (SelectedVersion(self.version), *self.retry)
        self.retry = None
        self.transcript.replace_by_hash(self.suite)
        self.queue(
            HelloRetryRequest(
                HELLO_RETRY_REQUEST_RANDOM, hello.legacy_session_id, self.suite.code, Extensions(extensions)
            )
        )

    def _queue_flight(self, hello: ClientHello) -> None:
        shared_secret, share = self._share(hello)
        extensions: list[Extension] = [SelectedVersion(self.version), KeyShareServerHello(share)]
        if self.session is not None:
            extensions.append(SelectedPsk(0))
        self.queue(
            ServerHello(
                SERVER_RANDOM, hello.legacy_session_id, self.suite.code, Extensions(tuple(extensions))
            )
        )
        self._change_to_handshake_keys(shared_secret)
        self.queue(EncryptedExtensions(Extensions(self.extensions)))
        if self.session is None:
            self._queue_certificates()
        self.queue(Finished(finished_verify_data(self.suite, self.server_secret, self.digest())))

    def _share(self, hello: ClientHello) -> tuple[bytes, KeyShareEntry]:
        shares = hello.extensions.find(KeyShareClientHello)
        assert shares is not None
        peer = next((s.key_exchange for s in shares.client_shares if s.group == self.group), None)
        (half,) = key_exchange.generate((self.group,))
        secret = half.shared_secret(peer) if peer is not None else bytes(32)
        return secret, KeyShareEntry(self.group, half.public)

    def _change_to_handshake_keys(self, shared_secret: bytes) -> None:
        self.early_secret = EarlySecret(self.suite, self.session.secret.reveal() if self.session else None)
        self.handshake_secret = self.early_secret.handshake_secret(shared_secret)
        self.client_secret = self.handshake_secret.client_traffic_secret(self.digest())
        self.server_secret = self.handshake_secret.server_traffic_secret(self.digest())
        self.queue_change_cipher_spec()
        self.writing = record_protection(self.suite, self.server_secret)
        self.reading = record_protection(self.suite, self.client_secret)

    def _queue_certificates(self) -> None:
        if self.request_certificate:
            self.queue(CertificateRequest13(b"", Extensions((SignatureAlgorithms(DEFAULT_SCHEMES),))))
        self.queue(Certificate13(b"", tuple(CertificateEntry(der) for der in self.identity.chain_der)))
        content = server_content(self.digest())
        self.queue(CertificateVerify(self.scheme, sign(self.identity.key, self.scheme, content)))


class FakeServer12(_FakeServer):
    """TLS 1.2."""

    version = ProtocolVersion.TLS_1_2
    master_secret: bytes
    client_random: bytes

    def __init__(
        self,
        identity: Identity | None = None,
        *,
        suite: CipherSuite = CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        group: NamedGroup = NamedGroup.X25519,
        ticket: bytes | None = None,
        session_id: bytes = b"",
        random: bytes = SERVER_RANDOM,
        **options: object,
    ) -> None:
        """`ticket`: send a NewSessionTicket with it."""
        super().__init__(identity, suite=suite, **options)  # type: ignore[arg-type]
        (self.half,) = key_exchange.generate((group,))
        self.ticket = ticket
        self.session_id = session_id
        self.random = random

    def receive_hello(self, records: bytes) -> None:
        """Take the ClientHello; make the first flight, or the only one of a resumption."""
        (encoded,) = self.client_messages(records)
        hello = decode_message(encoded)
        assert isinstance(hello, ClientHello)
        self.client_random = hello.random
        self.transcript.add(encoded)
        extensions: list[Extension] = [RenegotiationInfo(), ExtendedMasterSecret(), *self.extensions]
        if self.ticket is not None:
            extensions.append(SessionTicket())
        session_id = hello.legacy_session_id if self.session else self.session_id
        self.queue(ServerHello(self.random, session_id, self.suite.code, Extensions(tuple(extensions))))
        if self.session is not None:
            self.master_secret = self.session.secret.reveal()
            self._queue_finished()
        else:
            self._queue_certificates()

    def receive_key_exchange(self, records: bytes) -> list[HandshakeMessage]:
        """Take the client's flight, verify its Finished, and make ours."""
        messages = [decode_message(encoded, self.version) for encoded in self.client_messages(records)]
        self._queue_finished()
        return messages

    def client_messages(self, records: bytes) -> list[bytes]:
        """As they come, so that change_cipher_spec finds the transcript where it must be."""
        if not hasattr(self, "client_random"):
            return super().client_messages(records)
        self._reader.receive(records)
        messages = []
        while record := self._reader.next_record():
            if record[0] == ContentType.CHANGE_CIPHER_SPEC:
                self.reading = record_protection(self.suite, self._record_secrets()[0])
                continue
            _, content = self.reading.unprotect(record)
            self._reassembler.add(content)
            while encoded := self._reassembler.next_message():
                self._take(encoded)
                messages.append(encoded)
        return messages

    def _take(self, encoded: bytes) -> None:
        message = decode_message(encoded, self.version)
        if isinstance(message, Finished):
            expected = prf.client_verify_data(self.suite, self.master_secret, self.digest())
            assert message.verify_data == expected
        self.transcript.add(encoded)
        if message.handshake_type is HandshakeType.CLIENT_KEY_EXCHANGE:
            premaster = self.half.shared_secret(message.public)  # type: ignore[attr-defined]
            self.master_secret = prf.extended_master_secret(self.suite, premaster, self.digest())

    def _queue_certificates(self) -> None:
        self.queue(Certificate12(self.identity.chain_der))
        unsigned = ServerKeyExchange(self.half.group, self.half.public, self.scheme, b"")
        content = self.client_random + self.random + unsigned.params
        signature = sign(self.identity.key, self.scheme, content)
        self.queue(ServerKeyExchange(self.half.group, self.half.public, self.scheme, signature))
        if self.request_certificate:
            types = (ClientCertificateType.RSA_SIGN, ClientCertificateType.ECDSA_SIGN)
            self.queue(CertificateRequest12(types, DEFAULT_SCHEMES))
        self.queue(ServerHelloDone())

    def _queue_finished(self) -> None:
        if self.ticket is not None:
            self.queue(NewSessionTicket12(3600, self.ticket))
        self.queue_change_cipher_spec()
        self.writing = record_protection(self.suite, self._record_secrets()[1])
        self.queue(Finished(prf.server_verify_data(self.suite, self.master_secret, self.digest())))

    def _record_secrets(self) -> tuple[bytes, bytes]:
        return prf.record_secrets(self.suite, self.master_secret, self.client_random, self.random)
