"""documents.py broker|agent DIRECTORY: man pages and shell completions, below a directory such as /usr/share.

Names, options and help come from the parsers of the programs, so that they stay true; what a parser does not
know (files, signals, exit codes, examples) is written by hand in deploy/man, in roff.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import shtab

from dom0_broker.__main__ import _parser as broker_parser
from dom0_broker.ctl.__main__ import _parser as ctl_parser
from dom0_broker.publisher import _parser as domains_parser
from guest_agent.__main__ import _parser as agent_parser
from guest_agent.cli.main import _parser as vmtoken_parser

WRITTEN = Path(__file__).parents[1] / "deploy/man"


@dataclass(frozen=True)
class Program:
    """A command, its man page's section and its one-line description (what apropos finds)."""

    name: str
    section: int
    summary: str
    parser: Callable[[], argparse.ArgumentParser]


PROGRAMS = {
    "broker": (
        Program("vmtoken-broker", 8, "secure elements for the VMs of a Xen host", broker_parser),
        Program("vmtokenctl", 8, "control the vmtoken broker", ctl_parser),
        Program("vmtoken-domains", 8, "tell a vmtoken broker which domains run", domains_parser),
    ),
    "agent": (
        Program("vmtoken-agent", 8, "TLS sessions with the identity of a VM", agent_parser),
        Program("vmtoken", 1, "TLS sessions with the identity of this machine", vmtoken_parser),
    ),
}


def main() -> None:
    package, directory = sys.argv[1], Path(sys.argv[2])
    for program in PROGRAMS[package]:
        name = program.name
        parser = program.parser()
        _write(directory / f"man/man{program.section}/{name}.{program.section}", man_page(program))
        _write(directory / f"bash-completion/completions/{name}", shtab.complete(_for_shells(parser), "bash"))
        _write(directory / f"zsh/vendor-completions/_{name}", shtab.complete(_for_shells(parser), "zsh"))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def man_page(program: Program) -> str:
    """A page for man(7)."""
    parser = program.parser()
    lines = [
        f'.TH {program.name.upper()} {program.section} "" vmtoken "vmtoken manual"',
        ".SH NAME",
        f"{program.name} \\- {program.summary}",
        ".SH SYNOPSIS",
        f".B {roff(_usage(parser))}",
        ".SH DESCRIPTION",
        roff(_sentence(parser.description or "").partition(": ")[2]),
        *_section("OPTIONS", _options(parser)),
        *_section("COMMANDS", _commands(parser)),
        (WRITTEN / f"{program.name}.man").read_text().rstrip(),
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    written = list(lines)
    if written:
        yield f".SH {title}"
        yield from written


def _usage(parser: argparse.ArgumentParser) -> str:
    return re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).strip()


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Arguments and options, a paragraph each."""
    for action in _shown(parser):
        yield ".TP"
        yield f"\\fB{roff(', '.join(action.option_strings))}\\fR {_value(action)}".strip()
        help_text = (action.help or "").replace("%%", "\0")
        for key in ("default", "prog"):
            value = parser.prog if key == "prog" else action.default
            help_text = help_text.replace(f"%({key})s", str(value))
        yield roff(_sentence(help_text.replace("\0", "%"))) or "\\&"


def _shown(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            yield action


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices and not action.metavar:
        return roff("{" + ",".join(map(str, action.choices)) + "}")
    if isinstance(action.metavar, tuple):
        return " ".join(f"\\fI{roff(each)}\\fR" for each in action.metavar)
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    return f"\\fI{roff(name)}\\fR"


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every command, those of groups too, with what it takes."""
    for group in parser._actions:
        if not isinstance(group, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help or "" for choice in group._choices_actions}
        for name, child in group.choices.items():
            inner = list(_commands(child))
            if inner:
                yield from inner
                continue
            yield f".SS {roff(child.prog.partition(' ')[2])}"
            yield roff(_sentence(child.description or _as_sentence(helps.get(name, ""))))
            yield ".PP"
            yield f".B {roff(_usage(child))}"
            yield from _options(child)


def _as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + ("" if text.endswith("?") else ".") if text else ""


def roff(text: str) -> str:
    """Text that man(7) shows as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _for_shells(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Paths complete as files; shells have no use for the parsers' long descriptions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _for_shells(child)
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    return parser


if __name__ == "__main__":
    main()
