"""Configuration files: TOML into a frozen, checked value, or one clear sentence."""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from pathlib import Path
from typing import TypeVar

import msgspec

Settings = TypeVar("Settings", bound=msgspec.Struct)

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<where>.*)`)?$")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?$", re.DOTALL)


class SettingsError(Exception):
    """What is wrong, in which file and at which key; the message is one sentence for a person."""


def load(path: Path, kind: type[Settings]) -> Settings:
    """Read a TOML file into `kind`, a frozen `msgspec.Struct` that forbids unknown fields.

    Raises `SettingsError` when the file cannot be read, is not TOML, or does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path}: cannot be read ({reason}).") from error
    return parse(text, kind, str(path))


def parse(text: str, kind: type[Settings], name: str) -> Settings:
    """Read TOML text into `kind`; `name` stands for the file in messages."""
    try:
        return msgspec.convert(tomllib.loads(text), kind, dec_hook=_decoded)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{name}: not TOML: {error}.") from error
    except msgspec.ValidationError as error:
        raise SettingsError(f"{name}: {_sentence(str(error), kind)}") from error


def _decoded(kind: type, value: object) -> object:
    """What msgspec does not know itself: paths."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected `{kind.__name__}`")


def _sentence(complaint: str, kind: type[msgspec.Struct]) -> str:
    unknown = _UNKNOWN.match(complaint)
    if unknown:
        return _unknown_key(unknown["key"], unknown["where"] or "", kind)
    match = _AT.match(complaint)
    assert match is not None  # the pattern takes any text
    what, where = match["what"], match["where"]
    return f"{where}: {what[0].lower()}{what[1:]}." if where else f"{what[0].lower()}{what[1:]}."


def _unknown_key(key: str, where: str, kind: type[msgspec.Struct]) -> str:
    known = _fields(kind, where)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}."
    place = f"{where}." if where else ""
    return f"unknown key '{place}{key}'; {hint}"


def _fields(kind: type[msgspec.Struct], where: str) -> list[str]:
    """The keys known at a dotted place; those of `kind` when the place is not a table of its own."""
    for name in filter(None, where.split(".")):
        types = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        inner = types.get(name.partition("[")[0])
        if name.endswith("]"):  # an element of an array of tables
            inner = next(iter(typing.get_args(inner)), None)
        if not (isinstance(inner, type) and issubclass(inner, msgspec.Struct)):
            break
        kind = inner
    return [field.encode_name for field in msgspec.structs.fields(kind)]
