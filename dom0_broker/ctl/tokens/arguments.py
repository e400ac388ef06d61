"""What the subcommands of `vmtokenctl token` share."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where subcommands are added."""


def named(group: Commands, command: str, what: str) -> argparse.ArgumentParser:
    """A subcommand that is about one token."""
    parser = group.add_parser(command, help=what)
    parser.add_argument("name", help="name of the token")
    return parser
