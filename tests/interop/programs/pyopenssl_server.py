"""A TLS echo server on pyOpenSSL, which brings an OpenSSL that has X25519MLKEM768 and ML-DSA.

Options come as one JSON argument, see tests/support/servers.py.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto

VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


def main() -> None:
    options = json.loads(sys.argv[1])
    context = server_context(options)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(f"READY {listener.getsockname()[1]}", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(context, connection), daemon=True).start()


def server_context(options: dict[str, Any]) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(options["certificate"])
    context.use_privatekey_file(options["key"])
    context.load_verify_locations(options["trust"])
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.set_client_ca_list(
        [crypto.load_certificate(crypto.FILETYPE_PEM, Path(options["trust"]).read_bytes()).get_subject()]
    )
    context.set_min_proto_version(VERSIONS[options["minimum"]])
    context.set_max_proto_version(VERSIONS[options["maximum"]])
    context.set_session_id(b"vmtoken")
    if options["groups"]:
        limit_groups(context, options["groups"])
    if options["alpn"]:
        context.set_alpn_select_callback(lambda _, offered: choose_protocol(options["alpn"], offered))
    if not options["tickets"]:
        context.set_options(SSL.OP_NO_TICKET)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if options["keylog"]:
        context.set_keylog_callback(lambda _, line: append(Path(options["keylog"]), line))
    return context


def limit_groups(context: SSL.Context, groups: Sequence[str]) -> None:
    """pyOpenSSL has no call for it, its binding has."""
    if SSL._lib.SSL_CTX_set1_curves_list(context._context, ":".join(groups).encode()) != 1:
        raise SystemExit(f"OpenSSL does not know the groups {groups}")


def choose_protocol(known: Sequence[str], offered: Sequence[bytes]) -> Any:
    return next((name for name in offered if name.decode() in known), SSL.NO_OVERLAPPING_PROTOCOLS)


def append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line + b"\n")


def serve(context: SSL.Context, connection: socket.socket) -> None:
    session = SSL.Connection(context, connection)
    session.set_accept_state()
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session.do_handshake()
        session.sendall(json.dumps(seen(session)).encode() + b"\n")
        echo(session)
    except (SSL.Error, OSError) as error:
        print(f"session ended: {error!r}", file=sys.stderr, flush=True)
    finally:
        connection.close()


def seen(session: SSL.Connection) -> dict[str, object]:
    """What the server saw, sent to the client as the first line."""
    certificate = session.get_peer_certificate()
    return {
        "version": session.get_protocol_version_name(),
        "alpn": session.get_alpn_proto_negotiated().decode(),
        "server_name": (session.get_servername() or b"").decode(),
        "resumed": bool(SSL._lib.SSL_session_reused(session._ssl)),
        "client": certificate.get_subject().commonName if certificate else "",
    }


def echo(session: SSL.Connection) -> None:
    while True:
        try:
            data = session.recv(65536)
        except SSL.ZeroReturnError:
            session.shutdown()
            return
        session.sendall(data)


if __name__ == "__main__":
    main()
