from __future__ import annotations

import pytest

from vmtoken.iso7816.status import StatusWord, StatusWordError


@pytest.mark.parametrize(
    ("status", "retries"),
    [
        (0x63C2, 2),
        (0x63C0, 0),
        (0x6303, 3),
        (0x6300, 0),
        (0x6983, 0),
        (0x9000, None),
        (0x6381, None),
        (0x6982, None),
    ],
)
def test_retries_left_are_read_in_both_notations(status: int, retries: int | None) -> None:
    assert StatusWord(status).retries_left == retries


@pytest.mark.parametrize(
    ("status", "octets"),
    [(0x6150, 0x50), (0x6100, 256), (0x9FD6, 0xD6), (0x9F00, 256), (0x9000, None), (0x6C04, None)],
)
def test_octets_left_to_fetch(status: int, octets: int | None) -> None:
    assert StatusWord(status).octets_left == octets


@pytest.mark.parametrize(("status", "le"), [(0x6C04, 4), (0x6C00, 256), (0x6104, None)])
def test_correct_le(status: int, le: int | None) -> None:
    assert StatusWord(status).correct_le == le


def test_a_status_word_reads_as_four_digits() -> None:
    assert str(StatusWord.CONDITIONS_NOT_SATISFIED) == "6985"
    assert repr(StatusWord(0x900)) == "StatusWord(0x0900)"
    assert "6985" in str(StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED, 0x86))
