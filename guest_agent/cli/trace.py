"""The records of a handshake in the manner of `openssl s_client -msg`.

Handshake types are named where they go in clear. The agent has no key of the handshake, so the rest
is shown as what it is here: encrypted.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from vmtoken.tls.codes import AlertDescription, ContentType, HandshakeType, name_of
from vmtoken.v1 import tls_service_pb2 as pb

_VERSIONS = {0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
_HEADER = 5
_HANDSHAKE_HEADER = 4


def handshake_messages(info: pb.SessionInfo) -> str:
    """Every record of a session that was opened with a trace, as text."""
    lines: list[str] = []
    encrypted = {">>>": False, "<<<": False}
    for step in info.timeline:
        for arrow, octets in (("<<<", step.received_records), (">>>", step.sent_records)):
            for record in _records(octets):
                lines += _describe(arrow, record, encrypted)
    return "\n".join(lines)


def _records(octets: bytes) -> Iterator[bytes]:
    start = 0
    while start + _HEADER <= len(octets):
        end = start + _HEADER + int.from_bytes(octets[start + 3 : start + 5], "big")
        yield octets[start:end]
        start = end


def _describe(arrow: str, record: bytes, encrypted: dict[str, bool]) -> list[str]:
    version = _VERSIONS.get(int.from_bytes(record[1:3], "big"), "TLS ?")
    header, fragment = record[:_HEADER], record[_HEADER:]
    lines = [f"{arrow} {version}, RecordHeader [length {_HEADER:04x}]", _hex(header)]
    for what, octets in _contents(record[0], fragment, encrypted[arrow]):
        lines += [f"{arrow} {version}, {what} [length {len(octets):04x}]", _hex(octets)]
    if record[0] == ContentType.CHANGE_CIPHER_SPEC:
        encrypted[arrow] = True
    return lines


def _contents(content_type: int, fragment: bytes, is_encrypted: bool) -> list[tuple[str, bytes]]:
    name = _camel(name_of(ContentType, content_type))
    if content_type == ContentType.APPLICATION_DATA:
        return [("Encrypted, the token holds the key", fragment)]
    if content_type == ContentType.CHANGE_CIPHER_SPEC:
        return [(name, fragment)]
    if is_encrypted:
        return [(f"{name}, encrypted, the token holds the key", fragment)]
    if content_type == ContentType.ALERT and len(fragment) == 2:
        return [(f"Alert, {name_of(AlertDescription, fragment[1]).lower()}", fragment)]
    if content_type == ContentType.HANDSHAKE:
        return list(_messages(fragment))
    return [(name, fragment)]


def _messages(fragment: bytes) -> Iterator[tuple[str, bytes]]:
    """The messages of a record; one that goes on in the next record is shown as far as it goes."""
    start = 0
    while start < len(fragment):
        length = int.from_bytes(fragment[start + 1 : start + _HANDSHAKE_HEADER], "big")
        end = min(start + _HANDSHAKE_HEADER + length, len(fragment))
        yield f"Handshake, {_camel(name_of(HandshakeType, fragment[start]))}", fragment[start:end]
        start = end


def _camel(name: str) -> str:
    return name if name.startswith("0x") else "".join(word.capitalize() for word in name.split("_"))


def _hex(octets: bytes) -> str:
    return textwrap.indent(
        "\n".join(octets[at : at + 16].hex(" ") for at in range(0, len(octets), 16)), "    "
    )
