"""A TLS echo server on Python's `ssl`. Options come as one JSON argument, see tests/support/servers.py."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
from typing import Any

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
CURVES = {"secp256r1": "prime256v1"}
"""OpenSSL's own names."""


def main() -> None:
    options = json.loads(sys.argv[1])
    context = server_context(options)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(f"READY {listener.getsockname()[1]}", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(context, connection), daemon=True).start()


def server_context(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options["certificate"], options["key"])
    context.load_verify_locations(options["trust"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = VERSIONS[options["minimum"]]
    context.maximum_version = VERSIONS[options["maximum"]]
    context.sni_callback = remember_server_name
    if options["alpn"]:
        context.set_alpn_protocols(options["alpn"])
    for group in options["groups"][:1]:
        context.set_ecdh_curve(CURVES.get(group, group))
    if not options["tickets"]:
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    if options["keylog"]:
        context.keylog_filename = options["keylog"]
    return context


def remember_server_name(connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
    connection.vmtoken_server_name = name or ""  # type: ignore[attr-defined]


def serve(context: ssl.SSLContext, connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(connection, server_side=True) as session:
            session.sendall(json.dumps(seen(session)).encode() + b"\n")
            echo(session)
    except OSError as error:
        print(f"session ended: {error}", file=sys.stderr, flush=True)
    finally:
        connection.close()


def seen(session: ssl.SSLSocket) -> dict[str, object]:
    """What the server saw, sent to the client as the first line."""
    return {
        "version": session.version(),
        "alpn": session.selected_alpn_protocol() or "",
        "server_name": getattr(session, "vmtoken_server_name", ""),
        "resumed": session.session_reused,
        "client": common_name(session.getpeercert() or {}),
    }


def common_name(certificate: dict[str, Any]) -> str:
    return next(value for name in certificate["subject"] for field, value in name if field == "commonName")


def echo(session: ssl.SSLSocket) -> None:
    while data := session.recv(65536):
        session.sendall(data)
    session.unwrap()


if __name__ == "__main__":
    main()
