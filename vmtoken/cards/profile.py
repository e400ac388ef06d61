"""The octets of our profile of draft-urien-eap-smartcard, read and written by both sides.

`docs/card-profile.md` describes every command. A card that lacks the profile answers SELECT
without an FCI.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vmtoken.cards.codes import (
    AID,
    MAX_HANDLE_LENGTH,
    PROFILE_VERSION,
    SHA256_LENGTH,
    FailureCode,
    Features,
    Mode,
)
from vmtoken.codec import DecodeError, Reader
from vmtoken.iso7816.channel import ApduLimits
from vmtoken.iso7816.tlv import BerTlv, decode_fields, encode_tlv
from vmtoken.tls.codes import AlertDescription, CipherSuite, NamedGroup, ProtocolVersion, name_of
from vmtoken.tls.key_block import KeyBlock
from vmtoken.token import CertificateMode

_Code = TypeVar("_Code", bound=enum.IntEnum)

_CERTIFICATE_MODES = (CertificateMode.IF_ASKED, CertificateMode.OPTIONAL, CertificateMode.ALWAYS)
"""Each at the index that stands for it in a Start."""


@dataclass(frozen=True, slots=True)
class Fci:
    """What SELECT answers: who the card is and what it can do."""

    serial: bytes
    """8 octets."""

    versions: tuple[ProtocolVersion, ...]
    limits: ApduLimits
    features: Features
    max_packet: int = 0xFFFF
    """Longest EAP packet that the card takes, in octets."""

    version: int = PROFILE_VERSION

    def encode(self) -> bytes:
        """The FCI template 6F (ISO/IEC 7816-4 section 7.4.3)."""
        limits = self.limits.command_data.to_bytes(2, "big") + self.limits.response_data.to_bytes(4, "big")
        template = (
            encode_tlv(0x80, bytes((self.version,)))
            + encode_tlv(0x81, b"".join(version.to_bytes(2, "big") for version in self.versions))
            + encode_tlv(0x82, limits)
            + encode_tlv(0x83, self.max_packet.to_bytes(2, "big"))
            + encode_tlv(0x84, self.features.to_bytes(2, "big"))
            + encode_tlv(0x85, self.serial)
        )
        return encode_tlv(0x6F, encode_tlv(0x84, AID) + encode_tlv(0xA5, template))

    @classmethod
    def decode(cls, octets: bytes) -> Fci:
        """Raises `DecodeError` if it is not an FCI of this profile. Later versions may add data objects."""
        template = decode_fields(BerTlv.decode(octets).value).get(0xA5)
        if template is None:
            raise DecodeError("the FCI holds no proprietary template")
        fields = _Fields(decode_fields(template))
        sizes = fields.raw(0x82, 6)
        return cls(
            version=fields.uint(0x80, 1),
            versions=tuple(_known_versions(fields.raw(0x81))),
            limits=ApduLimits(int.from_bytes(sizes[:2], "big"), int.from_bytes(sizes[2:], "big")),
            max_packet=fields.uint(0x83, 2),
            features=Features(fields.uint(0x84, 2)),
            serial=fields.raw(0x85),
        )


@dataclass(frozen=True, slots=True)
class StartParameters:
    """What follows the six octets of an EAP-TLS Start: the time, then data objects."""

    time: int
    """Unix time, 32 bits."""

    mode: Mode = Mode.EAP_PEER
    server_name: str | None = None
    alpn: tuple[str, ...] = ()
    min_version: ProtocolVersion = ProtocolVersion.TLS_1_2
    max_version: ProtocolVersion = ProtocolVersion.TLS_1_3
    resumption: bytes | None = None
    packet_length: int | None = None
    """Longest EAP packet that the card is to send, in octets."""

    certificate: CertificateMode = CertificateMode.IF_ASKED

    def encode(self) -> bytes:
        """Octets behind the EAP packet."""
        parts = [self.time.to_bytes(4, "big")]
        if self.mode is not Mode.EAP_PEER:
            parts.append(encode_tlv(0x80, bytes((self.mode,))))
        if self.server_name is not None:
            parts.append(encode_tlv(0x81, self.server_name.encode("ascii")))
        if self.alpn:
            parts.append(encode_tlv(0x82, encode_names(self.alpn)))
        if (self.min_version, self.max_version) != (ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3):
            versions = self.min_version.to_bytes(2, "big") + self.max_version.to_bytes(2, "big")
            parts.append(encode_tlv(0x83, versions))
        if self.resumption is not None:
            parts.append(encode_tlv(0x84, self.resumption))
        if self.packet_length is not None:
            parts.append(encode_tlv(0x85, self.packet_length.to_bytes(2, "big")))
        if self.certificate is not CertificateMode.IF_ASKED:
            parts.append(encode_tlv(0x86, bytes((_CERTIFICATE_MODES.index(self.certificate),))))
        return b"".join(parts)

    @classmethod
    def decode(cls, octets: bytes) -> StartParameters:
        """Raises `DecodeError`; data objects that the profile does not name are refused."""
        if len(octets) < 4:
            raise DecodeError("an EAP-TLS Start without the time")
        fields = _Fields(decode_fields(octets[4:]), allowed=range(0x80, 0x87))
        low, high = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
        if 0x83 in fields:
            low, high = (_version(part) for part in _halves(fields.raw(0x83, 4)))
        return cls(
            time=int.from_bytes(octets[:4], "big"),
            mode=_member(Mode, fields.uint(0x80, 1)) if 0x80 in fields else Mode.EAP_PEER,
            server_name=_ascii(fields.raw(0x81)) if 0x81 in fields else None,
            alpn=tuple(decode_names(fields.raw(0x82))) if 0x82 in fields else (),
            min_version=low,
            max_version=high,
            resumption=fields.raw(0x84) if 0x84 in fields else None,
            packet_length=fields.uint(0x85, 2) if 0x85 in fields else None,
            certificate=_certificate_mode(fields.uint(0x86, 1) if 0x86 in fields else 0),
        )


@dataclass(frozen=True, slots=True)
class ServerExport:
    """Export 86: who the server proved to be, readable from that moment on."""

    server_name: str
    spki_sha256: tuple[bytes, ...]
    leaf: bytes = field(repr=False)
    complete: bool
    """Whether the result can be read already."""

    def encode(self) -> bytes:
        """Data objects 80 to 83."""
        return (
            encode_tlv(0x80, bytes((self.complete,)))
            + encode_tlv(0x81, self.server_name.encode("ascii"))
            + encode_tlv(0x82, b"".join(self.spki_sha256))
            + encode_tlv(0x83, self.leaf)
        )

    @classmethod
    def decode(cls, octets: bytes) -> ServerExport:
        """Raises `DecodeError`."""
        fields = _Fields(decode_fields(octets))
        hashes = fields.raw(0x82)
        if not hashes or len(hashes) % SHA256_LENGTH:
            raise DecodeError("the SPKI hashes of the path do not have 32 octets each")
        return cls(
            complete=fields.uint(0x80, 1) == 1,
            server_name=_ascii(fields.raw(0x81)),
            spki_sha256=tuple(
                hashes[start : start + SHA256_LENGTH] for start in range(0, len(hashes), SHA256_LENGTH)
            ),
            leaf=fields.raw(0x83),
        )


_MAX_MESSAGE = 400
_RESUMED = 0x01
_CLIENT_CERTIFICATE_SENT = 0x02


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What the host knows of a session beside its keys."""

    resumed: bool
    client_certificate_sent: bool
    """In this handshake, or in the one that is resumed."""

    group: int | None
    alpn: str | None
    session: bytes
    """Handle for Take-Ticket; at most 32 octets."""

    def encode(self) -> bytes:
        """Data objects 84 to 87."""
        flags = (_RESUMED if self.resumed else 0) | (
            _CLIENT_CERTIFICATE_SENT if self.client_certificate_sent else 0
        )
        return (
            encode_tlv(0x84, bytes((flags,)))
            + (b"" if self.group is None else encode_tlv(0x85, self.group.to_bytes(2, "big")))
            + (b"" if self.alpn is None else encode_tlv(0x86, self.alpn.encode("ascii")))
            + encode_tlv(0x87, self.session)
        )

    @classmethod
    def of(cls, fields: _Fields) -> SessionFacts:
        """Out of an export that holds them; raises `DecodeError`."""
        flags = fields.uint(0x84, 1)
        return cls(
            resumed=bool(flags & _RESUMED),
            client_certificate_sent=bool(flags & _CLIENT_CERTIFICATE_SENT),
            group=fields.uint(0x85, 2) if 0x85 in fields else None,
            alpn=_ascii(fields.raw(0x86)) if 0x86 in fields else None,
            session=fields.handle(0x87),
        )

    @property
    def group_name(self) -> str | None:
        """The name of the group in the IANA registry."""
        return None if self.group is None else name_of(NamedGroup, self.group)


