"""Hello and certificate extensions, one class each (RFC 8446 section 4.2).

An extension whose form depends on the message has a class for each form. What is unknown, or does
not belong into the message, is kept as `RawExtension`: GREASE (RFC 8701) and the future are
tolerated, and `Extensions.check_answers` tells the forbidden from the unasked.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, TypeVar

from vmtoken.codec import DecodeError, Reader, Writer
from vmtoken.tls.codes import CertificateStatusType, ExtensionType, NameType, name_of
from vmtoken.tls.errors import IllegalParameter, UnsupportedExtension
from vmtoken.tls.extensions13 import (
    CertificateAuthorities as CertificateAuthorities,
)
from vmtoken.tls.extensions13 import (
    Cookie as Cookie,
)
from vmtoken.tls.extensions13 import (
    KeyShareClientHello as KeyShareClientHello,
)
from vmtoken.tls.extensions13 import (
    KeyShareEntry as KeyShareEntry,
)
from vmtoken.tls.extensions13 import (
    KeyShareHelloRetryRequest as KeyShareHelloRetryRequest,
)
from vmtoken.tls.extensions13 import (
    KeyShareServerHello as KeyShareServerHello,
)
from vmtoken.tls.extensions13 import (
    OfferedPsks as OfferedPsks,
)
from vmtoken.tls.extensions13 import (
    OidFilter as OidFilter,
)
from vmtoken.tls.extensions13 import (
    OidFilters as OidFilters,
)
from vmtoken.tls.extensions13 import (
    PskIdentity as PskIdentity,
)
from vmtoken.tls.extensions13 import (
    PskKeyExchangeModes as PskKeyExchangeModes,
)
from vmtoken.tls.extensions13 import (
    SelectedPsk as SelectedPsk,
)
from vmtoken.tls.extensions13 import (
    SelectedVersion as SelectedVersion,
)
from vmtoken.tls.extensions13 import (
    SupportedVersions as SupportedVersions,
)

MAX_EXTENSIONS = 64
"""In one message. Browsers send about 20, GREASE included; more only costs time."""


class Extension(Protocol):
    """A value that knows its type and how to write its content."""

    @property
    def extension_type(self) -> int:
        """Code point of the extension."""
        ...

    def encode(self, writer: Writer) -> None:
        """Write `extension_data`, without type and length."""
        ...


class Context(enum.Enum):
    """The message that a list of extensions is in; TLS 1.2 and 1.3 differ in what ServerHello may hold."""

    CLIENT_HELLO = enum.auto()
    SERVER_HELLO_12 = enum.auto()
    SERVER_HELLO_13 = enum.auto()
    HELLO_RETRY_REQUEST = enum.auto()
    ENCRYPTED_EXTENSIONS = enum.auto()
    CERTIFICATE = enum.auto()
    CERTIFICATE_REQUEST = enum.auto()
    NEW_SESSION_TICKET = enum.auto()


_E = TypeVar("_E", bound=Extension)


@dataclass(frozen=True, slots=True)
class Extensions:
    """The extensions of one message, in the order of the wire, no type twice."""

    items: tuple[Extension, ...] = ()

    def find(self, kind: type[_E]) -> _E | None:
        """The extension of this class, None if there is none."""
        for item in self.items:
            if type(item) is kind:
                return item
        return None

    def check_answers(self, offered: Collection[int], context: Context) -> None:
        """Raise unless each item answers an extension in `offered` and belongs into the message.

        RFC 8446 section 4.2: `UnsupportedExtension` for what was not offered, `IllegalParameter`
        for what we know but the message may not hold.
        """
        allowed = _DECODERS[context]
        for item in self.items:
            if item.extension_type not in offered:
                raise UnsupportedExtension(item.extension_type)
            if item.extension_type not in allowed:
                name = name_of(ExtensionType, item.extension_type)
                raise IllegalParameter(f"the extension {name} may not be in {context.name}")

    def encode(self, writer: Writer) -> None:
        """Write the list with its length of two octets."""
        with writer.block(2):
            for item in self.items:
                writer.uint(item.extension_type, 2)
                if isinstance(item, RawExtension):
                    writer.opaque(item.data, 2)
                    continue
                with writer.block(2):
                    item.encode(writer)

    @classmethod
    def decode(cls, reader: Reader, context: Context) -> Self:
        """Read a list with its length; raises `DecodeError`, also when a type comes twice."""
        return cls.of(raw_extensions(reader), context)

    @classmethod
    def of(cls, raw: dict[int, bytes], context: Context) -> Self:
        """The typed extensions of a message, from what `raw_extensions` read."""
        decoders = _DECODERS[context]
        return cls(tuple(_decode_one(code, data, decoders.get(code)) for code, data in raw.items()))

    def __iter__(self) -> Iterator[Extension]:
        return iter(self.items)

    def __contains__(self, extension_type: int) -> bool:
        return any(item.extension_type == extension_type for item in self.items)


def raw_extensions(reader: Reader) -> dict[int, bytes]:
    """A list of extensions with its length, by type, in the order of the wire; raises `DecodeError`."""
    raw: dict[int, bytes] = {}
    with reader.block(2) as block:
        while block.remaining:
            code, data = block.uint(2), block.opaque(2)
            if code in raw:
                raise DecodeError(f"the extension {name_of(ExtensionType, code)} comes twice")
            if len(raw) == MAX_EXTENSIONS:
                raise DecodeError(f"more than {MAX_EXTENSIONS} extensions")
            raw[code] = data
    return raw


@dataclass(frozen=True, slots=True)
class RawExtension:
    """An extension that is unknown, or unknown in its message."""

    extension_type: int
    data: bytes

    def encode(self, writer: Writer) -> None:
        """Write the content as it was."""
        writer.raw(self.data)


@dataclass(frozen=True, slots=True)
class ServerName:
    """RFC 6066 section 3: the name that the client wants to talk to."""

    extension_type: ClassVar = ExtensionType.SERVER_NAME

    host_name: str

    def encode(self, writer: Writer) -> None:
        """One name of type host_name."""
        with writer.block(2):
            writer.uint(NameType.HOST_NAME, 1)
            writer.opaque(self.host_name.encode("ascii"), 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Exactly one name: no other type was ever registered, and two of one type are forbidden."""
        with reader.block(2) as names:
            if names.uint(1) != NameType.HOST_NAME:
                raise DecodeError("a name that is not a host_name")
            return cls(_ascii(names.opaque(2, minimum=1)))


