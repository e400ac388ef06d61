"""What people and programs read: tables, or the same as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

Value = str | int | float | bool | None | Sequence[str]
Row = Mapping[str, Value]


def show_rows(rows: Sequence[Row], columns: Sequence[str], *, as_json: bool, nothing: str) -> None:
    """Print rows: the columns named as a table, or every field as JSON. `nothing` stands for no rows."""
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        _table(rows, columns)
    else:
        print(nothing)


def show_facts(facts: Row, *, as_json: bool) -> None:
    """Print one thing, a field a line."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{_title(name):<{width}}  {_text(value)}".rstrip())


def say(sentence: str) -> None:
    """Tell a person what was done; on standard error, so that pipes carry data only."""
    print(sentence, file=sys.stderr)


def moment(time: datetime) -> str:
    """A time of day as people and programs read it."""
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    cells = [[_title(name).upper() for name in columns]]
    cells += [[_text(row[name]) for name in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _title(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Value) -> str:
    """Untrusted text, such as a server name, must not steer the terminal."""
    match value:
        case None | "" | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case str():
            return "".join(char if char.isprintable() else "?" for char in value)
        case int() | float():
            return str(value)
        case _:
            return ", ".join(map(_text, value))