@dataclass(frozen=True, slots=True)
class SessionState:
    """Export 82: all that is no secret; it can be read after the key block is gone."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    client_sequence: int
    server_sequence: int
    send_limit: int
    receive_limit: int
    facts: SessionFacts

    def encode(self) -> bytes:
        """Data objects 80 to 87."""
        sequences = self.client_sequence.to_bytes(8, "big") + self.server_sequence.to_bytes(8, "big")
        limits = self.send_limit.to_bytes(2, "big") + self.receive_limit.to_bytes(2, "big")
        return (
            encode_tlv(0x80, self.version.to_bytes(2, "big"))
            + encode_tlv(0x81, self.cipher_suite.to_bytes(2, "big"))
            + encode_tlv(0x82, sequences)
            + encode_tlv(0x83, limits)
            + self.facts.encode()
        )

    @classmethod
    def decode(cls, octets: bytes) -> SessionState:
        """Raises `DecodeError`."""
        fields = _Fields(decode_fields(octets))
        client, server = _halves(fields.raw(0x82, 16))
        send, receive = _halves(fields.raw(0x83, 4))
        return cls(
            version=_version(fields.raw(0x80, 2)),
            cipher_suite=_member(CipherSuite, fields.uint(0x81, 2)),
            client_sequence=int.from_bytes(client, "big"),
            server_sequence=int.from_bytes(server, "big"),
            send_limit=int.from_bytes(send, "big"),
            receive_limit=int.from_bytes(receive, "big"),
            facts=SessionFacts.of(fields),
        )


@dataclass(frozen=True, slots=True)
class ResultExport:
    """Export 87: the key block and the facts in one answer, once."""

    key_block: KeyBlock
    facts: SessionFacts

    def encode(self) -> bytes:
        """Data objects 81 (as `KeyBlock.encode`) and 84 to 87."""
        return encode_tlv(0x81, self.key_block.encode()) + self.facts.encode()

    @classmethod
    def decode(cls, octets: bytes) -> ResultExport:
        """Raises `DecodeError`."""
        fields = _Fields(decode_fields(octets))
        return cls(KeyBlock.decode(fields.raw(0x81)), SessionFacts.of(fields))


@dataclass(frozen=True, slots=True)
class FailureExport:
    """Export 85: why the handshake failed, and what the server must still be told."""

    code: FailureCode
    message: str
    """One sentence for a person; what is beyond 400 octets of UTF-8 goes out as an ellipsis."""

    alert_flight: bytes = b""
    """TLS records to send to the server."""

    alert_sent: int | None = None
    alert_received: int | None = None

    @property
    def alerts(self) -> dict[str, str]:
        """Their names in the IANA registry, by 'alert_sent' and 'alert_received'."""
        alerts = {"alert_sent": self.alert_sent, "alert_received": self.alert_received}
        return {key: name_of(AlertDescription, alert) for key, alert in alerts.items() if alert is not None}

    def encode(self) -> bytes:
        """Data objects 80 to 84."""
        return (
            encode_tlv(0x80, bytes((self.code,)))
            + encode_tlv(0x81, _shortened(self.message))
            + (b"" if self.alert_sent is None else encode_tlv(0x82, bytes((self.alert_sent,))))
            + (b"" if self.alert_received is None else encode_tlv(0x83, bytes((self.alert_received,))))
            + (encode_tlv(0x84, self.alert_flight) if self.alert_flight else b"")
        )

    @classmethod
    def decode(cls, octets: bytes) -> FailureExport:
        """Raises `DecodeError`. A code that a later profile adds reads as OTHER."""
        fields = _Fields(decode_fields(octets))
        code = fields.uint(0x80, 1)
        return cls(
            code=FailureCode(code) if code in FailureCode.__members__.values() else FailureCode.OTHER,
            message=fields.raw(0x81).decode(errors="replace"),
            alert_sent=fields.uint(0x82, 1) if 0x82 in fields else None,
            alert_received=fields.uint(0x83, 1) if 0x83 in fields else None,
            alert_flight=fields.raw(0x84) if 0x84 in fields else b"",
        )


@dataclass(frozen=True, slots=True)
class TicketAnswer:
    """What Take-Ticket answers: a session that can be resumed."""

    handle: bytes
    version: ProtocolVersion
    lifetime: int
    """Seconds."""

    server: ServerExport

    def encode(self) -> bytes:
        """Data objects 80, 81, 82 and A3 (as export 86)."""
        return (
            encode_tlv(0x80, self.handle)
            + encode_tlv(0x81, self.version.to_bytes(2, "big"))
            + encode_tlv(0x82, self.lifetime.to_bytes(4, "big"))
            + encode_tlv(0xA3, self.server.encode())
        )

    @classmethod
    def decode(cls, octets: bytes) -> TicketAnswer:
        """Raises `DecodeError`."""
        fields = _Fields(decode_fields(octets))
        return cls(
            handle=fields.handle(0x80),
            version=_version(fields.raw(0x81, 2)),
            lifetime=fields.uint(0x82, 4),
            server=ServerExport.decode(fields.raw(0xA3)),
        )


@dataclass(frozen=True, slots=True)
class ProfileData:
    """What Get-Profile-Data answers: the subscriber profile of the draft's annex 4."""

    identity: bytes
    chain: tuple[bytes, ...] = field(repr=False)
    anchors: tuple[bytes, ...] = field(repr=False)

    def encode(self) -> bytes:
        """SEQUENCE { OCTET STRING, INTEGER type, INTEGER version, SEQUENCE { [1] chain, [2] anchors } }."""
        credentials = encode_tlv(0xA1, b"".join(self.chain)) + encode_tlv(0xA2, b"".join(self.anchors))
        fixed = bytes.fromhex("02 01 0D 02 01 01")
        return encode_tlv(0x30, encode_tlv(0x04, self.identity) + fixed + encode_tlv(0x30, credentials))

    @classmethod
    def decode(cls, octets: bytes) -> ProfileData:
        """Raises `DecodeError`."""
        parts = BerTlv.decode_all(BerTlv.decode(octets).value)
        if [part.tag for part in parts] != [0x04, 0x02, 0x02, 0x30]:
            raise DecodeError("not a subscriber profile")
        credentials = decode_fields(parts[3].value)
        return cls(
            parts[0].value,
            decode_certificates(credentials.get(0xA1, b"")),
            decode_certificates(credentials.get(0xA2, b"")),
        )


