"""What every `CardConnection` must do, whatever is behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.cards import Card
from tests.support.pcsc import PcscCard
from vmtoken.cards.codes import AID
from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.connection import CardConnection

SELECT = bytes.fromhex("00 A4 04 00 10") + AID
GET_STATE = bytes.fromhex("A0 19 00 00 01")
PIN_STATUS = bytes.fromhex("A0 20 00 00")
VERIFY = bytes.fromhex("A0 20 00 00 08 31 32 33 34 FF FF FF FF")


@pytest.fixture
def connection(card: Card | PcscCard) -> Iterator[CardConnection]:
    connection = card.connect()
    yield connection
    connection.close()


def test_application_is_selected_by_its_aid(connection: CardConnection) -> None:
    assert connection.transmit(SELECT)[-2] in (0x61, 0x90)


def test_unknown_application_is_not_found(connection: CardConnection) -> None:
    assert connection.transmit(bytes.fromhex("00 A4 04 00 05 A0 00 00 00 01")) == b"\x6a\x82"


def test_nothing_is_done_before_an_application_is_selected(connection: CardConnection) -> None:
    assert connection.transmit(GET_STATE)[-2:] != b"\x90\x00"
    assert connection.transmit(VERIFY)[-2:] != b"\x90\x00"


def test_reset_forgets_application_and_pin(connection: CardConnection) -> None:
    connection.transmit(SELECT)
    assert connection.transmit(VERIFY) == b"\x90\x00"
    assert connection.transmit(PIN_STATUS) == b"\x90\x00"
    connection.reset()
    assert connection.transmit(GET_STATE)[-2:] != b"\x90\x00"
    connection.transmit(SELECT)
    assert connection.transmit(PIN_STATUS)[0] == 0x63


def test_select_forgets_the_pin(connection: CardConnection) -> None:
    connection.transmit(SELECT)
    assert connection.transmit(VERIFY) == b"\x90\x00"
    connection.transmit(SELECT)
    assert connection.transmit(PIN_STATUS)[0] == 0x63


def test_two_connections_do_not_share_a_pin(card: Card | PcscCard, connection: CardConnection) -> None:
    connection.transmit(SELECT)
    assert connection.transmit(VERIFY) == b"\x90\x00"
    if card.is_exclusive:
        with pytest.raises(TokenUnavailable, match="in use by another"):
            card.connect()
        connection.close()
    second = card.connect()
    second.transmit(SELECT)
    assert second.transmit(PIN_STATUS)[0] == 0x63
    second.close()


def test_closed_connection_is_unavailable_and_may_be_closed_again(card: Card | PcscCard) -> None:
    connection = card.connect()
    connection.close()
    connection.close()
    with pytest.raises(TokenUnavailable):
        connection.transmit(SELECT)


_HEADERS = st.tuples(
    st.sampled_from([0x00, 0x10, 0x80, 0xA0]), st.integers(0, 255), st.integers(0, 3), st.integers(0, 3)
).map(bytes)
_BODIES = st.one_of(
    st.binary(max_size=12), st.binary(max_size=255).map(lambda data: bytes((len(data),)) + data)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.lists(st.one_of(st.binary(max_size=20), st.builds(bytes.__add__, _HEADERS, _BODIES)), max_size=8))
def test_any_octets_are_answered_with_a_status_word(
    connection: CardConnection, commands: list[bytes]
) -> None:
    connection.reset()
    connection.transmit(SELECT)
    for command in commands:
        if command[1:2] not in (b"\x20", b"\x24", b"\x2c"):  # they would use up the PIN
            assert len(connection.transmit(command)) >= 2
