"""What every `CardConnection` must do, whatever is behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.cards import Dialect
from tests.support.pcsc import AnyCard
from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.connection import CardConnection


@pytest.fixture
def connection(card: AnyCard) -> Iterator[CardConnection]:
    connection = card.connect()
    yield connection
    connection.close()


def test_application_is_selected_by_its_aid(connection: CardConnection, dialect: Dialect) -> None:
    assert connection.transmit(dialect.select)[-2] in (0x61, 0x90)


def test_unknown_application_is_not_found(connection: CardConnection) -> None:
    assert connection.transmit(bytes.fromhex("00 A4 04 00 05 A0 00 00 00 01")) == b"\x6a\x82"


def test_nothing_is_done_before_an_application_is_selected(
    connection: CardConnection, dialect: Dialect
) -> None:
    assert connection.transmit(dialect.needs_selection)[-2:] != b"\x90\x00"
    assert connection.transmit(dialect.verify)[-2:] != b"\x90\x00"


def test_reset_forgets_application_and_pin(connection: CardConnection, dialect: Dialect) -> None:
    connection.transmit(dialect.select)
    assert connection.transmit(dialect.verify) == b"\x90\x00"
    assert connection.transmit(dialect.pin_status) == b"\x90\x00"
    connection.reset()
    assert connection.transmit(dialect.needs_selection)[-2:] != b"\x90\x00"
    connection.transmit(dialect.select)
    assert connection.transmit(dialect.pin_status)[0] == 0x63


def test_select_forgets_the_pin_where_the_standard_says_so(
    connection: CardConnection, dialect: Dialect
) -> None:
    connection.transmit(dialect.select)
    assert connection.transmit(dialect.verify) == b"\x90\x00"
    connection.transmit(dialect.select)
    assert connection.transmit(dialect.pin_status)[0] == (0x90 if dialect.pin_outlives_select else 0x63)


def test_two_connections_do_not_share_a_pin(
    card: AnyCard, connection: CardConnection, dialect: Dialect
) -> None:
    connection.transmit(dialect.select)
    assert connection.transmit(dialect.verify) == b"\x90\x00"
    if card.is_exclusive:
        with pytest.raises(TokenUnavailable, match="in use by another"):
            card.connect()
        connection.close()
    second = card.connect()
    second.transmit(dialect.select)
    assert second.transmit(dialect.pin_status)[0] == 0x63
    second.close()


def test_closed_connection_is_unavailable_and_may_be_closed_again(card: AnyCard, dialect: Dialect) -> None:
    connection = card.connect()
    connection.close()
    connection.close()
    with pytest.raises(TokenUnavailable):
        connection.transmit(dialect.select)


_HEADERS = st.tuples(
    st.sampled_from([0x00, 0x10, 0x80, 0xA0]), st.integers(0, 255), st.integers(0, 3), st.integers(0, 3)
).map(bytes)
_BODIES = st.one_of(
    st.binary(max_size=12), st.binary(max_size=255).map(lambda data: bytes((len(data),)) + data)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.lists(st.one_of(st.binary(max_size=20), st.builds(bytes.__add__, _HEADERS, _BODIES)), max_size=8))
def test_any_octets_are_answered_with_a_status_word(
    connection: CardConnection, dialect: Dialect, commands: list[bytes]
) -> None:
    connection.reset()
    connection.transmit(dialect.select)
    for command in commands:
        if command[1:2] not in (b"\x20", b"\x24", b"\x2c"):  # they would use up the PIN
            assert len(connection.transmit(command)) >= 2
