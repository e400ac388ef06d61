"""Handshake messages, one class each, both directions (RFC 8446 section 4, RFC 5246 section 7.4).

`decode` of a class raises `DecodeError`; `decode_message` is the way in for octets from a peer and
raises `PeerError`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self

from vmtoken.codec import DecodeError, Reader, Writer
from vmtoken.tls.codes import (
    CertificateStatusType,
    CompressionMethod,
    EcCurveType,
    ExtensionType,
    HandshakeType,
    ProtocolVersion,
    name_of,
)
from vmtoken.tls.errors import MalformedMessage, UnexpectedMessage
from vmtoken.tls.extensions import Context, Extensions, OfferedPsks, SelectedVersion, raw_extensions

HEADER_LENGTH = 4
"""Octets of a handshake message before its body: type, length."""

MAX_CERTIFICATES = 16
"""In one chain. Real chains have two to four, cross-signed ones up to six."""

RANDOM_LENGTH = 32

HELLO_RETRY_REQUEST_RANDOM = hashlib.sha256(b"HelloRetryRequest").digest()
"""`random` of a ServerHello that is a HelloRetryRequest (RFC 8446 section 4.1.3)."""

DOWNGRADE_TO_TLS_1_2 = b"DOWNGRD\x01"
"""The last octets of `random` when a TLS 1.3 server chooses TLS 1.2 (RFC 8446 section 4.1.3)."""

DOWNGRADE_TO_TLS_1_1 = b"DOWNGRD\x00"
"""The last octets of `random` when a server that can do better chooses TLS 1.1 or older."""


class HandshakeMessage(Protocol):
    """A value that knows its type and how to write its body."""

    @property
    def handshake_type(self) -> HandshakeType:
        """Type of the message."""
        ...

    def encode(self, writer: Writer) -> None:
        """Write the body, without type and length."""
        ...


def encode_message(message: HandshakeMessage) -> bytes:
    """The message with its header, as it goes into the transcript and into records."""
    writer = Writer()
    writer.uint(message.handshake_type, 1)
    with writer.block(3):
        message.encode(writer)
    return writer.getvalue()


def decode_message(octets: bytes, version: ProtocolVersion | None = None) -> HandshakeMessage:
    """One whole message with its header; `version` is None until the ServerHello chose one.

    Raises `UnexpectedMessage` for a type that the version does not know, `MalformedMessage` for
    octets that do not parse.
    """
    with_header = Reader(octets)
    try:
        handshake_type = with_header.uint(1)
        kind = _DECODERS[version].get(handshake_type)
        if kind is None:
            raise UnexpectedMessage(handshake_type)
        with with_header.block(3) as body:
            message = kind.decode(body)
        with_header.finish()
        return message
    except DecodeError as error:
        name = name_of(HandshakeType, octets[0]) if octets else "a message"
        raise MalformedMessage(f"{name} from the peer does not parse: {error}") from error


@dataclass(frozen=True, slots=True)
class _Empty:
    """A message whose type says everything."""

    def encode(self, writer: Writer) -> None:
        """Nothing to write."""

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Nothing to read."""
        return cls()


class HelloRequest(_Empty):
    """RFC 5246 section 7.4.1.1: the server wants to renegotiate."""

    __slots__ = ()
    handshake_type: ClassVar = HandshakeType.HELLO_REQUEST


