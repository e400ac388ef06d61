"""Every message that is written down in the source for a person to read is a sentence."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sentences import is_sentence
from vmtoken import errors

ROOT = Path(__file__).parents[2]
PACKAGES = ("vmtoken", "dom0_broker", "guest_agent")

ERRORS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.VmTokenError)
}


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of what the errors made in a module say, 'X' for what varies."""
    named = defaultdict(list)
    for node in ast.walk(tree):
        match node:
            case ast.Assign([ast.Name(name)], ast.Constant(str()) | ast.JoinedStr() as value):
                named[name].append(value)
    for node in ast.walk(tree):
        match node:
            case ast.Call(ast.Name(kind) | ast.Attribute(attr=kind), [first, *_]) if kind in ERRORS:
                values = named[first.id] if isinstance(first, ast.Name) else [first]
                yield from ((value.lineno, text(value)) for value in values if text(value))


def text(value: ast.expr) -> str:
    """Of a literal; empty for anything else."""
    match value:
        case ast.Constant(str(literal)):
            return literal
        case ast.JoinedStr(parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts)
    return ""


def unfit(path: Path) -> list[str]:
    """What is no sentence, or begins with something that varies; after a colon may come another sentence."""
    return [
        f"{path.name}:{line}: {said}"
        for line, said in messages(ast.parse(path.read_text()))
        if said[0] == "X" or not is_sentence(re.sub(": X$", ".", said))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_errors_say_whole_sentences(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 10
    assert [complaint for path in files for complaint in unfit(path)] == []


def test_the_walk_sees_what_is_no_sentence(tmp_path: Path) -> None:
    source = tmp_path / "bad.py"
    source.write_text(
        'raise Conflict("no capital.")\n'
        'raise errors.NotFound(f"There is no {name}")\n'
        'message = f"{name} comes first."\n'
        "raise TokenBusy(message, retry_after=1.0)\n"
        'raise NotReady("not one of ours")\n'
        'raise Conflict("This is one.")\n'
    )
    assert [complaint.split(":")[1] for complaint in unfit(source)] == ["1", "2", "3"]
