"""TCP with mutual TLS 1.3, for links where there is no vchan."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a stranger may take for the TLS handshake before the connection is dropped."""


def server_context(certificate: Path, key: Path, clients_ca: Path) -> ssl.SSLContext:
    """TLS 1.3 only, a client certificate of `clients_ca` demanded, HTTP/2 by ALPN (gRPC insists on it).

    Raises `OSError` or `ssl.SSLError` when a file cannot be read or used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(clients_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    context.num_tickets = 0  # a resumed connection would not show its certificate again
    return context


def peer_certificate(transport: asyncio.BaseTransport) -> bytes:
    """The verified certificate of the client, DER."""
    tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
    certificate = tls.getpeercert(binary_form=True)
    assert certificate is not None, "the context demands a client certificate"
    return certificate


async def listen(
    host: str, port: int, context: ssl.SSLContext, protocol: Callable[[], asyncio.Protocol]
) -> asyncio.Server:
    """Serve TLS at an address; port 0 takes a free one."""
    return await asyncio.get_running_loop().create_server(
        protocol, host, port, ssl=context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT, backlog=256
    )