@dataclass(frozen=True, slots=True)
class ClientHello:
    """RFC 8446 section 4.1.2."""

    handshake_type: ClassVar = HandshakeType.CLIENT_HELLO

    random: bytes
    legacy_session_id: bytes
    cipher_suites: tuple[int, ...]
    extensions: Extensions = field(default_factory=Extensions)
    legacy_compression_methods: tuple[int, ...] = (CompressionMethod.NULL,)
    legacy_version: int = ProtocolVersion.TLS_1_2

    @property
    def binders_length(self) -> int:
        """Octets at the end of the encoded message that PSK binders do not cover; 0 without a PSK."""
        offered = self.extensions.find(OfferedPsks)
        return offered.binders_length if offered else 0

    def encode(self, writer: Writer) -> None:
        """Extensions are left out when there are none."""
        writer.uint(self.legacy_version, 2)
        writer.raw(self.random)
        writer.opaque(self.legacy_session_id, 1)
        writer.uints(self.cipher_suites, 2, 2)
        writer.uints(self.legacy_compression_methods, 1, 1)
        if self.extensions.items:
            self.extensions.encode(writer)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Extensions may be absent."""
        return cls(
            legacy_version=reader.uint(2),
            random=reader.raw(RANDOM_LENGTH),
            legacy_session_id=reader.opaque(1, maximum=32),
            cipher_suites=reader.uints(2, 2),
            legacy_compression_methods=reader.uints(1, 1),
            extensions=Extensions.decode(reader, Context.CLIENT_HELLO) if reader.remaining else Extensions(),
        )


@dataclass(frozen=True, slots=True)
class _ServerHelloFields:
    """What ServerHello and HelloRetryRequest have in common: all but the meaning."""

    handshake_type: ClassVar = HandshakeType.SERVER_HELLO

    random: bytes
    legacy_session_id_echo: bytes
    cipher_suite: int
    extensions: Extensions = field(default_factory=Extensions)
    legacy_compression_method: int = CompressionMethod.NULL
    legacy_version: int = ProtocolVersion.TLS_1_2

    @property
    def version(self) -> int:
        """The version that the server chose."""
        selected = self.extensions.find(SelectedVersion)
        return selected.version if selected else self.legacy_version

    def encode(self, writer: Writer) -> None:
        """Extensions are left out when there are none."""
        writer.uint(self.legacy_version, 2)
        writer.raw(self.random)
        writer.opaque(self.legacy_session_id_echo, 1)
        writer.uint(self.cipher_suite, 2)
        writer.uint(self.legacy_compression_method, 1)
        if self.extensions.items:
            self.extensions.encode(writer)


@dataclass(frozen=True, slots=True)
class ServerHello(_ServerHelloFields):
    """RFC 8446 section 4.1.3, RFC 5246 section 7.4.1.3."""

    @staticmethod
    def decode(reader: Reader) -> ServerHello | HelloRetryRequest:
        """Gives a `HelloRetryRequest` when the random says so."""
        legacy_version = reader.uint(2)
        random = reader.raw(RANDOM_LENGTH)
        is_retry = random == HELLO_RETRY_REQUEST_RANDOM
        session_id = reader.opaque(1, maximum=32)
        cipher_suite = reader.uint(2)
        compression_method = reader.uint(1)
        raw = raw_extensions(reader) if reader.remaining else {}
        if is_retry:
            context = Context.HELLO_RETRY_REQUEST
        elif ExtensionType.SUPPORTED_VERSIONS in raw:
            context = Context.SERVER_HELLO_13
        else:
            context = Context.SERVER_HELLO_12
        return (HelloRetryRequest if is_retry else ServerHello)(
            random=random,
            legacy_session_id_echo=session_id,
            cipher_suite=cipher_suite,
            extensions=Extensions.of(raw, context),
            legacy_compression_method=compression_method,
            legacy_version=legacy_version,
        )


@dataclass(frozen=True, slots=True)
class HelloRetryRequest(_ServerHelloFields):
    """RFC 8446 section 4.1.4: a ServerHello whose random is `HELLO_RETRY_REQUEST_RANDOM`."""


@dataclass(frozen=True, slots=True)
class EncryptedExtensions:
    """RFC 8446 section 4.3.1."""

    handshake_type: ClassVar = HandshakeType.ENCRYPTED_EXTENSIONS

    extensions: Extensions

    def encode(self, writer: Writer) -> None:
        """The list, perhaps empty."""
        self.extensions.encode(writer)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """The list, perhaps empty."""
        return cls(Extensions.decode(reader, Context.ENCRYPTED_EXTENSIONS))


@dataclass(frozen=True, slots=True)
class CertificateEntry:
    """RFC 8446 section 4.4.2: a certificate, DER, and what goes with it."""

    cert_data: bytes
    extensions: Extensions = field(default_factory=Extensions)


@dataclass(frozen=True, slots=True)
class Certificate13:
    """RFC 8446 section 4.4.2."""

    handshake_type: ClassVar = HandshakeType.CERTIFICATE

    certificate_request_context: bytes
    entries: tuple[CertificateEntry, ...]

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates, DER, leaf first."""
        return tuple(entry.cert_data for entry in self.entries)

    def encode(self, writer: Writer) -> None:
        """Context, then each certificate with its extensions."""
        writer.opaque(self.certificate_request_context, 1)
        with writer.block(3):
            for entry in self.entries:
                writer.opaque(entry.cert_data, 3)
                entry.extensions.encode(writer)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At most `MAX_CERTIFICATES`, none empty; the list may be."""
        context = reader.opaque(1)
        entries: list[CertificateEntry] = []
        with reader.block(3) as block:
            while block.remaining:
                der = block.opaque(3, minimum=1)
                entries.append(CertificateEntry(der, Extensions.decode(block, Context.CERTIFICATE)))
                _check_chain_length(entries)
        return cls(context, tuple(entries))


@dataclass(frozen=True, slots=True)
class Certificate12:
    """RFC 5246 section 7.4.2."""

    handshake_type: ClassVar = HandshakeType.CERTIFICATE

    chain: tuple[bytes, ...]
    """DER, leaf first."""

    def encode(self, writer: Writer) -> None:
        """The list."""
        with writer.block(3):
            for der in self.chain:
                writer.opaque(der, 3)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At most `MAX_CERTIFICATES`, none empty; the list may be."""
        chain: list[bytes] = []
        with reader.block(3) as block:
            while block.remaining:
                chain.append(block.opaque(3, minimum=1))
                _check_chain_length(chain)
        return cls(tuple(chain))


