"""What goes into a handshake, checked, and what comes out of it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final

from vmtoken.errors import InvalidRequest, VmTokenError
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import Assurance, HandshakeResult

MAX_RECORDS: Final = 1 << 16
"""Octets of records in one step; a flight of a server with a long chain takes a quarter of it."""

MAX_TICKET: Final = 1 << 15
"""Octets of a NewSessionTicket message; RFC 8446 section 4.6.1 would allow 65535 for the ticket alone."""

LONGEST_NAME: Final = 255
"""Characters of a server name that are kept for records, whatever it is."""


@dataclass(frozen=True, slots=True)
class StartRequest:
    """What a guest asks for; nothing in it is checked yet."""

    token: str
    server_name: str
    port: int
    timeout: float
    alpn: tuple[str, ...] = ()
    min_version: ProtocolVersion = ProtocolVersion.TLS_1_2
    max_version: ProtocolVersion = ProtocolVersion.TLS_1_3
    no_resumption: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step cost: seconds in the queue and in the token, APDUs."""

    queue: float = 0.0
    in_token: float = 0.0
    apdus: int = 0
    apdu_octets: int = 0


@dataclass(frozen=True, slots=True)
class Flight:
    """Records for the server; none when more of the server's are needed."""

    records: bytes
    cost: Cost


@dataclass(frozen=True, slots=True)
class Completed:
    """The handshake is complete; the key block goes to the stream and nowhere else."""

    records: bytes
    result: HandshakeResult
    session_id: bytes
    token: str
    assurance: Assurance
    tickets_wanted: int
    cost: Cost


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no session; the alert, if any, must still reach the server."""

    error: VmTokenError
    records: bytes
    cost: Cost


Outcome = Flight | Completed | Failed


def checked(untrusted: StartRequest) -> StartRequest:
    """The request with a canonical server name. Raises `InvalidRequest`."""
    if not 0 < untrusted.timeout < float("inf"):
        raise InvalidRequest("A handshake needs a timeout greater than zero.")
    if not 0 < untrusted.port < 1 << 16:
        raise InvalidRequest(f"There is no TCP port {untrusted.port}; use 1 to 65535.")
    if untrusted.min_version > untrusted.max_version:
        raise InvalidRequest("The lowest TLS version is above the highest.")
    names_fit = all(0 < len(name) < 256 and name.isascii() for name in untrusted.alpn)
    if len(untrusted.alpn) > _MOST_ALPN or not names_fit:
        raise InvalidRequest(f"ALPN takes up to {_MOST_ALPN} names of 1 to 255 ASCII characters.")
    name = _server_name(untrusted.server_name)
    return untrusted if name == untrusted.server_name else replace(untrusted, server_name=name)


_LABEL: Final = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MOST_ALPN: Final = 16
_LONGEST_DNS_NAME: Final = 253
"""RFC 1035 section 2.3.4, as text without the final dot."""


def _server_name(untrusted_name: str) -> str:
    """A DNS name in A-labels, lower case, without the final dot (RFC 6066 section 3), or an address."""
    name = untrusted_name.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if len(name) <= _LONGEST_DNS_NAME and _DNS_NAME.fullmatch(name):
            return name
    raise InvalidRequest("The server name is neither a DNS name (A-labels) nor an IP address.")
