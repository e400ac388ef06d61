"""Whatever a server sends, the connection either goes on or raises a `TlsError`, and never answers twice."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.tls_server import FakeServer12, FakeServer13
from tests.support.memory import Client, config
from vmtoken.tls.codes import ContentType, HandshakeType
from vmtoken.tls.errors import TlsError

SERVERS = pytest.mark.parametrize("make", [FakeServer12, FakeServer13])


def feed(client: Client, data: bytes) -> None:
    """Give octets as they come; a failure is final and says the same when asked again."""
    try:
        client.receive(data)
    except TlsError as error:
        client.connection.data_to_send()
        with pytest.raises(type(error)):
            client.connection.next_event()
        assert client.connection.data_to_send() == b""


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_octets_instead_of_a_server(data: bytes) -> None:
    feed(Client(config()), data)


@given(st.sampled_from(list(HandshakeType)), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_message_instead_of_a_server_hello(kind: HandshakeType, body: bytes) -> None:
    message = bytes((kind, 0, 0, len(body))) + body
    feed(Client(config()), b"\x16\x03\x03" + len(message).to_bytes(2, "big") + message)


OFFSET = st.integers(0, 5000)
"""Taken modulo the length, which differs between runs: ECDSA signatures do."""


@SERVERS
@given(offset=OFFSET, bits=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_flight_with_one_octet_changed(make: type, offset: int, bits: int) -> None:
    client, server = Client(config()), make()
    server.receive_hello(client.connection.data_to_send())
    flight = bytearray(server.whole_flight())
    flight[offset % len(flight)] ^= bits
    feed(client, bytes(flight))


@SERVERS
@given(
    which=st.integers(0, 5),
    changes=st.lists(st.tuples(OFFSET, st.integers(0, 255)), max_size=3),
    cut=st.none() | OFFSET,
)
@settings(max_examples=150, deadline=None)
def test_a_message_changed_under_the_right_key(
    make: type, which: int, changes: list[tuple[int, int]], cut: int | None
) -> None:
    """Past the AEAD: what a server with the keys can send."""
    client, server = Client(config()), make()
    server.receive_hello(client.connection.data_to_send())
    steps = [step for step in server.steps if step.content_type is ContentType.HANDSHAKE]
    chosen = steps[which % len(steps)]
    feed(client, server.flight_until(chosen.name))
    content = bytearray(chosen.content)
    for offset, octet in changes:
        content[offset % len(content)] = octet
    if cut is not None:
        del content[cut % len(content) :]
    record = bytes(chosen.protection.protect(ContentType.HANDSHAKE, content))
    feed(client, record + server.whole_flight())


@SERVERS
@given(cuts=st.sets(OFFSET, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_flight_in_any_pieces(make: type, cuts: set[int]) -> None:
    client, server = Client(config()), make()
    server.receive_hello(client.connection.data_to_send())
    flight = server.whole_flight()
    ends = sorted({cut % len(flight) for cut in cuts} | {0, len(flight)})
    answer = b"".join(client.receive(flight[start:end]) for start, end in pairwise(ends))
    assert answer