@dataclass(frozen=True, slots=True)
class CertificateRequest13:
    """RFC 8446 section 4.3.2."""

    handshake_type: ClassVar = HandshakeType.CERTIFICATE_REQUEST

    certificate_request_context: bytes
    extensions: Extensions

    def encode(self, writer: Writer) -> None:
        """Context, then extensions."""
        writer.opaque(self.certificate_request_context, 1)
        self.extensions.encode(writer)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Context, then extensions."""
        return cls(reader.opaque(1), Extensions.decode(reader, Context.CERTIFICATE_REQUEST))


@dataclass(frozen=True, slots=True)
class CertificateRequest12:
    """RFC 5246 section 7.4.4."""

    handshake_type: ClassVar = HandshakeType.CERTIFICATE_REQUEST

    certificate_types: tuple[int, ...]
    supported_signature_algorithms: tuple[int, ...]
    certificate_authorities: tuple[bytes, ...] = ()
    """DER Names; none means any CA."""

    def encode(self, writer: Writer) -> None:
        """The three lists."""
        writer.uints(self.certificate_types, 1, 1)
        writer.uints(self.supported_signature_algorithms, 2, 2)
        with writer.block(2):
            for name in self.certificate_authorities:
                writer.opaque(name, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Only the list of names may be empty."""
        types = reader.uints(1, 1)
        schemes = reader.uints(2, 2)
        names: list[bytes] = []
        with reader.block(2) as block:
            while block.remaining:
                names.append(block.opaque(2, minimum=1))
        return cls(types, schemes, tuple(names))


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """RFC 6066 section 8, TLS 1.2 only: an OCSP response, DER."""

    handshake_type: ClassVar = HandshakeType.CERTIFICATE_STATUS

    response: bytes

    def encode(self, writer: Writer) -> None:
        """Type and response."""
        writer.uint(CertificateStatusType.OCSP, 1)
        writer.opaque(self.response, 3)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Only the type ocsp."""
        if reader.uint(1) != CertificateStatusType.OCSP:
            raise DecodeError("a certificate status type other than ocsp")
        return cls(reader.opaque(3, minimum=1))


@dataclass(frozen=True, slots=True)
class ServerKeyExchange:
    """RFC 8422 section 5.4: ECDHE with a named group, signed."""

    handshake_type: ClassVar = HandshakeType.SERVER_KEY_EXCHANGE

    group: int
    public: bytes
    algorithm: int
    signature: bytes

    @property
    def params(self) -> bytes:
        """ServerECDHParams as they are signed, after both randoms."""
        writer = Writer()
        self._encode_params(writer)
        return writer.getvalue()

    def encode(self, writer: Writer) -> None:
        """Parameters, then signature."""
        self._encode_params(writer)
        writer.uint(self.algorithm, 2)
        writer.opaque(self.signature, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Only named curves."""
        if reader.uint(1) != EcCurveType.NAMED_CURVE:
            raise DecodeError("an elliptic curve that is not a named one")
        return cls(reader.uint(2), reader.opaque(1, minimum=1), reader.uint(2), reader.opaque(2))

    def _encode_params(self, writer: Writer) -> None:
        writer.uint(EcCurveType.NAMED_CURVE, 1)
        writer.uint(self.group, 2)
        writer.opaque(self.public, 1)


