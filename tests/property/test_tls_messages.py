"""Any octets parse or raise the typed error; what parses can be written and parses again to the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tls_messages import EXTENSIONS, MESSAGES, TLS_1_2, TLS_1_3
from vmtoken.codec import DecodeError, Reader, Writer
from vmtoken.tls.codes import HandshakeType, ProtocolVersion
from vmtoken.tls.errors import MalformedMessage, PeerError
from vmtoken.tls.extensions import Context, Extensions
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.messages import decode_message, encode_message
from vmtoken.tls.reassembly import HandshakeReassembler

versions = st.sampled_from([None, TLS_1_2, TLS_1_3])
examples = st.sampled_from([encode_message(message) for _, message in MESSAGES])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An example with some octets changed, taken out or put in, and a header that may agree again."""
    octets = bytearray(draw(examples))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(octets)))
        octets[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    if len(octets) >= 4 and draw(st.booleans()):
        octets[1:4] = (len(octets) - 4).to_bytes(3, "big")
    return bytes(octets)


def parses_to_the_same_or_raises(octets: bytes, version: ProtocolVersion | None) -> None:
    try:
        message = decode_message(octets, version)
    except PeerError:
        return
    again = encode_message(message)
    assert decode_message(again, version) == message


@given(mutated(), versions)
def test_mutated_message(octets: bytes, version: ProtocolVersion | None) -> None:
    parses_to_the_same_or_raises(octets, version)


@given(st.sampled_from([*HandshakeType, 99]), st.binary(max_size=200), versions)
def test_any_body(handshake_type: int, body: bytes, version: ProtocolVersion | None) -> None:
    parses_to_the_same_or_raises(bytes((handshake_type,)) + len(body).to_bytes(3, "big") + body, version)


@given(st.binary(max_size=100), versions)
def test_any_octets(octets: bytes, version: ProtocolVersion | None) -> None:
    parses_to_the_same_or_raises(octets, version)


@pytest.mark.parametrize("context", Context)
@given(data=st.data())
def test_any_extensions(context: Context, data: st.DataObject) -> None:
    known = sorted({item.extension_type for items in EXTENSIONS.values() for item in items})
    entries = data.draw(st.lists(st.tuples(st.sampled_from(known), st.binary(max_size=40)), max_size=5))
    writer = Writer()
    with writer.block(2):
        for code, content in entries:
            writer.uint(code, 2)
            writer.opaque(content, 2)
    try:
        extensions = Extensions.decode(Reader(writer.getvalue()), context)
    except DecodeError:
        return
    assert [item.extension_type for item in extensions] == [code for code, _ in entries]
    again = Writer()
    extensions.encode(again)
    assert again.getvalue() == writer.getvalue()


@given(st.binary(max_size=100))
def test_any_key_block(octets: bytes) -> None:
    try:
        block = KeyBlock.decode(octets)
    except DecodeError:
        return
    assert block.encode() == octets


@given(st.lists(st.binary(min_size=1, max_size=50)))
def test_any_handshake_stream(fragments: list[bytes]) -> None:
    reassembler = HandshakeReassembler()
    messages = []
    try:
        for fragment in fragments:
            reassembler.add(fragment)
            while (message := reassembler.next_message()) is not None:
                messages.append(message)
    except PeerError:
        return
    assert b"".join(fragments).startswith(b"".join(messages))
    for message in messages:
        assert int.from_bytes(message[1:4], "big") == len(message) - 4


def test_the_typed_error_is_the_home_of_decode_errors() -> None:
    with pytest.raises(MalformedMessage) as error:
        decode_message(b"")
    assert isinstance(error.value.__cause__, DecodeError)
