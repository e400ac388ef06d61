"""Throughput: the record layer in memory and over TCP, and a tunnel through the agent."""

from __future__ import annotations

import contextlib
import functools
import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from benchmarks.bench import TOKEN, Bench
from benchmarks.engine import ssl_server
from benchmarks.local import LocalSession, client_context
from benchmarks.pipes import SECRETS, our_end, our_pipe, ssl_pipe, ssl_pipe_context
from benchmarks.rows import Row, in_turns, median
from tests.support.conversations import Stream
from tests.support.pki import SERVER_NAME, client_identity, server_identity
from tests.support.stack_client import StackClient
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.v1 import tls_service_pb2 as pb

RECORD_GOAL, TUNNEL_GOAL = ">= 1.5", ">= 0.8"
CHUNK = 65_536
"""Octets that a program hands over at once: four records."""

MESSAGE = 262_144
"""Octets in a message of a tunnel: the most that one takes."""

UNIT = "MB/s"


def rows(bench: Bench) -> Iterator[Row]:
    """TLS 1.3 with AES-256-GCM everywhere: what `ssl` ends up with."""
    yield _over_tcp(bench)
    yield _in_memory(bench)
    size = bench.rounds(256, 64) << 20
    path = bench.servers["1.3"].child.log_path.parent / "bulk/large"
    path.write_bytes(bytes(size))
    yield from _tunnel(bench, size)
    path.unlink()


# The record layer -------------------------------------------------------------------------------------


def _over_tcp(bench: Bench) -> Row:
    """One process sends to another."""
    size = bench.rounds(256, 64) << 20
    files = server_identity().write(bench.directory, "pipe-server")
    theirs = functools.partial(ssl_pipe, ssl_pipe_context(bench.directory), files.chain, files.key, size)
    costs = in_turns([functools.partial(our_pipe, size), theirs], bench.rounds(9, 3), warm_up=1)
    return _row("record layer in process, over TCP", costs, RECORD_GOAL)


def _in_memory(bench: Bench) -> Row:
    """Encrypt and decrypt, no socket."""
    size = bench.rounds(128, 32) << 20
    ours = functools.partial(_our_records, our_end(*SECRETS), our_end(*reversed(SECRETS)), size)
    theirs = functools.partial(_ssl_records, *_ssl_pair(bench), size)
    costs = in_turns([ours, theirs], bench.rounds(9, 3), warm_up=1)
    return _row("record layer in memory, sealed and opened", costs, "")


def _our_records(sender: DelegatedConnection, receiver: DelegatedConnection, size: int) -> float:
    chunk, room = bytes(CHUNK), bytearray(2 * CHUNK)
    started = time.perf_counter()
    for _ in range(size // CHUNK):
        sender.send_data(chunk)
        assert receiver.receive_into(sender.data_to_send(), room) == CHUNK
    return size / (time.perf_counter() - started) / 1e6


def _ssl_pair(bench: Bench) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.SSLObject, ssl.MemoryBIO]:
    """A client with what it sends, and a server with what it receives."""
    server = ssl_server(server_identity().write(bench.directory, "bulk-server"))()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context(client_identity(), bench.directory)
    client = context.wrap_bio(incoming, outgoing, server_hostname=SERVER_NAME)
    for _ in range(4):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        incoming.write(server.exchange(outgoing.read()))
    return client, outgoing, server.connection, server.incoming


def _ssl_records(
    sender: ssl.SSLObject, sent: ssl.MemoryBIO, receiver: ssl.SSLObject, received: ssl.MemoryBIO, size: int
) -> float:
    chunk, room = bytes(CHUNK), memoryview(bytearray(CHUNK))
    started = time.perf_counter()
    for _ in range(size // CHUNK):
        sender.write(chunk)
        received.write(sent.read())
        left = CHUNK
        while left:
            left -= receiver.read(left, room)
    return size / (time.perf_counter() - started) / 1e6


# A tunnel --------------------------------------------------------------------------------------------


class BulkStream(Stream, Protocol):
    """A session that can be closed."""

    def close(self) -> None: ...


def _tunnel(bench: Bench, size: int) -> Iterator[Row]:
    """A file from nginx and one to it, beside Python's `ssl`."""
    context = client_context(client_identity(), bench.directory)
    port = bench.servers["1.3"].port
    with StackClient.of(bench.stack) as application:
        connects = (functools.partial(TunnelStream, application), functools.partial(LocalSession, context))
        for direction, transfer in (("download", _download), ("upload", _upload)):
            actions = [functools.partial(_measure, connect, port, transfer, size) for connect in connects]
            costs = in_turns(actions, bench.rounds(5, 2), warm_up=1)
            yield _row(f"tunnel through the agent, {direction}", costs, TUNNEL_GOAL)


def _measure(
    connect: Callable[[int], BulkStream], port: int, transfer: Callable[[BulkStream, int], None], size: int
) -> float:
    stream = connect(port)
    started = time.perf_counter()
    transfer(stream, size)
    elapsed = time.perf_counter() - started
    stream.close()
    return size / elapsed / 1e6


def _download(stream: BulkStream, size: int) -> None:
    stream.send(b"GET /bulk/large HTTP/1.1\r\nHost: server.example\r\n\r\n")
    answer = bytearray()
    while b"\r\n\r\n" not in answer:
        answer += stream.receive()
    left = size - (len(answer) - answer.index(b"\r\n\r\n") - 4)
    while left:
        left -= len(stream.receive())


def _upload(stream: BulkStream, size: int) -> None:
    head = f"PUT /bulk/uploaded HTTP/1.1\r\nHost: server.example\r\nContent-Length: {size}\r\n\r\n"
    stream.send(head.encode())
    chunk = bytes(MESSAGE)
    for _ in range(size // MESSAGE):
        stream.send(chunk)
    answer = stream.receive()
    assert answer.startswith(b"HTTP/1.1 20"), answer


class TunnelStream:
    """The agent's Tunnel call, used in the blocking way."""

    def __init__(self, application: StackClient, port: int) -> None:
        self._requests: queue.SimpleQueue[pb.TunnelRequest | None] = queue.SimpleQueue()
        self._slots = threading.Semaphore(_MESSAGES_AHEAD)
        connect = pb.ConnectRequest(
            host="127.0.0.1", port=port, token=TOKEN, server_name=SERVER_NAME, no_resumption=True
        )
        self._requests.put(pb.TunnelRequest(connect=connect))
        self._responses = application.service.Tunnel(self._outgoing())
        assert next(self._responses).HasField("session")

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), MESSAGE):
            self._slots.acquire()
            self._requests.put(pb.TunnelRequest(data=data[start : start + MESSAGE]))

    def receive(self) -> bytes:
        return next(self._responses).data

    def close(self) -> None:
        self._requests.put(None)
        self._responses.cancel()

    def _outgoing(self) -> Iterator[pb.TunnelRequest]:
        while (request := self._requests.get()) is not None:
            yield request
            self._slots.release()


_MESSAGES_AHEAD = 4
"""So that a sender does not pile up in memory what the tunnel has not taken yet."""


def _row(name: str, costs: Sequence[Sequence[float]], goal: str) -> Row:
    return Row(name, median(costs[0]), UNIT, median(costs[1]), goal)
