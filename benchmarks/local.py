"""The yardstick: a TLS client of Python's `ssl` with the key in a local file."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from tests.support.pki import SERVER_NAME, Identity

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def client_context(client: Identity, directory: Path, version: str = "1.3") -> ssl.SSLContext:
    """What a program would set up once: its identity, its trust anchors, one version."""
    files = client.write(directory, "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(files.chain, files.key)
    context.load_verify_locations(files.anchors)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


class LocalSession:
    """A session over TCP."""

    def __init__(self, context: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None) -> None:
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls = context.wrap_socket(connection, server_hostname=SERVER_NAME, session=session)

    def send(self, data: bytes) -> None:
        self.tls.sendall(data)

    def receive(self) -> bytes:
        return self.tls.recv(65536)

    def close(self) -> None:
        self.tls.close()
