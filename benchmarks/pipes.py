"""The record layer as a program uses it: one process sends over loopback TCP, another receives."""

from __future__ import annotations

import multiprocessing
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.local import client_context
from guest_agent.allocator import keep_freed_blocks
from tests.support.pki import SERVER_NAME, client_identity
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, ProtocolVersion
from vmtoken.tls.delegated import ROOM_TO_SPARE, DelegatedConnection
from vmtoken.tls.key_block import KeyBlock

CHUNK = 65_536
"""Octets that a program hands over at once, and room for as many as may come: four records."""

READY = b"!"
"""The receiving process has started and waits."""

SECRETS = (bytes(range(48)), bytes(range(48, 96)))


def our_end(sending: bytes, receiving: bytes) -> DelegatedConnection:
    """One end of a TLS 1.3 session with AES-256-GCM, which is what `ssl` ends up with."""
    key_block = KeyBlock(
        version=ProtocolVersion.TLS_1_3,
        cipher_suite=CipherSuite.TLS_AES_256_GCM_SHA384,
        client_secret=SecretBytes(sending),
        server_secret=SecretBytes(receiving),
        client_sequence=0,
        server_sequence=0,
    )
    return DelegatedConnection(key_block)


def our_pipe(size: int) -> float:
    """MB/s with our record layer at both ends."""
    with _receiver(_receive_ours) as connection:
        sender = our_end(*SECRETS)

        def send(data: bytes) -> None:
            sender.send_data(data)
            connection.sendall(sender.data_to_send())

        return _rate(send, connection, size)


def ssl_pipe(context: ssl.SSLContext, chain: Path, key: Path, size: int) -> float:
    """MB/s with Python's `ssl` at both ends."""
    with _receiver(_receive_ssl, chain, key) as connection:
        session = context.wrap_socket(connection, server_hostname=SERVER_NAME)
        return _rate(session.sendall, session, size)


def ssl_pipe_context(directory: Path) -> ssl.SSLContext:
    """For `ssl_pipe`, whose receiver asks for no certificate."""
    return client_context(client_identity(), directory)


def _rate(send: Callable[[bytes], object], connection: socket.socket, size: int) -> float:
    """From the first octet to the moment at which the receiver has them all and says so."""
    chunk = bytes(CHUNK)
    started = time.perf_counter()
    for _ in range(size // CHUNK):
        send(chunk)
    connection.shutdown(socket.SHUT_WR)
    assert socket.socket.recv(connection, 1) == b""
    return size / (time.perf_counter() - started) / 1e6


@contextmanager
def _receiver(receive: Callable[..., None], *arguments: Any) -> Iterator[socket.socket]:
    """A connection to a process that receives until the end, and then closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_accept, args=(listener, receive, *arguments))
        process.start()
        with socket.create_connection(listener.getsockname()) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert connection.recv(1) == READY
            yield connection
        process.join()
        assert process.exitcode == 0


def _accept(listener: socket.socket, receive: Callable[..., None], *arguments: Any) -> None:
    keep_freed_blocks()
    connection, _ = listener.accept()
    with connection:
        connection.sendall(READY)
        receive(connection, *arguments)


def _receive_ours(connection: socket.socket) -> None:
    receiver = our_end(*reversed(SECRETS))
    records, room = memoryview(bytearray(CHUNK)), bytearray(CHUNK + ROOM_TO_SPARE)
    while count := connection.recv_into(records):
        receiver.receive_into(records[:count], room)


def _receive_ssl(connection: socket.socket, chain: Path, key: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.num_tickets = 0
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    with context.wrap_socket(connection, server_side=True) as session:
        room = bytearray(CHUNK)
        while session.recv_into(room):
            pass
