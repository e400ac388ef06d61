"""A configuration file is right, or one sentence says what is wrong and where."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from vmtoken import settings


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    queue: int = 16


class Broker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    limits: Limits = Limits()


def test_a_file_becomes_a_value(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text('name = "b"\n[limits]\nqueue = 3\n')
    assert settings.load(path, Broker) == Broker("b", Limits(3))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('nane = "b"', "broker.toml: unknown key 'nane'; did you mean 'name'?"),
        ('name = "b"\n[limits]\nqeue = 3', "broker.toml: unknown key 'limits.qeue'; did you mean 'queue'?"),
        ('name = "b"\n[limits]\nxyz = 3', "broker.toml: unknown key 'limits.xyz'; known here: queue."),
        ('name = "b"\n[limits]\nqueue = "x"', "broker.toml: limits.queue: expected `int`, got `str`."),
        ("", "broker.toml: object missing required field `name`."),
        ("name = ", "broker.toml: not TOML: Invalid value (at end of document)."),
    ],
)
def test_a_mistake_is_named_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        settings.parse(text, Broker, "broker.toml")
    assert str(caught.value) == sentence


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsError, match=r"nowhere.toml: cannot be read \(No such file"):
        settings.load(tmp_path / "nowhere.toml", Broker)
