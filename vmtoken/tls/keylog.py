"""NSS key log lines (RFC 9850): whoever has them can read the session. Off unless asked for."""

from __future__ import annotations

import enum


class KeyLogLabel(enum.Enum):
    """What a logged secret is; CLIENT_RANDOM stands before the master secret of TLS 1.2."""

    CLIENT_RANDOM = enum.auto()
    CLIENT_HANDSHAKE_TRAFFIC_SECRET = enum.auto()
    SERVER_HANDSHAKE_TRAFFIC_SECRET = enum.auto()
    CLIENT_TRAFFIC_SECRET_0 = enum.auto()
    SERVER_TRAFFIC_SECRET_0 = enum.auto()
    EXPORTER_SECRET = enum.auto()


def key_log_line(label: KeyLogLabel, client_random: bytes, secret: bytes) -> str:
    """One line, without its end."""
    return f"{label.name} {client_random.hex()} {secret.hex()}"
