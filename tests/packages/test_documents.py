"""Man pages and completions say what the parsers say."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0_broker.__main__ import _parser as broker_parser
from dom0_broker.ctl.__main__ import _parser as ctl_parser
from dom0_broker.publisher import _parser as domains_parser
from guest_agent.__main__ import _parser as agent_parser
from guest_agent.cli.main import _parser as vmtoken_parser
from tests.support.debian import run
from tests.support.servers import ROOT
from tests.support.tools import tool

PARSERS = {
    "vmtoken-broker.8": broker_parser,
    "vmtokenctl.8": ctl_parser,
    "vmtoken-domains.8": domains_parser,
    "vmtoken-agent.8": agent_parser,
    "vmtoken.1": vmtoken_parser,
}


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the packages install in /usr/share."""
    share = tmp_path_factory.mktemp("share")
    for package in ("broker", "agent"):
        command = [sys.executable, str(ROOT / "scripts/documents.py"), package, str(share)]
        subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    return share


@pytest.mark.parametrize("page", PARSERS)
def test_page_has_every_command_and_option(share: Path, page: str) -> None:
    text = (share / f"man/man{page[-1]}" / page).read_text()
    for parser in _all_of(PARSERS[page]()):
        command = parser.prog.partition(" ")[2]
        if command and not _children(parser):
            assert f".SS {command}".replace("-", "\\-") in text
        for action in parser._actions:
            options = [] if isinstance(action, argparse._HelpAction) else action.option_strings
            for option in options:
                assert option.replace("-", "\\-") in text, option
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"):
        assert f".SH {section}\n" in text, section


@pytest.mark.parametrize("page", PARSERS)
def test_page_is_shown_without_a_warning(share: Path, page: str) -> None:
    """Wide, so that no usage is too long for its line."""
    path = share / f"man/man{page[-1]}" / page
    shown = run("env", "MANWIDTH=300", "LC_ALL=C.UTF-8", tool("man"), "--warnings", "--local-file", path)
    assert "troff" not in shown
    assert re.search(rf"{page[:-2]} [-\u2010] ", shown), "apropos finds it"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vmtokenctl", ""], ["doctor", "token", "vm"]),
        (["vmtokenctl", "token", "pin", ""], ["set", "change", "unblock"]),
        (["vmtoken", "connect", "--tls"], ["--tls1_2", "--tls1_3"]),
        (["vmtoken-broker", "--"], ["--check-config", "--config"]),
    ],
    ids=" ".join,
)
def test_bash_completes(share: Path, words: list[str], expected: list[str]) -> None:
    script = f"""
        source {share}/bash-completion/completions/{words[0]}
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
        function=$(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function {words[0]} '{words[-1]}' '{words[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    offered = run("bash", "-c", script).split()
    assert [word for word in expected if word not in offered] == []


@pytest.mark.parametrize(
    "name", ["vmtokenctl", "vmtoken", "vmtoken-broker", "vmtoken-agent", "vmtoken-domains"]
)
def test_zsh_understands_its_completions(share: Path, name: str) -> None:
    path = share / f"zsh/vendor-completions/_{name}"
    assert path.read_text().startswith(f"#compdef {name}\n")
    if shutil.which("zsh"):
        run("zsh", "-n", path)


def _all_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for child in _children(parser):
        yield from _all_of(child)


def _children(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [child for group in groups for child in group.choices.values()]
