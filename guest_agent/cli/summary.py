"""A session in words: in the manner of `openssl s_client`, honest about where each secret lives."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2

_VERSIONS = {token_pb2.TLS_VERSION_1_2: "TLSv1.2", token_pb2.TLS_VERSION_1_3: "TLSv1.3"}
_ASSURANCES = {
    token_pb2.ASSURANCE_SOFTWARE: "software",
    token_pb2.ASSURANCE_CARD_SIGNATURE: "card-signature",
    token_pb2.ASSURANCE_CARD_HANDSHAKE: "card-handshake",
}
_KEY_PLACES = {
    token_pb2.ASSURANCE_SOFTWARE: "in the software element of the broker (no hardware protects it)",
    token_pb2.ASSURANCE_CARD_SIGNATURE: "in the card",
    token_pb2.ASSURANCE_CARD_HANDSHAKE: "in the card",
}
_SECRET_PLACES = {
    token_pb2.ASSURANCE_SOFTWARE: "stayed in the software element of the broker",
    token_pb2.ASSURANCE_CARD_SIGNATURE: "stayed in the broker",
    token_pb2.ASSURANCE_CARD_HANDSHAKE: "stayed in the card",
}


def as_text(info: pb.SessionInfo) -> str:
    """What `openssl s_client` prints of a session, and what it could not know."""
    certificate = x509.load_der_x509_certificate(info.server_certificate)
    received = sum(step.received for step in info.timeline)
    sent = sum(step.sent for step in info.timeline)
    version, kind = _VERSIONS[info.version], "Reused" if info.resumed else "New"
    return "\n".join(
        [
            f"CONNECTED({info.peer})",
            "---",
            "Server certificate",
            f"subject={certificate.subject.rfc4514_string()}",
            f"issuer={certificate.issuer.rfc4514_string()}",
            "---",
            f"SSL handshake has read {received} bytes and written {sent} bytes",
            "Verification: OK (by the token, before it answered)",
            "---",
            f"{kind}, {version}, Cipher is {info.cipher_suite}",
            f"Server public key is {_key_size(certificate.public_key())}",
            "Secure Renegotiation IS NOT supported",
            "Compression: NONE",
            f"ALPN protocol: {info.alpn}" if info.alpn else "No ALPN negotiated",
            "SSL-Session:",
            *(f"    {name:<11}: {value}" for name, value in _session_lines(info)),
            "---",
            *_timeline_lines(info),
            "---",
        ]
    )


def as_json(info: pb.SessionInfo) -> str:
    """The same for programs, in one line."""
    return json.dumps(
        {
            "peer": info.peer,
            "protocol": _VERSIONS[info.version],
            "cipher": info.cipher_suite,
            "group": info.group or None,
            "alpn": info.alpn or None,
            "resumed": info.resumed,
            "token": info.token,
            "assurance": _ASSURANCES[info.assurance],
            "client_certificate_sent": info.client_certificate_sent,
            "server_certificate": info.server_certificate.hex(),
            "session_id": info.broker_session_id.hex(),
            "secrets": {
                "private_key": _KEY_PLACES[info.assurance],
                "master": _SECRET_PLACES[info.assurance],
                "resumption": _SECRET_PLACES[info.assurance],
                "record_keys": "agent",
            },
            "timeline": [_step(step) for step in info.timeline],
        }
    )


def _session_lines(info: pb.SessionInfo) -> list[tuple[str, str]]:
    sent = "sent" if info.client_certificate_sent else "not asked for"
    return [
        ("Protocol", _VERSIONS[info.version]),
        ("Cipher", info.cipher_suite),
        ("Group", info.group or "unknown"),
        ("Session-ID", f"{info.broker_session_id.hex().upper()} (in the broker's audit log)"),
        ("Token", f"{info.token}, assurance {_ASSURANCES[info.assurance]}"),
        ("Client cert", sent),
        ("Private-Key", f"stayed {_KEY_PLACES[info.assurance]}"),
        ("Master-Key", _SECRET_PLACES[info.assurance]),
        ("Resumption", _SECRET_PLACES[info.assurance]),
        ("Record keys", "in the agent of this machine, for this session only"),
        ("Start Time", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")),
        ("Verify return code", "0 (ok)"),
    ]


def _timeline_lines(info: pb.SessionInfo) -> list[str]:
    heads = ("at ms", "written", "read", "APDUs", "octets", "token ms")
    lines = [f"{'Handshake':<20}" + "".join(f"{head:>9}" for head in heads)]
    for step in info.timeline:
        at, in_token = f"{step.at_microseconds / 1000:.2f}", f"{step.token_microseconds / 1000:.2f}"
        cells = (at, step.sent, step.received, step.apdus, step.apdu_octets, in_token)
        lines.append(f"    {step.name:<16}" + "".join(f"{cell:>9}" for cell in cells))
    return lines


def _step(step: pb.TimelineStep) -> dict[str, Any]:
    return {
        "name": step.name,
        "at_microseconds": step.at_microseconds,
        "sent": step.sent,
        "received": step.received,
        "apdus": step.apdus,
        "apdu_octets": step.apdu_octets,
        "queue_microseconds": step.queue_microseconds,
        "token_microseconds": step.token_microseconds,
    }


def _key_size(key: PublicKeyTypes) -> str:
    size = getattr(key, "key_size", None)
    return f"{size} bit" if size else type(key).__name__.removesuffix("PublicKey")
