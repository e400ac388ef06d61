"""The extensions that only TLS 1.3 has, one class each (RFC 8446 section 4.2).

`vmtoken.tls.extensions` is where to import them from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from vmtoken.codec import DecodeError, Reader, Writer
from vmtoken.tls.codes import ExtensionType


@dataclass(frozen=True, slots=True)
class SupportedVersions:
    """RFC 8446 section 4.2.1, in ClientHello."""

    extension_type: ClassVar = ExtensionType.SUPPORTED_VERSIONS

    versions: tuple[int, ...]

    def encode(self, writer: Writer) -> None:
        """The list, best first."""
        writer.uints(self.versions, 1, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At least one version."""
        return cls(reader.uints(1, 2))


@dataclass(frozen=True, slots=True)
class SelectedVersion:
    """RFC 8446 section 4.2.1, in ServerHello and HelloRetryRequest."""

    extension_type: ClassVar = ExtensionType.SUPPORTED_VERSIONS

    version: int

    def encode(self, writer: Writer) -> None:
        """Two octets."""
        writer.uint(self.version, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Two octets."""
        return cls(reader.uint(2))


@dataclass(frozen=True, slots=True)
class Cookie:
    """RFC 8446 section 4.2.2."""

    extension_type: ClassVar = ExtensionType.COOKIE

    cookie: bytes

    def encode(self, writer: Writer) -> None:
        """The block."""
        writer.opaque(self.cookie, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """A block that is not empty."""
        return cls(reader.opaque(2, minimum=1))


@dataclass(frozen=True, slots=True)
class KeyShareEntry:
    """RFC 8446 section 4.2.8: a public value in a group."""

    group: int
    key_exchange: bytes

    def encode(self, writer: Writer) -> None:
        """Group and value."""
        writer.uint(self.group, 2)
        writer.opaque(self.key_exchange, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """A value that is not empty."""
        return cls(reader.uint(2), reader.opaque(2, minimum=1))


@dataclass(frozen=True, slots=True)
class KeyShareClientHello:
    """RFC 8446 section 4.2.8; no shares at all asks for a HelloRetryRequest."""

    extension_type: ClassVar = ExtensionType.KEY_SHARE

    client_shares: tuple[KeyShareEntry, ...]

    def encode(self, writer: Writer) -> None:
        """The list, best first."""
        with writer.block(2):
            for share in self.client_shares:
                share.encode(writer)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """The list, perhaps empty."""
        shares: list[KeyShareEntry] = []
        with reader.block(2) as block:
            while block.remaining:
                shares.append(KeyShareEntry.decode(block))
        return cls(tuple(shares))


@dataclass(frozen=True, slots=True)
class KeyShareServerHello:
    """RFC 8446 section 4.2.8."""

    extension_type: ClassVar = ExtensionType.KEY_SHARE

    server_share: KeyShareEntry

    def encode(self, writer: Writer) -> None:
        """The one share."""
        self.server_share.encode(writer)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """The one share."""
        return cls(KeyShareEntry.decode(reader))


@dataclass(frozen=True, slots=True)
class KeyShareHelloRetryRequest:
    """RFC 8446 section 4.2.8: the group that the server wants a share in."""

    extension_type: ClassVar = ExtensionType.KEY_SHARE

    selected_group: int

    def encode(self, writer: Writer) -> None:
        """Two octets."""
        writer.uint(self.selected_group, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Two octets."""
        return cls(reader.uint(2))


@dataclass(frozen=True, slots=True)
class PskKeyExchangeModes:
    """RFC 8446 section 4.2.9."""

    extension_type: ClassVar = ExtensionType.PSK_KEY_EXCHANGE_MODES

    modes: tuple[int, ...]

    def encode(self, writer: Writer) -> None:
        """The list."""
        writer.uints(self.modes, 1, 1)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At least one mode."""
        return cls(reader.uints(1, 1))


@dataclass(frozen=True, slots=True)
class PskIdentity:
    """RFC 8446 section 4.2.11: a ticket and its age in milliseconds, plus ticket_age_add, modulo 2^32."""

    identity: bytes
    obfuscated_ticket_age: int


@dataclass(frozen=True, slots=True)
class OfferedPsks:
    """RFC 8446 section 4.2.11, the last extension of a ClientHello. One binder for each identity."""

    extension_type: ClassVar = ExtensionType.PRE_SHARED_KEY

    identities: tuple[PskIdentity, ...]
    binders: tuple[bytes, ...]

    @property
    def binders_length(self) -> int:
        """Octets at the end of the ClientHello that the binders do not cover (section 4.2.11.2)."""
        return 2 + sum(1 + len(binder) for binder in self.binders)

    def encode(self, writer: Writer) -> None:
        """Identities, then binders."""
        with writer.block(2):
            for item in self.identities:
                writer.opaque(item.identity, 2)
                writer.uint(item.obfuscated_ticket_age, 4)
        with writer.block(2):
            for binder in self.binders:
                writer.opaque(binder, 1)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """As many binders as identities, at least one of each."""
        identities: list[PskIdentity] = []
        with reader.block(2, minimum=7) as block:
            while block.remaining:
                identities.append(PskIdentity(block.opaque(2, minimum=1), block.uint(4)))
        binders = reader.opaques(2, 1, minimum=32)
        if len(binders) != len(identities):
            raise DecodeError(f"{len(identities)} identities but {len(binders)} binders")
        return cls(tuple(identities), binders)


@dataclass(frozen=True, slots=True)
class SelectedPsk:
    """RFC 8446 section 4.2.11: index of the identity that the server chose."""

    extension_type: ClassVar = ExtensionType.PRE_SHARED_KEY

    selected_identity: int

    def encode(self, writer: Writer) -> None:
        """Two octets."""
        writer.uint(self.selected_identity, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """Two octets."""
        return cls(reader.uint(2))


@dataclass(frozen=True, slots=True)
class CertificateAuthorities:
    """RFC 8446 section 4.2.4: names of acceptable CAs, each a DER Name."""

    extension_type: ClassVar = ExtensionType.CERTIFICATE_AUTHORITIES

    authorities: tuple[bytes, ...]

    def encode(self, writer: Writer) -> None:
        """The list."""
        with writer.block(2):
            for name in self.authorities:
                writer.opaque(name, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """At least one name, none empty."""
        return cls(reader.opaques(2, 2))


@dataclass(frozen=True, slots=True)
class OidFilter:
    """RFC 8446 section 4.2.5: an extension that the client's certificate must have; both fields are DER."""

    certificate_extension_oid: bytes
    certificate_extension_values: bytes


@dataclass(frozen=True, slots=True)
class OidFilters:
    """RFC 8446 section 4.2.5, in CertificateRequest."""

    extension_type: ClassVar = ExtensionType.OID_FILTERS

    filters: tuple[OidFilter, ...]

    def encode(self, writer: Writer) -> None:
        """The list."""
        with writer.block(2):
            for item in self.filters:
                writer.opaque(item.certificate_extension_oid, 1)
                writer.opaque(item.certificate_extension_values, 2)

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        """The list, perhaps empty."""
        filters: list[OidFilter] = []
        with reader.block(2) as block:
            while block.remaining:
                filters.append(OidFilter(block.opaque(1, minimum=1), block.opaque(2)))
        return cls(tuple(filters))
