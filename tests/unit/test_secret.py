"""A secret shows itself only to whoever asks for it by name."""

from __future__ import annotations

import pickle

import pytest

from vmtoken.log import redacted
from vmtoken.secret import SecretBytes


def test_a_secret_does_not_print_itself() -> None:
    secret = SecretBytes(b"1234")
    assert "1234" not in f"{secret!r} {secret}"
    assert secret.reveal() == b"1234"


def test_a_wiped_secret_is_gone() -> None:
    secret = SecretBytes(b"1234")
    secret.wipe()
    assert secret.reveal() == b""


def test_a_secret_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(SecretBytes(b"1234"))


def test_secrets_compare_by_value() -> None:
    assert SecretBytes(b"a") == SecretBytes(b"a")
    assert SecretBytes(b"a") != SecretBytes(b"b")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (bytes.fromhex("A02000000831323334FFFFFFFF"), "a020000008.. (8 octets)"),
        (bytes.fromhex("00A4040002A000"), "00a4040002a000"),
    ],
)
def test_the_data_of_a_pin_command_is_not_logged(command: bytes, shown: str) -> None:
    assert redacted(command) == shown