class ServerHelloDone(_Empty):
    """RFC 5246 section 7.4.5."""

    __slots__ = ()
    handshake_type: ClassVar = HandshakeType.SERVER_HELLO_DONE


@dataclass(frozen=True, slots=True)
class ClientKeyExchange:
    """RFC 8422 section 5.7: the client's ECDHE value."""

    handshake_type: ClassVar = HandshakeType.CLIENT_KEY_EXCHANGE

    public: bytes

    def encode(self, writer: Writer) -> None:
        """The value."""
        writer.opaque(self.public, 1)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """A value that is not empty."""
        return cls(reader.opaque(1, minimum=1))


@dataclass(frozen=True, slots=True)
class CertificateVerify:
    """RFC 8446 section 4.4.3, RFC 5246 section 7.4.8."""

    handshake_type: ClassVar = HandshakeType.CERTIFICATE_VERIFY

    algorithm: int
    signature: bytes

    def encode(self, writer: Writer) -> None:
        """Scheme and signature."""
        writer.uint(self.algorithm, 2)
        writer.opaque(self.signature, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Scheme and signature."""
        return cls(reader.uint(2), reader.opaque(2))


@dataclass(frozen=True, slots=True)
class Finished:
    """RFC 8446 section 4.4.4, RFC 5246 section 7.4.9."""

    handshake_type: ClassVar = HandshakeType.FINISHED

    verify_data: bytes

    def encode(self, writer: Writer) -> None:
        """All of the body."""
        writer.raw(self.verify_data)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """All of the body; its length is checked with its value."""
        return cls(reader.rest())


@dataclass(frozen=True, slots=True)
class NewSessionTicket13:
    """RFC 8446 section 4.6.1."""

    handshake_type: ClassVar = HandshakeType.NEW_SESSION_TICKET

    ticket_lifetime: int
    """Seconds."""

    ticket_age_add: int = field(repr=False)
    ticket_nonce: bytes
    ticket: bytes = field(repr=False)
    extensions: Extensions = field(default_factory=Extensions)

    def encode(self, writer: Writer) -> None:
        """The fields in order."""
        writer.uint(self.ticket_lifetime, 4)
        writer.uint(self.ticket_age_add, 4)
        writer.opaque(self.ticket_nonce, 1)
        writer.opaque(self.ticket, 2)
        self.extensions.encode(writer)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """A ticket that is not empty."""
        return cls(
            ticket_lifetime=reader.uint(4),
            ticket_age_add=reader.uint(4),
            ticket_nonce=reader.opaque(1),
            ticket=reader.opaque(2, minimum=1),
            extensions=Extensions.decode(reader, Context.NEW_SESSION_TICKET),
        )


@dataclass(frozen=True, slots=True)
class NewSessionTicket12:
    """RFC 5077 section 3.3. An empty ticket means that the server changed its mind."""

    handshake_type: ClassVar = HandshakeType.NEW_SESSION_TICKET

    ticket_lifetime_hint: int
    """Seconds; 0 says nothing."""

    ticket: bytes = field(repr=False)

    def encode(self, writer: Writer) -> None:
        """Lifetime and ticket."""
        writer.uint(self.ticket_lifetime_hint, 4)
        writer.opaque(self.ticket, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Lifetime and ticket."""
        return cls(reader.uint(4), reader.opaque(2))


@dataclass(frozen=True, slots=True)
class KeyUpdate:
    """RFC 8446 section 4.6.3."""

    handshake_type: ClassVar = HandshakeType.KEY_UPDATE

    request_update: int
    """A `KeyUpdateRequest`; anything else is an illegal_parameter."""

    def encode(self, writer: Writer) -> None:
        """One octet."""
        writer.uint(self.request_update, 1)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """One octet."""
        return cls(reader.uint(1))


class EndOfEarlyData(_Empty):
    """RFC 8446 section 4.5. A client that never sends early data never sends it."""

    __slots__ = ()
    handshake_type: ClassVar = HandshakeType.END_OF_EARLY_DATA


class _Decodable(Protocol):
    @classmethod
    def decode(cls, reader: Reader) -> HandshakeMessage: ...


_HELLOS: dict[int, type[_Decodable]] = {
    HandshakeType.CLIENT_HELLO: ClientHello,
    HandshakeType.SERVER_HELLO: ServerHello,
}

_DECODERS: dict[ProtocolVersion | None, dict[int, type[_Decodable]]] = {
    None: _HELLOS | {HandshakeType.HELLO_REQUEST: HelloRequest},
    ProtocolVersion.TLS_1_2: _HELLOS
    | {
        HandshakeType.HELLO_REQUEST: HelloRequest,
        HandshakeType.NEW_SESSION_TICKET: NewSessionTicket12,
        HandshakeType.CERTIFICATE: Certificate12,
        HandshakeType.SERVER_KEY_EXCHANGE: ServerKeyExchange,
        HandshakeType.CERTIFICATE_REQUEST: CertificateRequest12,
        HandshakeType.SERVER_HELLO_DONE: ServerHelloDone,
        HandshakeType.CERTIFICATE_VERIFY: CertificateVerify,
        HandshakeType.CLIENT_KEY_EXCHANGE: ClientKeyExchange,
        HandshakeType.FINISHED: Finished,
        HandshakeType.CERTIFICATE_STATUS: CertificateStatus,
    },
    ProtocolVersion.TLS_1_3: _HELLOS
    | {
        HandshakeType.NEW_SESSION_TICKET: NewSessionTicket13,
        HandshakeType.END_OF_EARLY_DATA: EndOfEarlyData,
        HandshakeType.ENCRYPTED_EXTENSIONS: EncryptedExtensions,
        HandshakeType.CERTIFICATE: Certificate13,
        HandshakeType.CERTIFICATE_REQUEST: CertificateRequest13,
        HandshakeType.CERTIFICATE_VERIFY: CertificateVerify,
        HandshakeType.FINISHED: Finished,
        HandshakeType.KEY_UPDATE: KeyUpdate,
    },
}


def _check_chain_length(certificates: list[CertificateEntry] | list[bytes]) -> None:
    if len(certificates) > MAX_CERTIFICATES:
        raise DecodeError(f"more than {MAX_CERTIFICATES} certificates")
