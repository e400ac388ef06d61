"""FreeRADIUS as an EAP-TLS server on loopback, and the little of RADIUS that it takes to talk to it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.pki import Identity
from tests.support.processes import Child
from tests.support.tools import tool

SHARED_SECRET = b"loopback-only"

_ANSWER_TIMEOUT = 10.0

_CONFIGURATION = """
prefix = /usr
name = radiusd
logdir = {directory}
run_dir = {directory}
raddbdir = {directory}
libdir = /usr/lib/freeradius
pidfile = {directory}/radiusd.pid
max_request_time = 30
cleanup_delay = 5
max_requests = 1024
hostname_lookups = no
log {{
 destination = stdout
 auth = yes
}}
security {{
 max_attributes = 200
 reject_delay = 0
 status_server = yes
 allow_vulnerable_openssl = yes
}}
client localhost {{
 ipaddr = 127.0.0.1
 secret = {secret}
 require_message_authenticator = yes
}}
modules {{
 eap {{
  default_eap_type = tls
  timer_expire = 60
  ignore_unknown_eap_types = no
  max_sessions = 64
  tls-config tests {{
   private_key_file = {key}
   certificate_file = {chain}
   ca_file = {anchors}
   fragment_size = {fragment_size}
   include_length = yes
   auto_chain = yes
   cipher_list = "DEFAULT"
   tls_min_version = "{version}"
   tls_max_version = "{version}"
   ecdh_curve = ""
   cache {{
    enable = no
   }}
  }}
  tls {{
   tls = tests
  }}
 }}
}}
server default {{
 listen {{
  type = auth
  ipaddr = 127.0.0.1
  port = {port}
 }}
 authorize {{
  eap
 }}
 authenticate {{
  eap
 }}
 post-auth {{
  Post-Auth-Type REJECT {{
   eap
  }}
 }}
}}
"""

_ACCESS_REQUEST, _ACCESS_ACCEPT, _ACCESS_REJECT = 1, 2, 3
_USER_NAME, _STATE, _VENDOR, _EAP_MESSAGE, _MESSAGE_AUTHENTICATOR = 1, 24, 26, 79, 80
_MICROSOFT = (311).to_bytes(4, "big")
_MPPE_SEND_KEY, _MPPE_RECV_KEY = 16, 17
_MAX_VALUE = 253


@dataclass(frozen=True)
class RadiusOutcome:
    """How an authentication ended."""

    accepted: bool
    msk: bytes
    """MS-MPPE-Recv-Key and MS-MPPE-Send-Key, one behind the other; empty after a reject."""

    rounds: int
    eap: bytes
    """The last EAP packet: success or failure."""


@contextlib.contextmanager
def freeradius(directory: Path, server: Identity, version: str, fragment_size: int) -> Iterator[int]:
    """Run the server; gives its UDP port."""
    files = server.write(directory)
    port = _free_port()
    (directory / "radiusd.conf").write_text(
        _CONFIGURATION.format(
            directory=directory,
            secret=SHARED_SECRET.decode(),
            key=files.key,
            chain=files.chain,
            anchors=files.anchors,
            fragment_size=fragment_size,
            version=version,
            port=port,
        )
    )
    command = [tool("freeradius"), "-X", "-d", directory, "-n", "radiusd"]
    server_process = Child(command, directory / "radiusd.log")
    try:
        server_process.wait_for("Ready to process requests")
        yield port
    finally:
        server_process.stop()


def authenticate(port: int, user: bytes, respond: Callable[[bytes], bytes | None]) -> RadiusOutcome:
    """Carry EAP packets between a peer and the server until the server has decided."""
    eap = respond(b"\x01\x00\x00\x05\x01")
    state: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(_ANSWER_TIMEOUT)
        client.connect(("127.0.0.1", port))
        for rounds in range(1, 100):
            assert eap is not None
            request, authenticator = _access_request(rounds & 0xFF, user, eap, state)
            client.send(request)
            code, attributes = _checked(client.recv(4096), authenticator)
            eap = b"".join(value for kind, value in attributes if kind == _EAP_MESSAGE)
            state = [value for kind, value in attributes if kind == _STATE]
            if code in (_ACCESS_ACCEPT, _ACCESS_REJECT):
                accepted = code == _ACCESS_ACCEPT
                msk = _mppe_keys(attributes, authenticator) if accepted else b""
                return RadiusOutcome(accepted, msk, rounds, eap)
            eap = respond(eap)
    raise AssertionError("the authentication has no end")


def _access_request(identifier: int, user: bytes, eap: bytes, state: list[bytes]) -> tuple[bytes, bytes]:
    """RFC 2865 section 4.1, RFC 3579 sections 3.1 and 3.2; the request and its authenticator."""
    authenticator = secrets.token_bytes(16)
    pieces = [eap[start : start + _MAX_VALUE] for start in range(0, len(eap), _MAX_VALUE)]
    attributes = [(_USER_NAME, user), *((_EAP_MESSAGE, piece) for piece in pieces)]
    attributes += [(_STATE, value) for value in state]
    body = b"".join(bytes((kind, len(value) + 2)) + value for kind, value in attributes)
    body += bytes((_MESSAGE_AUTHENTICATOR, 18)) + bytes(16)
    header = bytes((_ACCESS_REQUEST, identifier)) + (20 + len(body)).to_bytes(2, "big") + authenticator
    return header + body[:-16] + hmac.digest(SHARED_SECRET, header + body, "md5"), authenticator


def _checked(answer: bytes, authenticator: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """Code and attributes of an answer that knows the shared secret (RFC 2865 section 3)."""
    proof = hashlib.md5(answer[:4] + authenticator + answer[20:] + SHARED_SECRET).digest()
    assert proof == answer[4:20], "the response authenticator is wrong"
    attributes, position = [], 20
    while position < len(answer):
        kind, length = answer[position], answer[position + 1]
        attributes.append((kind, answer[position + 2 : position + length]))
        position += length
    return answer[0], attributes


def _mppe_keys(attributes: list[tuple[int, bytes]], authenticator: bytes) -> bytes:
    """RFC 2548 sections 2.4.2 and 2.4.3; the MSK is the receive key, then the send key."""
    keys = {
        value[4]: _unsalted(value[6:], authenticator)
        for kind, value in attributes
        if kind == _VENDOR and value[:4] == _MICROSOFT
    }
    return keys[_MPPE_RECV_KEY] + keys[_MPPE_SEND_KEY]


def _unsalted(value: bytes, authenticator: bytes) -> bytes:
    salt, cipher = value[:2], value[2:]
    plain, previous = b"", authenticator + salt
    for start in range(0, len(cipher), 16):
        block = cipher[start : start + 16]
        pad = hashlib.md5(SHARED_SECRET + previous).digest()
        plain += bytes(a ^ b for a, b in zip(block, pad, strict=True))
        previous = block
    return plain[1 : 1 + plain[0]]


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
