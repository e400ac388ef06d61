from __future__ import annotations

import contextlib
import itertools

from hypothesis import given
from hypothesis import strategies as st

from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, ContentType
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.errors import PeerError, TlsError, TruncatedStream
from vmtoken.tls.events import DataReceived, NeedData
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.record import RecordReader, record_protection
from vmtoken.tls.suites import suite_of

SUITES = [suite for code in CipherSuite if (suite := suite_of(code))]

suites = st.sampled_from(SUITES)
pieces_of_data = st.lists(st.binary(max_size=600), max_size=8)


def cut(octets: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(octets) + 1) for place in cuts), len(octets)]
    return [octets[start:end] for start, end in itertools.pairwise(places)]


def sides(suite: object) -> tuple[KeyBlock, KeyBlock]:
    """The key blocks of the two sides of one session."""
    code = suite.code  # type: ignore[attr-defined]
    secrets = [SecretBytes(bytes((number,)) * suite.secret_length) for number in (1, 2)]  # type: ignore[attr-defined]
    version = suite.version  # type: ignore[attr-defined]
    return (
        KeyBlock(version, code, secrets[0], secrets[1], 1, 1, send_limit=200),
        KeyBlock(version, code, secrets[1], secrets[0], 1, 1),
    )


@given(suites, pieces_of_data, st.lists(st.integers(0), max_size=10))
def test_a_session_cut_anywhere(suite: object, data: list[bytes], cuts: list[int]) -> None:
    client_block, server_block = sides(suite)
    client, server = DelegatedConnection(client_block), DelegatedConnection(server_block)
    for piece in data:
        client.send_data(piece)
    received = b""
    for piece in cut(bytes(client.data_to_send()), cuts):
        server.receive_data(piece)
        while isinstance(event := server.next_event(), DataReceived):
            received += event.data
        assert isinstance(event, NeedData)
    assert received == b"".join(data)


@given(suites, pieces_of_data, st.integers(0), st.binary(max_size=4), st.integers(0, 4))
def test_a_session_changed_anywhere(
    suite: object, data: list[bytes], place: int, inserted: bytes, removed: int
) -> None:
    """Whatever happens on the way: a prefix of what was sent, then an error unless nothing was changed."""
    client_block, server_block = sides(suite)
    client, server = DelegatedConnection(client_block), DelegatedConnection(server_block)
    for piece in data:
        client.send_data(piece)
    stream = bytes(client.data_to_send())
    start = place % (len(stream) + 1)
    changed = stream[:start] + inserted + stream[start + removed :]
    server.receive_data(changed)
    server.receive_eof()
    received, error = b"", None
    try:
        while isinstance(event := server.next_event(), DataReceived):
            received += event.data
    except TlsError as ended:
        error = ended
    assert b"".join(data).startswith(received)
    assert error is not None
    if not isinstance(error, TruncatedStream):
        assert stream != changed


@given(suites, st.binary(max_size=400))
def test_any_octets_end_a_session_with_a_typed_error_or_wait(suite: object, octets: bytes) -> None:
    server = DelegatedConnection(sides(suite)[1])
    server.receive_data(octets)
    with contextlib.suppress(PeerError):
        assert isinstance(server.next_event(), NeedData)
        return
    assert server.data_to_send()  # the alert


@given(suites, st.sampled_from([20, 21, 22, 23]), st.binary(max_size=300))
def test_any_content_under_protection(suite: object, content_type: int, content: bytes) -> None:
    """An honest record layer below a peer that says anything."""
    client_block, server_block = sides(suite)
    secret = client_block.client_secret.reveal()
    peer = record_protection(suite, secret, client_block.client_sequence)  # type: ignore[arg-type]
    server = DelegatedConnection(server_block)
    server.receive_data(peer.protect(content_type, content))
    try:
        event = server.next_event()
    except TlsError:
        assert content_type != ContentType.APPLICATION_DATA
    else:
        if content_type == ContentType.APPLICATION_DATA:
            assert isinstance(event, DataReceived) == bool(content)


@given(st.binary(max_size=600), st.lists(st.integers(0), max_size=10))
def test_any_stream_is_cut_into_the_same_records_however_it_comes(octets: bytes, cuts: list[int]) -> None:
    whole, in_pieces = outcome([octets]), outcome(cut(octets, cuts))
    assert whole == in_pieces


def outcome(pieces: list[bytes]) -> tuple[list[bytes], str | None]:
    reader, records = RecordReader(), []
    try:
        for piece in pieces:
            for record in reader.records(piece):
                records.append(bytes(record))
    except PeerError as error:
        return records, type(error).__name__
    return records, None
