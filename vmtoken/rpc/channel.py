"""Channels and servers with the project's options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio

from vmtoken.rpc.interceptors import CallInterceptor

MAX_MESSAGE = 1 << 20
"""Octets of a message: 256 KiB of application data, or 64 KiB of records, with room for the rest."""

_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_COMMON = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
)
_CHANNEL = (
    *_COMMON,
    *_KEEPALIVE,
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # in fact the time that one attempt gets
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_SERVER = (
    *_COMMON,
    *_KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


def unix_channel(path: Path) -> grpc.aio.Channel:
    """A channel to a server on a Unix socket; it connects when first used, and again by itself."""
    return grpc.aio.insecure_channel(
        f"unix:{path.absolute()}", options=(*_CHANNEL, ("grpc.default_authority", "localhost"))
    )


def tls_channel(
    target: str, *, ca: bytes, certificate: bytes, key: bytes, server_name: str | None = None
) -> grpc.aio.Channel:
    """A channel over TCP with mutual TLS; `target` is HOST:PORT, the rest is PEM."""
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    override = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    return grpc.aio.secure_channel(target, credentials, options=(*_CHANNEL, *override))


def private_server(
    path: Path, caller: str, *, max_streams: int, links: Sequence[Path] = ()
) -> grpc.aio.Server:
    """A server for one caller on a private Unix socket, to which only the front door leads.

    `caller` is for the log; `max_streams` bounds the calls that the caller may have open at once. `links`
    are more Unix sockets, open to our own user alone, whose paths only this caller can reach.
    Raises `RuntimeError` when gRPC cannot bind.
    """
    options = (*_SERVER, ("grpc.max_concurrent_streams", max_streams))
    server = grpc.aio.server(interceptors=[CallInterceptor(caller)], options=options)
    umask = os.umask(0o177)  # gRPC binds right here, and knows nothing of permissions
    try:
        for socket in (path, *links):
            server.add_insecure_port(f"unix:{socket.absolute()}")
    finally:
        os.umask(umask)
    return server