def encode_certificates(certificates: Sequence[bytes]) -> bytes:
    """Certificates one behind the other: DER says where each ends."""
    return b"".join(certificates)


def decode_certificates(octets: bytes) -> tuple[bytes, ...]:
    """The inverse; raises `DecodeError` if something else than SEQUENCEs is there."""
    certificates = []
    for item in BerTlv.decode_all(octets):
        if item.tag != 0x30:
            raise DecodeError("a certificate is a SEQUENCE")
        certificates.append(item.encode())
    return tuple(certificates)


def encode_names(names: Sequence[str]) -> bytes:
    """Names of 1 to 255 ASCII characters, each behind its length (as ProtocolNameList of RFC 7301)."""
    return b"".join(bytes((len(name),)) + name.encode("ascii") for name in names)


def decode_names(octets: bytes) -> Iterator[str]:
    """The inverse; raises `DecodeError`."""
    with Reader(octets) as reader:
        while reader.remaining:
            yield _ascii(reader.opaque(1, minimum=1))


class _Fields:
    """Values of data objects, with their lengths checked."""

    def __init__(self, fields: dict[int, bytes], allowed: Sequence[int] | None = None) -> None:
        unknown = [tag for tag in fields if allowed is not None and tag not in allowed]
        if unknown:
            raise DecodeError(f"data object {unknown[0]:02X} does not belong here")
        self._fields = fields

    def __contains__(self, tag: int) -> bool:
        return tag in self._fields

    def raw(self, tag: int, length: int | None = None) -> bytes:
        value = self._fields.get(tag)
        if value is None or (length is not None and len(value) != length):
            raise DecodeError(f"data object {tag:02X} is missing or has a wrong length")
        return value

    def uint(self, tag: int, length: int) -> int:
        return int.from_bytes(self.raw(tag, length), "big")

    def handle(self, tag: int) -> bytes:
        value = self.raw(tag)
        if not 1 <= len(value) <= MAX_HANDLE_LENGTH:
            raise DecodeError(f"a handle of {len(value)} octets")
        return value


