"""A TLS server of Python's `ssl` in a thread, for conversations that a test spells out octet by octet."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.pki import Identity, server_identity

Conversation = Callable[[ssl.SSLSocket], None]
RawConversation = Callable[[socket.socket], None]

_PATIENCE = 20.0
"""Seconds for one read or write on the server's side."""


def server_context(identity: Identity | None = None, *, trusted: bytes | None = None) -> ssl.SSLContext:
    """A server that demands a client certificate below the same root, or below the `trusted` one, DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    with tempfile.TemporaryDirectory() as directory:
        files = (identity or server_identity()).write(Path(directory))
        context.load_cert_chain(files.chain, files.key)
        if trusted is None:
            context.load_verify_locations(files.anchors)
        else:
            context.load_verify_locations(cadata=trusted)
    return context


@contextlib.contextmanager
def tls_server(conversation: Conversation, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve every connection with `conversation`; gives the port."""
    serving = context or server_context()

    def talk(connection: socket.socket) -> None:
        with serving.wrap_socket(connection, server_side=True) as tls:
            conversation(tls)

    with raw_server(talk) as port:
        yield port


@contextlib.contextmanager
def raw_server(conversation: RawConversation) -> Iterator[int]:
    """Serve every TCP connection with `conversation`, in a thread each; gives the port.

    What breaks a conversation is the test's doing and ends that connection only.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    threads: list[threading.Thread] = []
    open_handles: set[socket.socket] = set()

    def talk(connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE)
        handle = connection.dup()  # TLS takes the connection itself over
        open_handles.add(handle)
        with connection, contextlib.suppress(OSError):
            conversation(connection)
        open_handles.discard(handle)
        handle.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=talk, args=(connection,), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for handle in list(open_handles):
            with contextlib.suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(_PATIENCE)


def echo(tls: ssl.SSLSocket) -> None:
    """Send back what comes until the client's close_notify, then say close_notify too."""
    while data := tls.recv(65_536):
        tls.sendall(data)
    tls.unwrap()


def say_and_close(words: bytes) -> Conversation:
    """Send and say close_notify, whatever the client does."""

    def conversation(tls: ssl.SSLSocket) -> None:
        tls.sendall(words)
        tls.unwrap()

    return conversation


def say_and_cut(words: bytes) -> Conversation:
    """Send and end TCP without close_notify."""

    def conversation(tls: ssl.SSLSocket) -> None:
        tls.recv(65_536)
        tls.sendall(words)
        socket.socket.shutdown(tls, socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while socket.socket.recv(tls, 65_536):
                pass

    return conversation