@dataclass(frozen=True, slots=True)
class _Empty:
    """An extension whose presence says everything."""

    def encode(self, writer: Writer) -> None:
        """Nothing to write."""

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Nothing to read."""
        return cls()


class ServerNameAcknowledgement(_Empty):
    """RFC 6066 section 3: the server used the name."""

    __slots__ = ()
    extension_type: ClassVar = ExtensionType.SERVER_NAME


class ExtendedMasterSecret(_Empty):
    """RFC 7627 section 5.1."""

    __slots__ = ()
    extension_type: ClassVar = ExtensionType.EXTENDED_MASTER_SECRET


class StatusRequestAcknowledgement(_Empty):
    """RFC 6066 section 8: in TLS 1.2, CertificateStatus may follow the server's Certificate.

    In CertificateRequest of TLS 1.3 it asks for a staple of the client's (RFC 8446 section 4.4.2.1).
    """

    __slots__ = ()
    extension_type: ClassVar = ExtensionType.STATUS_REQUEST


class PostHandshakeAuth(_Empty):
    """RFC 8446 section 4.2.6. We never offer it."""

    __slots__ = ()
    extension_type: ClassVar = ExtensionType.POST_HANDSHAKE_AUTH


class EarlyData(_Empty):
    """RFC 8446 section 4.2.10, in ClientHello and EncryptedExtensions. We never offer it."""

    __slots__ = ()
    extension_type: ClassVar = ExtensionType.EARLY_DATA


@dataclass(frozen=True, slots=True)
class MaxEarlyDataSize:
    """RFC 8446 section 4.2.10, in NewSessionTicket."""

    extension_type: ClassVar = ExtensionType.EARLY_DATA

    max_early_data_size: int

    def encode(self, writer: Writer) -> None:
        """Four octets."""
        writer.uint(self.max_early_data_size, 4)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Four octets."""
        return cls(reader.uint(4))


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """RFC 6066 section 8: the client wants an OCSP response, from any responder."""

    extension_type: ClassVar = ExtensionType.STATUS_REQUEST

    responder_id_list: bytes = b""
    request_extensions: bytes = b""

    def encode(self, writer: Writer) -> None:
        """The request of type ocsp."""
        writer.uint(CertificateStatusType.OCSP, 1)
        writer.opaque(self.responder_id_list, 2)
        writer.opaque(self.request_extensions, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Both lists are kept as they are."""
        if reader.uint(1) != CertificateStatusType.OCSP:
            raise DecodeError("a certificate status type other than ocsp")
        return cls(reader.opaque(2), reader.opaque(2))


@dataclass(frozen=True, slots=True)
class OcspStatus:
    """RFC 8446 section 4.4.2.1: the OCSP response, DER, for the certificate that it is with."""

    extension_type: ClassVar = ExtensionType.STATUS_REQUEST

    response: bytes

    def encode(self, writer: Writer) -> None:
        """A CertificateStatus structure."""
        writer.uint(CertificateStatusType.OCSP, 1)
        writer.opaque(self.response, 3)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """A CertificateStatus structure of type ocsp."""
        if reader.uint(1) != CertificateStatusType.OCSP:
            raise DecodeError("a certificate status type other than ocsp")
        return cls(reader.opaque(3, minimum=1))


@dataclass(frozen=True, slots=True)
class SupportedGroups:
    """RFC 8446 section 4.2.7."""

    extension_type: ClassVar = ExtensionType.SUPPORTED_GROUPS

    groups: tuple[int, ...]

    def encode(self, writer: Writer) -> None:
        """The list, best first."""
        writer.uints(self.groups, 2, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At least one group."""
        return cls(reader.uints(2, 2))


@dataclass(frozen=True, slots=True)
class EcPointFormats:
    """RFC 8422 section 5.1.2."""

    extension_type: ClassVar = ExtensionType.EC_POINT_FORMATS

    formats: tuple[int, ...]

    def encode(self, writer: Writer) -> None:
        """The list, best first."""
        writer.uints(self.formats, 1, 1)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At least one format."""
        return cls(reader.uints(1, 1))


@dataclass(frozen=True, slots=True)
class SignatureAlgorithms:
    """RFC 8446 section 4.2.3: what the sender verifies in CertificateVerify."""

    extension_type: ClassVar = ExtensionType.SIGNATURE_ALGORITHMS

    schemes: tuple[int, ...]

    def encode(self, writer: Writer) -> None:
        """The list, best first."""
        writer.uints(self.schemes, 2, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At least one scheme."""
        return cls(reader.uints(2, 2))


@dataclass(frozen=True, slots=True)
class SignatureAlgorithmsCert:
    """RFC 8446 section 4.2.3: what the sender verifies in certificates."""

    extension_type: ClassVar = ExtensionType.SIGNATURE_ALGORITHMS_CERT

    schemes: tuple[int, ...]

    def encode(self, writer: Writer) -> None:
        """The list, best first."""
        writer.uints(self.schemes, 2, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At least one scheme."""
        return cls(reader.uints(2, 2))


@dataclass(frozen=True, slots=True)
class Alpn:
    """RFC 7301 section 3.1: the protocols that the client can speak, best first."""

    extension_type: ClassVar = ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION

    protocols: tuple[bytes, ...]

    def encode(self, writer: Writer) -> None:
        """The list of names."""
        with writer.block(2):
            for protocol in self.protocols:
                writer.opaque(protocol, 1)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At least one name, none empty."""
        return cls(reader.opaques(2, 1))


@dataclass(frozen=True, slots=True)
class AlpnSelection:
    """RFC 7301 section 3.1: the one protocol that the server chose."""

    extension_type: ClassVar = ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION

    protocol: bytes

    def encode(self, writer: Writer) -> None:
        """A list of one name."""
        with writer.block(2):
            writer.opaque(self.protocol, 1)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Exactly one name."""
        with reader.block(2) as names:
            return cls(names.opaque(1, minimum=1))


@dataclass(frozen=True, slots=True)
class RecordSizeLimit:
    """RFC 8449 section 4, in octets of plaintext (TLS 1.3: with content type and padding)."""

    extension_type: ClassVar = ExtensionType.RECORD_SIZE_LIMIT

    limit: int

    def encode(self, writer: Writer) -> None:
        """Two octets."""
        writer.uint(self.limit, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Two octets; values below 64 parse: they are an illegal_parameter, not a decode_error."""
        return cls(reader.uint(2))


@dataclass(frozen=True, slots=True)
class SessionTicket:
    """RFC 5077 section 3.2: a ticket to resume with, or empty to ask for one or to promise one."""

    extension_type: ClassVar = ExtensionType.SESSION_TICKET

    ticket: bytes = b""

    def encode(self, writer: Writer) -> None:
        """The ticket without a length of its own."""
        writer.raw(self.ticket)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """All that is there."""
        return cls(reader.rest())


@dataclass(frozen=True, slots=True)
class RenegotiationInfo:
    """RFC 5746 section 3.2; empty in a first handshake."""

    extension_type: ClassVar = ExtensionType.RENEGOTIATION_INFO

    renegotiated_connection: bytes = b""

    def encode(self, writer: Writer) -> None:
        """The block."""
        writer.opaque(self.renegotiated_connection, 1)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """The block."""
        return cls(reader.opaque(1))


class _Decodable(Extension, Protocol):
    @classmethod
    def decode(cls, reader: Reader) -> Self: ...


def _by_type(*kinds: type[_Decodable]) -> dict[int, type[_Decodable]]:
    return {kind.extension_type: kind for kind in kinds}  # type: ignore[misc]  # a ClassVar in every one


# The table of RFC 8446 section 4.2, and for SERVER_HELLO_12 the documents of the extensions.
_DECODERS: dict[Context, dict[int, type[_Decodable]]] = {
    Context.CLIENT_HELLO: _by_type(
        ServerName,
        StatusRequest,
        SupportedGroups,
        EcPointFormats,
        SignatureAlgorithms,
        Alpn,
        ExtendedMasterSecret,
        RecordSizeLimit,
        SessionTicket,
        OfferedPsks,
        EarlyData,
        SupportedVersions,
        Cookie,
        PskKeyExchangeModes,
        CertificateAuthorities,
        PostHandshakeAuth,
        SignatureAlgorithmsCert,
        KeyShareClientHello,
        RenegotiationInfo,
    ),
    Context.SERVER_HELLO_12: _by_type(
        ServerNameAcknowledgement,
        StatusRequestAcknowledgement,
        EcPointFormats,
        AlpnSelection,
        ExtendedMasterSecret,
        RecordSizeLimit,
        SessionTicket,
        RenegotiationInfo,
    ),
    Context.SERVER_HELLO_13: _by_type(SelectedPsk, SelectedVersion, KeyShareServerHello),
    Context.HELLO_RETRY_REQUEST: _by_type(SelectedVersion, Cookie, KeyShareHelloRetryRequest),
    Context.ENCRYPTED_EXTENSIONS: _by_type(
        ServerNameAcknowledgement, SupportedGroups, AlpnSelection, RecordSizeLimit, EarlyData
    ),
    Context.CERTIFICATE: _by_type(OcspStatus),
    Context.CERTIFICATE_REQUEST: _by_type(
        StatusRequestAcknowledgement,
        SignatureAlgorithms,
        CertificateAuthorities,
        OidFilters,
        SignatureAlgorithmsCert,
    ),
    Context.NEW_SESSION_TICKET: _by_type(MaxEarlyDataSize),
}


def _decode_one(code: int, data: bytes, kind: type[_Decodable] | None) -> Extension:
    if kind is None:
        return RawExtension(code, data)
    try:
        with Reader(data) as reader:
            return kind.decode(reader)
    except DecodeError as error:
        raise DecodeError(f"in the extension {name_of(ExtensionType, code)}: {error}") from None


def _ascii(octets: bytes) -> str:
    try:
        return octets.decode("ascii")
    except UnicodeDecodeError:
        raise DecodeError("a name that is not ASCII") from None
