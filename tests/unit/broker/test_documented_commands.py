"""Every `vmtokenctl` command that the documents show is one that it takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0_broker.ctl.__main__ import _parser

ROOT = Path(__file__).parents[3]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_SHOWN = re.compile(r"^(?: {4}|# )(?:sudo )?vmtokenctl (?P<arguments>.*)$", re.MULTILINE)
"""A line of an example; what stands in running text is often the beginning of a command only."""


def shown() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for example in _SHOWN.finditer(document.read_text()):
            yield document.name, example["arguments"]


def words(arguments: str) -> list[str]:
    """As the shell has them: no comment, no redirection; what is optional is there."""
    lexer = shlex.shlex(arguments, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found = list(lexer)
    end = next((at for at, word in enumerate(found) if word in {">", "|", "&&", ";"}), len(found))
    return [word.strip("[]") for word in found[:end]]


@pytest.mark.parametrize(("document", "arguments"), list(shown()))
def test_command_in_a_document_is_taken(document: str, arguments: str) -> None:
    _parser().parse_args(words(arguments))


def test_there_are_commands_in_the_documents() -> None:
    assert {"README.md", "tokens.md", "operations.md"} <= {document for document, _ in shown()}