def _halves(octets: bytes) -> tuple[bytes, bytes]:
    middle = len(octets) // 2
    return octets[:middle], octets[middle:]


def _shortened(message: str) -> bytes:
    octets = message.encode()
    return octets if len(octets) <= _MAX_MESSAGE else octets[: _MAX_MESSAGE - 3] + b"..."


def _known_versions(octets: bytes) -> Iterator[ProtocolVersion]:
    for start in range(0, len(octets) - 1, 2):
        value = int.from_bytes(octets[start : start + 2], "big")
        if value in ProtocolVersion.__members__.values():
            yield ProtocolVersion(value)


def _version(octets: bytes) -> ProtocolVersion:
    return _member(ProtocolVersion, int.from_bytes(octets, "big"))


def _certificate_mode(code: int) -> CertificateMode:
    if code >= len(_CERTIFICATE_MODES):
        raise DecodeError(f"{code:#x} is no certificate mode")
    return _CERTIFICATE_MODES[code]


def _member(kind: type[_Code], value: int) -> _Code:
    try:
        return kind(value)
    except ValueError:
        raise DecodeError(f"{value:#x} is no {kind.__name__}") from None


def _ascii(octets: bytes) -> str:
    try:
        return octets.decode("ascii")
    except UnicodeDecodeError:
        raise DecodeError("a name that is not ASCII") from None
